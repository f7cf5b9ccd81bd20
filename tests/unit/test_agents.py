"""Every agent keeps the promises of `AgentSuite`, and what all replay agents share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.agents import cql, ddpg, sac
from cuvee.agents.base import Observation, Transition, fault_of
from cuvee.agents.cql import CQL, CQLSettings
from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.learning import RewardScale, TrainState, mixture_value, td_target
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.replay import ReplayBatch, ReplayBuffer
from cuvee.agents.sac import SAC, SACSettings
from cuvee.core.errors import PolicyError
from cuvee.testing.agent import AgentSuite

SMALL: dict[str, Any] = {
    "learning_starts": 16,
    "capacity": 26,
    "batch_size": 8,
    "architecture": Architecture(hidden=8),
}
TRANSFORMER = Architecture("transformer", hidden=8, layers=1, heads=2)


class TestDDPG(AgentSuite):
    def make(self) -> DDPG:
        return DDPG(Shape(4, 3, 2), DDPGSettings(**SMALL), seed=1)


class TestDDPGOnWeights(AgentSuite):
    vector = True

    def make(self) -> DDPG:
        settings = {
            **SMALL,
            "architecture": TRANSFORMER,
            "noise_on": "weights",
            "noise": 0.02,
            "scale_rewards": False,
        }
        return DDPG(Shape(4, 3, 2, vector=True), DDPGSettings(**settings), seed=1)


class TestDDPGTwin(AgentSuite):
    vector = True

    def make(self) -> DDPG:
        return DDPG(
            Shape(4, 3, 2, vector=True, reference=1),
            DDPGSettings(**SMALL, twin=True, kl_coef=0.2),
            seed=1,
        )


class TestSAC(AgentSuite):
    def make(self) -> SAC:
        return SAC(Shape(4, 3, 2), SACSettings(**SMALL, updates=2), seed=1)


class TestSACDirichletVector(AgentSuite):
    vector = True

    def make(self) -> SAC:
        return SAC(Shape(4, 3, 2, vector=True), SACSettings(**SMALL, policy="dirichlet"), seed=1)


class TestCQL(AgentSuite):
    def make(self) -> CQL:
        settings = {**SMALL, "architecture": TRANSFORMER, "draws": 3, "bc_coef": 0.5}
        return CQL(Shape(4, 3, 2), CQLSettings(**settings), seed=1)


def ready(kind: str, vector: bool = False) -> Any:
    shape = Shape(4, 3, 2, vector)
    suite = AgentSuite()
    suite.vector = vector
    agent = {
        "ddpg": lambda: DDPG(shape, DDPGSettings(**SMALL)),
        "sac": lambda: SAC(shape, SACSettings(**SMALL)),
        "cql": lambda: CQL(shape, CQLSettings(**{**SMALL, "draws": 3})),
    }[kind]()
    rng = np.random.default_rng(0)
    for _ in range(20):
        agent.observe(suite.transition(rng))
    return agent


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("kind", ["ddpg", "sac", "cql"])
def test_every_network_moves_and_every_target_moves_by_tau_alone(kind: str, vector: bool) -> None:
    agent = ready(kind, vector)
    before = {name: train_state.state_dict() for name, train_state in agent.train_states.items()}
    agent.update()
    assert any(train_state.target for train_state in agent.train_states.values())
    for name, train_state in agent.train_states.items():
        moved = train_state.state_dict()
        # The last layer starts near zero, so the first gradients before it are small but not zero.
        assert any(
            (moved["net"][part] != old).any() for part, old in before[name]["net"].items()
        ), name
        for part, old in before[name]["target"].items():
            expected = old + agent.settings.tau * (moved["net"][part] - old)
            np.testing.assert_allclose(moved["target"][part], expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["ddpg", "sac", "cql"])
def test_nothing_is_learned_before_the_warm_up(kind: str) -> None:
    agent = ready(kind)
    fresh = type(agent)(agent.shape, dataclasses.replace(agent.settings, learning_starts=21))
    fresh.load_state_dict(agent.state_dict())
    assert fresh.update() == {}
    assert fresh.digest() == agent.digest()


def test_the_state_of_one_kind_of_agent_is_refused_by_another() -> None:
    with pytest.raises(PolicyError, match="DDPG"):
        ready("sac").load_state_dict(ready("ddpg").state_dict())


def test_a_state_with_numbers_that_are_not_finite_is_refused() -> None:
    agent = ready("ddpg")
    state: Any = agent.state_dict()
    name = next(iter(state["train_states"]["actor"]["net"]))
    state["train_states"]["actor"]["net"][name].flat[0] = np.nan
    with pytest.raises(PolicyError, match="finite"):
        ready("ddpg").load_state_dict(state)


def test_other_shapes_than_the_agent_was_built_for_are_refused_by_name() -> None:
    agent, good = ready("ddpg"), AgentSuite().transition(np.random.default_rng(0))
    wide = Observation(np.zeros((5, 3), np.float32), np.zeros(2, np.float32))
    with pytest.raises(PolicyError, match=r"domains.*\(5, 3\)"):
        agent.observe(good._replace(observation=wide))
    with pytest.raises(PolicyError, match="reward"):
        agent.observe(good._replace(reward=np.zeros(4)))


def test_a_step_with_a_gradient_that_is_not_finite_is_not_taken() -> None:
    train_state = TrainState(torch.nn.Linear(2, 1), 0.1)
    before = train_state.state_dict()["net"]["weight"]
    metrics = train_state.step(
        "critic", train_state.net(torch.tensor([[1e38, 1e38]])).square().sum()
    )
    assert metrics["critic_refused"] == 1
    assert (train_state.state_dict()["net"]["weight"] == before).all()


def batch_of(reward: float, terminated: bool, R: int = 1) -> ReplayBatch:
    zeros = torch.zeros(1, 2, 3), torch.zeros(1, 2)
    return ReplayBatch(
        *zeros,
        torch.full((1, 2), 0.5),
        torch.full((1, R), reward),
        *zeros,
        torch.tensor([float(terminated)]),
    )


def test_truncated_bootstraps_and_terminated_does_not() -> None:
    following = torch.tensor([10.0])
    assert td_target(batch_of(1.0, False), following, 0.9, RewardScale()).item() == pytest.approx(
        10.0
    )
    assert td_target(batch_of(1.0, True), following, 0.9, RewardScale()).item() == pytest.approx(
        1.0
    )


def test_rewards_are_centred_only_while_no_run_has_ended() -> None:
    buffer, suite = ReplayBuffer(8, 0), AgentSuite()
    good = suite.transition(np.random.default_rng(0))._replace(terminated=False, truncated=True)
    for reward in (1.0, 3.0):
        buffer.add(good._replace(reward=reward))
    assert RewardScale.of(buffer) == (2.0, 1.0)
    buffer.add(good._replace(reward=2.0, terminated=True, truncated=False))
    assert RewardScale.of(buffer).mean == 0.0


def test_a_vector_critic_predicts_each_domains_reward_and_the_return_after_the_interval() -> None:
    target = td_target(batch_of(1.0, False, R=2), torch.tensor([10.0]), 0.9, RewardScale())
    torch.testing.assert_close(target, torch.tensor([[1.0, 1.0, 9.0]]))


def test_the_value_of_a_mixture_is_its_reward_and_the_return_after_the_interval() -> None:
    action = torch.tensor([[0.25, 0.75]])
    assert mixture_value(torch.tensor([[4.0, 8.0, 3.0]]), action).item() == pytest.approx(10.0)
    assert mixture_value(torch.tensor([[4.0]]), action).item() == 4.0


def test_the_papers_numbers_are_kept_as_presets() -> None:
    assert (
        ddpg.PAPER.tau,
        ddpg.PAPER.actor_lr,
        ddpg.PAPER.batch_size,
        ddpg.PAPER.learning_starts,
    ) == (
        1e-3,
        1e-4,
        32,
        833,
    )
    assert (ddpg.PAPER.noise, ddpg.PAPER.noise_on, ddpg.PAPER.architecture.hidden) == (
        0.02,
        "weights",
        1024,
    )
    assert (sac.PAPER.tau, sac.PAPER.critic_lr, sac.PAPER.discount, sac.PAPER.capacity) == (
        1e-3,
        1e-4,
        0.95,
        10_000,
    )
    assert cql.CQLSettings().draws > 0


def test_a_fault_is_named_by_place_and_value() -> None:
    assert (
        fault_of("reward", [0.0, float("nan")])
        == "reward[1] is nan: it must be finite and at most 1e+06 in size"
    )
    assert fault_of("reward", 1.0) is None
    good = AgentSuite().transition(np.random.default_rng(0))
    both: Transition = good._replace(terminated=True, truncated=True)
    assert "both" in str(ready("ddpg").observe(both))


@pytest.mark.parametrize(("kind", "settings"), [(DDPG, DDPGSettings), (SAC, SACSettings)])
def test_a_running_mean_of_the_actor_acts_when_nothing_is_explored(
    kind: Any, settings: Any
) -> None:
    plain, steady, again = (
        kind(Shape(4, 3, 2), settings(**SMALL, ema_rate=share)) for share in (0.0, 0.1, 0.1)
    )
    suite, rng = AgentSuite(), np.random.default_rng(0)
    transitions = [suite.transition(rng) for _ in range(40)]
    for transition in transitions:
        for agent in (plain, steady):
            agent.observe(transition)
            agent.update()
    for one, other in zip(plain.actor.net.parameters(), steady.actor.net.parameters(), strict=True):
        assert torch.equal(one, other), "learning is the same"
    seen = transitions[0].observation
    assert np.abs(plain.act(seen) - steady.act(seen)).max() > 0
    again.load_state_dict(steady.state_dict())
    assert again.act(seen).tolist() == steady.act(seen).tolist()

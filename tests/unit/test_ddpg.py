"""DDPG on the simplex: exploration, and the direction in which each network is stepped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cuvee.agents.base import Observation, Transition
from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.learning import RewardScale
from cuvee.agents.networks import Architecture, Shape
from cuvee.testing.agent import AgentSuite

STATE = Observation(np.zeros((4, 3), np.float32), np.zeros(2, np.float32))


def agent_with(**settings: Any) -> DDPG:
    architecture = Architecture(hidden=8)
    return DDPG(Shape(4, 3, 2), DDPGSettings(architecture=architecture, **settings))


def acts(agent: DDPG, count: int) -> np.ndarray:
    return np.stack([agent.act(STATE, explore=True) for _ in range(count)])


def test_noise_on_weights_is_additive_and_on_logits_relative() -> None:
    on_weights = acts(agent_with(noise=0.02, noise_on="weights"), 400)
    assert on_weights.std(0).mean() == pytest.approx(0.02 * np.sqrt(3 / 4), rel=0.1)
    logs = np.log(acts(agent_with(noise=0.3, noise_on="logits"), 400))
    assert (logs - logs.mean(1, keepdims=True)).std(0).mean() == pytest.approx(
        0.3 * np.sqrt(3 / 4), rel=0.1
    )


def test_no_noise_is_no_exploration() -> None:
    agent = agent_with(noise=0.0)
    assert (agent.act(STATE, explore=True) == agent.act(STATE)).all()


def test_noise_with_a_memory_wanders_at_the_same_deviation() -> None:
    logs = np.log(acts(agent_with(noise=0.3, noise_memory=0.9), 1500))
    free = (logs - logs.mean(1, keepdims=True))[:, 0]
    assert free.std() == pytest.approx(0.3 * np.sqrt(3 / 4), rel=0.2)
    assert np.corrcoef(free[:-1], free[1:])[0, 1] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("options", [{}, {"twin": True}, {"kl_coef": 0.2}])
def test_each_step_lowers_its_own_loss_and_leaves_the_other_network_alone(
    vector: bool, options: Any
) -> None:
    settings = DDPGSettings(
        learning_starts=1,
        batch_size=32,
        actor_lr=1e-3,
        architecture=Architecture(hidden=16),
        **options,
    )
    agent, suite, rng = (
        DDPG(Shape(4, 3, 2, vector), settings),
        AgentSuite(),
        np.random.default_rng(0),
    )
    suite.vector = vector
    for _ in range(32):
        agent.observe(suite.transition(rng))
    batch = agent.buffer.take(np.arange(32))
    scale = RewardScale()
    actor_before = {name: value.clone() for name, value in agent.actor.net.state_dict().items()}
    first = agent.critic_loss(batch, scale)
    for _ in range(20):
        agent.critic.step("critic", agent.critic_loss(batch, scale))
    assert agent.critic_loss(batch, scale) < first
    assert all(
        torch.equal(value, actor_before[name])
        for name, value in agent.actor.net.state_dict().items()
    )
    critic_before = {name: value.clone() for name, value in agent.critic.net.state_dict().items()}
    promise = agent.actor_loss(batch, RewardScale())
    for _ in range(20):
        agent.actor.step("actor", agent.actor_loss(batch, RewardScale()))
    assert agent.actor_loss(batch, RewardScale()) < promise
    assert all(
        torch.equal(value, critic_before[name])
        for name, value in agent.critic.net.state_dict().items()
    )


def test_caution_draws_the_actor_to_its_reference() -> None:
    """The rewards do not depend on the mixture, so only the distance penalty moves the actor."""
    shape = Shape(4, 3, 2, reference=1)
    settings = DDPGSettings(
        learning_starts=1, actor_lr=1e-2, kl_coef=1.0, architecture=Architecture(hidden=16)
    )
    agent, rng = DDPG(shape, settings), np.random.default_rng(0)
    reference_K = np.array([0.0, -2.0, 0.0, 1.0], np.float32)
    expected_K = np.exp(reference_K) / np.exp(reference_K).sum()
    domains_KF = rng.normal(size=(4, 3)).astype(np.float32)
    domains_KF[:, 1] = reference_K
    seen = Observation(domains_KF, np.zeros(2, np.float32))
    with torch.no_grad():
        agent.actor.net.actor.body[-1].bias.copy_(
            torch.tensor([2.0, 0.0, -2.0, 0.0])
        )  # somewhere else
    assert np.abs(agent.act(seen) - expected_K).sum() > 0.5
    for _ in range(300):
        agent.observe(Transition(seen, rng.dirichlet(np.ones(4)), 1.0, seen))
        agent.update()
    assert np.abs(agent.act(seen) - expected_K).sum() < 0.05

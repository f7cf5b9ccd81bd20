"""The agents learn: regret on a small mixing bandit with a known best mixture.
`benchmarks/agents.py` has the full figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.agents.base import Observation, Transition
from cuvee.agents.cql import CQL, CQLSettings
from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.sac import SAC, SACSettings

BEST = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
STATE = Observation(np.zeros((5, 1), np.float32), np.zeros(1, np.float32))
SHAPE = Shape(5, 1, 1)
COMMON: dict[str, Any] = {"actor_lr": 1e-3, "architecture": Architecture(hidden=32)}


def loss(action_K: np.ndarray) -> float:
    """χ²(α, α*): 0 at the best mixture, 0.83 for uniform."""
    return float((action_K**2 / BEST).sum() - 1)


UNIFORM = loss(np.full(5, 0.2))


def regret_after(agent: Any, steps: int, sign: float = 1.0) -> float:
    rng = np.random.default_rng(0)
    for _ in range(steps):
        action_K = agent.act(STATE, explore=True)
        reward = sign * (-loss(action_K) + 0.1 * UNIFORM * rng.normal())
        agent.observe(Transition(STATE, action_K, reward, STATE))
        agent.update()
    return loss(agent.act(STATE)) / UNIFORM


@pytest.mark.training
@pytest.mark.parametrize("kind", ["ddpg", "sac"])
def test_an_agent_finds_the_best_mixture_from_noisy_rewards(kind: str) -> None:
    agent = (
        DDPG(SHAPE, DDPGSettings(**COMMON))
        if kind == "ddpg"
        else SAC(SHAPE, SACSettings(**COMMON, std=0.5))
    )
    assert regret_after(agent, 700) < 0.05


@pytest.mark.training
def test_the_figure_notices_a_reward_of_the_wrong_sign() -> None:
    assert regret_after(DDPG(SHAPE, DDPGSettings(**COMMON)), 300, sign=-1.0) > 1.0


@pytest.mark.training
@pytest.mark.parametrize("reference", ["proposals", "entropy"])
def test_cql_beats_the_data_it_learns_from(reference: Any) -> None:
    """Logged mixtures scatter around the middle of uniform and the best; the policy beats them."""
    rng = np.random.default_rng(0)
    settings = CQLSettings(**COMMON, discount=0.5, cql_alpha=0.1, draws=4, reference=reference)
    agent = CQL(SHAPE, settings)
    data = rng.dirichlet(30 * (0.5 * BEST + 0.1), size=600)
    for action_K in data:
        reward = -loss(action_K) + 0.1 * UNIFORM * rng.normal()
        agent.observe(Transition(STATE, action_K, reward, STATE, truncated=True))
    for _ in range(50):
        agent.clone()
    for _ in range(500):
        agent.update()
    ours, cloned = loss(agent.act(STATE)), loss(data.mean(0))
    assert ours < 0.6 * cloned

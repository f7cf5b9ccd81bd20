"""An optimum that changes within a run: domain 0 pays in the first half, domain 1 in the second.

An agent that values the present mixture as if it were played for ever earns half of the best return.
Two seeds of each agent run here. Five are in `benchmarks/agents.py`:
`--tasks halves-ddpg halves-sac --seeds 5`, where each must earn at least 0.95.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.agents.base import Observation, Transition
from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.sac import SAC, SACSettings

K, T, NOISE = 3, 20, 0.2
COMMON: dict[str, Any] = {
    "discount": 0.95,
    "tau": 0.01,
    "actor_lr": 1e-3,
    "critic_lr": 2e-3,
    "learning_starts": 50,
    "ema_rate": 0.01,
}


def observation_at(t: int) -> Observation:
    return Observation(np.eye(K, dtype=np.float32), np.array([2 * t / T - 1], np.float32))


def pays(t: int) -> int:
    return int(2 * t >= T)


def make(kind: str, architecture: Architecture, seed: int) -> Any:
    shape = Shape(K, K, 1, vector=True)
    if kind == "ddpg":
        return DDPG(shape, DDPGSettings(**COMMON, noise=0.3, architecture=architecture), seed)
    return SAC(shape, SACSettings(**COMMON, std=0.15, architecture=architecture), seed)


def earned(agent: Any, steps: int, seed: int) -> float:
    """Share of the best return that the agent's mixtures earn after `steps` noisy intervals."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        t = step % T
        action_K = agent.act(observation_at(t), explore=True)
        reward_K = np.eye(K)[pays(t)] + NOISE * rng.normal(size=K)
        agent.observe(
            Transition(
                observation_at(t), action_K, reward_K, observation_at(t + 1), terminated=t == T - 1
            )
        )
        agent.update()
    return float(np.mean([agent.act(observation_at(t))[pays(t)] for t in range(T)]))


@pytest.mark.training
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["ddpg", "sac"])
def test_the_return_follows_what_pays_now(kind: str, seed: int) -> None:
    agent = make(kind, Architecture(hidden=32, layers=1), seed)
    assert earned(agent, 2_000, seed) >= 0.95

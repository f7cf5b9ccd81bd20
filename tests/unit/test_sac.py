"""SAC on the simplex: its target entropy, the policy that its network gives, and its
temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cuvee.agents.learning import pessimistic_value
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.sac import SAC, SACSettings, simplex_policy, target_entropy
from cuvee.agents.simplex import Dirichlet, LogisticNormal
from cuvee.testing.agent import AgentSuite

SMALL = SACSettings(learning_starts=16, batch_size=16, architecture=Architecture(hidden=8))


@pytest.mark.parametrize("K", [2, 5, 52])
def test_target_entropy_is_that_of_a_policy_with_the_asked_spread(K: int) -> None:
    policy = LogisticNormal(torch.randn(K), torch.full((K,), 0.3))
    assert float(policy.log_ratio_entropy()) == pytest.approx(target_entropy(K, 0.3), abs=1e-3)


@pytest.mark.parametrize("K", [5, 52])
def test_a_new_policy_varies_each_weight_by_the_asked_spread(K: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for kind in ("logistic-normal", "dirichlet"):
        policy = simplex_policy(torch.zeros(K, 2), SACSettings(policy=kind, std=0.2))
        log_w = policy.sample(generator, (4000,)).log_weights
        centred = log_w - log_w.mean(-1, keepdim=True)
        assert float(centred.std(0).mean()) == pytest.approx(0.2 * math.sqrt(1 - 1 / K), rel=0.1)


def test_the_policy_is_of_the_asked_kind() -> None:
    out = torch.zeros(4, 2)
    assert isinstance(simplex_policy(out, SACSettings()), LogisticNormal)
    assert isinstance(simplex_policy(out, SACSettings(policy="dirichlet")), Dirichlet)


def test_the_lower_twin_value_is_used_for_each_mixture() -> None:
    values = torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [4.0]])
    assert pessimistic_value(values, torch.full((2, 3), 1 / 3)).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("std", [0.1, 0.6])
def test_the_temperature_rises_when_entropy_is_short_and_falls_when_there_is_too_much(
    std: float,
) -> None:
    agent, rng = SAC(Shape(4, 3, 2), SMALL), np.random.default_rng(0)
    for _ in range(16):
        agent.observe(AgentSuite().transition(rng))
    agent.target_entropy = target_entropy(4, std)  # the policy starts at a std of 0.3
    before = agent.temperature.net.log.item()
    agent.update()
    assert (agent.temperature.net.log.item() > before) == (std > 0.3)

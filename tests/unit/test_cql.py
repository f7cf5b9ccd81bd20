"""CQL on the simplex against a toy computed by hand, and the effects of its two extra terms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cuvee.agents.base import Observation, Transition
from cuvee.agents.cql import CQL, CQLSettings, GradientRatio, log_mean_exp
from cuvee.agents.learning import RewardScale
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.simplex import flat_log_density

K = 3
SMALL: dict[str, Any] = {
    "learning_starts": 8,
    "batch_size": 16,
    "architecture": Architecture(hidden=16),
}
STATE = Observation(np.ones((K, 1), np.float32), np.zeros(1, np.float32))


class LinearTwins(nn.Module):
    """Q_j(s, α) = w_j · α, whatever the state: everything about it can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]))

    def encode(self, domains: Tensor, _globals: Tensor) -> Tensor:
        return domains

    def values(self, _encoded: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        return tuple((action @ weight)[..., None] for weight in self.weights)


def agent_with(data: np.ndarray, rewards: np.ndarray | None = None, **settings: Any) -> CQL:
    agent = CQL(Shape(K, 1, 1), CQLSettings(**{**SMALL, **settings}), seed=0)
    rewards = np.zeros(len(data)) if rewards is None else rewards
    for action_K, reward in zip(data, rewards, strict=True):
        assert (
            agent.observe(Transition(STATE, action_K, float(reward), STATE, truncated=True)) is None
        )
    return agent


DATA = np.random.default_rng(0).dirichlet(np.ones(K) * 5, size=64)


@pytest.mark.parametrize("reference", ["entropy", "proposals"])
def test_the_conservative_term_of_a_linear_critic_by_hand(reference: Any) -> None:
    agent = agent_with(DATA, reference=reference, draws=4)
    agent.critic.net = LinearTwins()
    batch = agent.buffer.take(np.arange(2))
    state = agent.generator.get_state()
    loss, report = agent.conservative_loss(batch)
    agent.generator.set_state(state)
    proposals, density = agent._proposals(batch)
    assert (
        density[:4].unique().item()
        == pytest.approx(flat_log_density(K))
        == pytest.approx(math.log(2))
    )

    expected = 0.0
    for weight in agent.critic.net.weights.tolist():
        for b in range(2):
            summed = 0.0
            for n in range(12):
                q = sum(w * a for w, a in zip(weight, proposals[n, b].tolist(), strict=True))
                summed += math.exp(q) / (
                    math.exp(density[n, b].item()) if reference == "entropy" else 1.0
                )
            data = sum(w * a for w, a in zip(weight, batch.action_BK[b].tolist(), strict=True))
            expected += (math.log(summed / 12) - data) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert 0 < report["policy_share"] < 1


def test_the_flat_part_estimates_the_integral_over_the_simplex() -> None:
    """For Q = w·α with one non-zero entry c, ∫ exp Q dα over K = 3 is (e^c − 1 − c) / c²."""
    agent = agent_with(
        DATA, draws=60_000, std=1.2
    )  # wide, so that the policy's draws cover the simplex too
    agent.critic.net = LinearTwins()
    with torch.no_grad():
        agent.critic.net.weights.copy_(torch.tensor([[2.0, 0, 0], [2.0, 0, 0]]))
    proposals, density = agent._proposals(agent.buffer.take(np.arange(1)))
    exact = math.log((math.exp(2) - 3) / 4)
    for part in (slice(0, 60_000), slice(60_000, 120_000)):  # the flat draws, and the policy's
        scores = agent.critic.net.values(None, proposals[part])[0][..., 0] - density[part]
        assert log_mean_exp(scores).item() == pytest.approx(exact, abs=0.03)


def test_the_whole_critic_loss_is_sac_plus_the_weighted_term() -> None:
    plain, cautious = (agent_with(DATA, cql_alpha=weight, draws=4) for weight in (0.0, 2.0))
    batch = plain.buffer.take(np.arange(16))
    base = plain.critic_loss(batch, RewardScale(), 0.1)
    total = cautious.critic_loss(batch, RewardScale(), 0.1)
    gap = cautious._report["conservative_gap"]
    assert total.item() == pytest.approx(base.item() + 2.0 * gap, abs=1e-5)


def test_cloning_brings_the_policy_to_the_data_zero_weights_included() -> None:
    target = np.array([0.7, 0.3, 0.0])
    agent = agent_with(np.tile(target, (32, 1)), actor_lr=3e-2)
    losses = [agent.clone()["clone_loss"] for _ in range(150)]
    assert losses[-1] < 0.02 < losses[0]
    np.testing.assert_allclose(agent.act(STATE), target, atol=0.02)


def test_cloning_waits_for_data() -> None:
    assert agent_with(DATA[:4]).clone() == {}


def test_conservatism_lowers_what_is_promised_outside_the_data() -> None:
    """The data lie near one mixture. With the conservative term, a distant mixture must have a
    lower value than the data, although the reward is the same."""
    near = np.random.default_rng(0).dirichlet(np.array([20.0, 5.0, 5.0]), size=64)
    agent = agent_with(
        near, rewards=np.random.default_rng(1).normal(size=64), cql_alpha=5.0, draws=8
    )
    for _ in range(60):
        metrics = agent.update()
    state = torch.ones(1, K, 1), torch.zeros(1, 1)
    encoded = agent.critic.net.encode(*state)
    inside, outside = (
        torch.stack(agent.critic.net.values(encoded, torch.tensor([mixture]))).mean()
        for mixture in ([0.66, 0.17, 0.17], [0.05, 0.05, 0.9])
    )
    assert inside > outside
    assert metrics["conservative_gap"] < 0


def test_the_weight_follows_the_gradients_until_their_ratio_is_the_wanted_one() -> None:
    """The gradients of the losses are 6 w and 2, so the weight for a ratio of 0.1 is 0.3 w."""
    w = torch.tensor([1.0], requires_grad=True)
    balance = GradientRatio(0.1)
    assert balance.weight == balance.achieved == 0.0
    assert balance.of(3 * w.square().sum(), 2 * w.sum(), [w]) == pytest.approx(0.3)
    with torch.no_grad():
        w *= 10
    for _ in range(60):
        found = balance.of(3 * w.square().sum(), 2 * w.sum(), [w])
    assert found == pytest.approx(3.0, rel=0.01)
    again = GradientRatio(0.1)
    again.load_state_dict(balance.state_dict())
    assert (again.weight, again.achieved) == (balance.weight, balance.achieved)
    assert balance.achieved < 0.1, "the weight was too small while it rose"


def test_a_ratio_of_nothing_and_a_loss_without_gradient_weigh_nothing() -> None:
    w = torch.ones(1, requires_grad=True)
    assert GradientRatio(0.0).of(w.sum(), w.sum(), [w]) == 0.0
    balance = GradientRatio(0.1)
    assert balance.of(w.sum(), 0 * w.sum(), [w]) == 0.0
    assert balance.achieved == 0.0

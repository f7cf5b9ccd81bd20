"""The grid Transformer's sizes, its presets at any K, and a critic that separates mixtures."""

from __future__ import annotations

import pytest
import torch

from cuvee.agents.history import PRESETS, HistoryActor, HistoryArchitecture, HistoryCritic
from cuvee.agents.learning import seeded
from cuvee.core.errors import PolicyError
from cuvee.policies.history.features import HISTORY_FEATURES, HISTORY_GLOBALS

F, G = len(HISTORY_FEATURES), len(HISTORY_GLOBALS)


@pytest.mark.parametrize(("preset", "expected"), [("small", 56_101), ("full", 2_172_549)])
def test_parameters_of_actor_and_twin_critics_together(preset: str, expected: int) -> None:
    nets = HistoryActor(F, G, PRESETS[preset]), HistoryCritic(F, G, PRESETS[preset])
    assert sum(parameter.numel() for net in nets for parameter in net.parameters()) == expected


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("K", [2, 12, 52, 104])
def test_one_network_serves_any_number_of_domains(preset: str, K: int) -> None:
    actor, critic = seeded(
        0, lambda: (HistoryActor(F, G, PRESETS[preset]), HistoryCritic(F, G, PRESETS[preset]))
    )
    with torch.no_grad():
        domains, globals_ = torch.randn(1, 3, K, F), torch.randn(1, 3, G)
        assert actor(domains, globals_).shape == (1, 3, K)
        tokens = critic.encode(domains, globals_)
        assert [
            value.shape for value in critic.values(tokens, torch.full((7, 1, 3, K), 1 / K))
        ] == [(7, 1, 3)] * 2
        policy = actor.policy(domains, globals_)
        draw = policy.sample(torch.Generator().manual_seed(0), (5,))
        assert draw.log_prob.shape == (5, 1, 3)
        assert torch.equal(policy.logits, actor(domains, globals_))
        assert policy.std.flatten()[0] == pytest.approx(0.3, rel=0.2)


def test_an_untrained_actor_goes_half_way_from_what_is_in_force_to_the_reference() -> None:
    actor = seeded(0, lambda: HistoryActor(F, G, PRESETS["small"]))
    domains = torch.randn(1, 1, 6, F).clamp(-3, 3)
    with torch.no_grad():
        logits = actor(domains, torch.randn(1, 1, G))
    assert torch.allclose(logits, domains[..., 0] + domains[..., 1], atol=0.3)


@pytest.mark.parametrize("K", [2, 52])
def test_the_critic_learns_which_mixture_is_better(K: int) -> None:
    """The value of a mixture is the inner product of its weights with each domain's first
    feature."""
    generator = torch.Generator().manual_seed(K)
    architecture = HistoryArchitecture(hidden=16, layers=1, heads=1, action=8)
    critic = seeded(0, lambda: HistoryCritic(F, G, architecture))
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-2)
    globals_ = torch.zeros(8, 1, G)

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        domains = torch.randn(8, 1, K, F, generator=generator)
        actions = torch.randn(16, 8, 1, K, generator=generator).softmax(-1)
        return domains, actions, (actions * domains[..., 0]).sum(-1) * K**0.5

    for _ in range(300):
        domains, actions, worth = batch()
        values = critic.values(critic.encode(domains, globals_), actions)
        loss = sum(((value - worth) ** 2).mean() for value in values)
        optimizer.zero_grad()
        torch.as_tensor(loss).backward()
        optimizer.step()
    domains, actions, worth = batch()
    with torch.no_grad():
        for value in critic.values(critic.encode(domains, globals_), actions):
            assert float(((value - worth) ** 2).mean() / worth.var()) < 0.1


def test_a_bad_architecture_is_named() -> None:
    with pytest.raises(PolicyError, match="hidden 30, layers 2, heads 4"):
        HistoryArchitecture(hidden=30, heads=4)
    with pytest.raises(PolicyError, match="window 0"):
        HistoryArchitecture(window=0)

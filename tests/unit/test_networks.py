"""Actors and critics: shapes, starting points, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from cuvee.agents.actor_critic import Twin, action_channels, bounded, build_actor, build_critic
from cuvee.agents.learning import seeded
from cuvee.agents.networks import Architecture, Shape
from cuvee.core.errors import PolicyError

ARCHITECTURES = [
    Architecture("mlp", hidden=8),
    Architecture("transformer", hidden=8, layers=1, heads=2),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
@pytest.mark.parametrize("vector", [False, True])
def test_many_mixtures_are_valued_against_one_encoded_state(
    architecture: Architecture, vector: bool
) -> None:
    critic = seeded(0, lambda: build_critic(Shape(4, 3, 2, vector), architecture))
    generator = torch.Generator().manual_seed(0)
    domains, globals_ = (
        torch.randn(5, 4, 3, generator=generator),
        torch.randn(5, 2, generator=generator),
    )
    actions = torch.rand(6, 5, 4, generator=generator).softmax(-1)
    encoded = critic.encode(domains, globals_)
    together = critic.value(encoded, actions)
    assert together.shape == (6, 5, 5 if vector else 1)
    for draw in range(6):
        torch.testing.assert_close(together[draw], critic.value(encoded, actions[draw]))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
def test_policies_start_near_uniform(architecture: Architecture) -> None:
    actor = seeded(0, lambda: build_actor(Shape(4, 3, 2), architecture, 1))
    weights = actor(torch.randn(9, 4, 3), torch.randn(9, 2))[..., 0].softmax(-1)
    assert (weights - 0.25).abs().max() < 0.02


def test_an_mlp_names_the_number_of_domains_it_was_built_for() -> None:
    actor = build_actor(Shape(4, 3, 2), Architecture("mlp", hidden=8), 1)
    with pytest.raises(PolicyError, match="built for 4 domains, got 5"):
        actor(torch.zeros(5, 3), torch.zeros(2))


def test_architectures_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(PolicyError, match="rnn"):
        Architecture("rnn")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="heads"):
        Architecture("transformer", hidden=10, heads=4)


def test_twins_differ() -> None:
    twin = seeded(0, lambda: Twin(Shape(4, 3, 2), Architecture("mlp", hidden=8)))
    state = torch.randn(3, 4, 3), torch.randn(3, 2)
    first, second = twin.values(twin.encode(*state), torch.full((3, 4), 0.25))
    assert (first - second).abs().max() > 0


def test_action_channels_are_of_order_one_at_any_number_of_domains() -> None:
    for K in (2, 50, 1000):
        channels = action_channels(torch.full((K,), 1 / K))
        assert channels.abs().max() < 1e-5
        assert float(
            action_channels(torch.tensor([2 / K] + [0.0] * (K - 1)))[0, 0]
        ) == pytest.approx(1)


def test_logits_are_bounded_and_nearly_unchanged_when_small() -> None:
    assert float(bounded(torch.tensor(1e6))) == pytest.approx(8)
    assert float(bounded(torch.tensor(0.5))) == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
def test_an_untrained_actor_plays_its_reference(architecture: Architecture) -> None:
    shape, reference_K = Shape(4, 3, 2, reference=1), torch.tensor([0.0, -2.3, 0.0, 0.5])
    domains_BKF = torch.randn(5, 4, 3)
    domains_BKF[..., 1] = reference_K
    actor = seeded(0, lambda: build_actor(shape, architecture, 2))
    weights = actor(domains_BKF, torch.randn(5, 2))[..., 0].softmax(-1)
    assert (weights - reference_K.softmax(-1)).abs().max() < 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
def test_the_scale_says_how_far_an_actor_may_leave_its_reference(
    architecture: Architecture,
) -> None:
    actor = seeded(0, lambda: build_actor(Shape(4, 3, 2, reference=1, scale=2), architecture, 2))
    for parameter in actor.parameters():
        parameter.data.mul_(5.0)
    domains_BKF = torch.randn(5, 4, 3)
    globals_BG = torch.randn(5, 2)
    domains_BKF[..., 2] = torch.tensor([0.0, 0.5, 1.0, 0.0])
    residual_BK = actor(domains_BKF, globals_BG)[..., 0] - domains_BKF[..., 1]
    assert (residual_BK[:, [0, 3]] == 0).all()
    assert (residual_BK[:, [1, 2]] != 0).all()
    assert (residual_BK[:, 1].abs() <= 4.0).all()

"""Projections, densities and entropies on the simplex against known answers and integration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cuvee.agents.simplex import (
    Dirichlet,
    LogisticNormal,
    SimplexPolicy,
    flat_log_density,
    log_weights,
    project,
    sample_flat,
)
from cuvee.core.errors import MixtureError

GRID = 250


def triangle() -> tuple[Tensor, float]:
    """Midpoints (N, 3) of a fine grid over the simplex at K = 3, and the area (dα₁ dα₂) of each
    cell."""
    middle = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    first, second = torch.meshgrid(middle, middle, indexing="ij")
    inside = first + second < 1 - 1e-9
    points = torch.stack([first, second, 1 - first - second], -1)[inside]
    return points, 1 / GRID**2


POLICIES = [
    pytest.param(Dirichlet(torch.tensor([2.5, 3.2, 4.0], dtype=torch.float64)), id="dirichlet"),
    pytest.param(
        LogisticNormal(
            torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64),
            torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64),
        ),
        id="logistic-normal",
    ),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_density_integrates_to_one_and_gives_the_entropy(
    policy: Dirichlet | LogisticNormal,
) -> None:
    points, area = triangle()
    log_p = policy.log_prob(points.log())
    assert float(log_p.exp().sum() * area) == pytest.approx(1, abs=2e-3)
    integral = -float((log_p * log_p.exp()).sum() * area)
    if isinstance(policy, Dirichlet):
        assert float(policy.entropy()) == pytest.approx(integral, abs=5e-3)
    else:
        generator = torch.Generator().manual_seed(0)
        assert float(policy.entropy(generator, 40_000)) == pytest.approx(integral, abs=2e-2)
        over_ratios = -float((((log_p + points.log().sum(-1)) * log_p.exp()).sum()) * area)
        assert float(policy.log_ratio_entropy()) == pytest.approx(over_ratios, abs=5e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_samples_follow_the_density(policy: SimplexPolicy) -> None:
    points, area = triangle()
    p = policy.log_prob(points.log()).exp() * area
    draw = policy.sample(torch.Generator().manual_seed(1), (40_000,))
    mean = (p[:, None] * points).sum(0)
    assert torch.allclose(draw.weights.mean(0), mean, atol=4e-3)
    assert torch.allclose(
        draw.weights.var(0), (p[:, None] * (points - mean).square()).sum(0), atol=2e-3
    )
    assert torch.allclose(draw.log_prob, policy.log_prob(draw.log_weights))


def test_dirichlet_agrees_with_torch() -> None:
    concentration = torch.tensor([[0.4, 1.0, 7.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    reference = torch.distributions.Dirichlet(concentration)
    points = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)
    assert torch.allclose(
        Dirichlet(concentration).log_prob(points.log()), reference.log_prob(points)
    )
    assert torch.allclose(Dirichlet(concentration).entropy(), reference.entropy())


def test_flat_density_is_that_of_the_flat_dirichlet() -> None:
    for K in (2, 5, 1000):
        flat = Dirichlet(torch.ones(K, dtype=torch.float64))
        point = torch.full((K,), 1 / K, dtype=torch.float64)
        assert float(flat.log_prob(point.log())) == pytest.approx(flat_log_density(K))
    draws = sample_flat((20_000, 3), torch.Generator().manual_seed(0))
    assert torch.allclose(draws.mean(0), torch.full((3,), 1 / 3), atol=5e-3)
    assert torch.allclose(draws.var(0), torch.full((3,), 2 / 36), atol=2e-3)


@pytest.mark.parametrize("K", [2, 1000])
def test_densities_are_finite_where_weights_are_zero_or_tiny(K: int) -> None:
    generator = torch.Generator().manual_seed(0)
    one_hot = torch.zeros(K)
    one_hot[0] = 1.0
    sharp = Dirichlet(torch.full((K,), 1e-3, requires_grad=True))
    wide = LogisticNormal(torch.linspace(-8, 8, K).requires_grad_(), torch.full((K,), 1.5))
    policies: tuple[SimplexPolicy, ...] = (sharp, wide)
    for policy in policies:
        assert torch.isfinite(policy.log_prob(log_weights(one_hot)))
        draw = policy.sample(generator, (8,))
        assert torch.isfinite(draw.log_prob).all()
        assert torch.allclose(draw.weights.sum(-1), torch.ones(8), atol=1e-4)
        gradient = torch.autograd.grad(draw.log_prob.sum(), [policy[0]])[0]  # type: ignore[index]
        assert torch.isfinite(gradient).all()


def test_sampling_is_reparametrised() -> None:
    """The gradient of E[α₀] through samples is the gradient of the mean."""
    concentration = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
    policy = Dirichlet(concentration)
    draw = policy.sample(torch.Generator().manual_seed(0), (40_000,))
    through_samples = torch.autograd.grad(draw.weights[:, 0].mean(), [concentration])[0]
    exact = torch.autograd.grad(policy.centre[0], [concentration])[0]
    assert torch.allclose(through_samples, exact, atol=2e-3)


def test_projection_of_known_points() -> None:
    assert project(torch.tensor([2.0, 0.0, 0.0])).tolist() == [1.0, 0.0, 0.0]
    assert project(torch.zeros(4)).tolist() == [0.25] * 4
    inside = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert torch.allclose(project(inside), inside, atol=1e-15)
    capped = project(torch.tensor([0.0, 9.0], dtype=torch.float64), 0.0, torch.tensor([0.7, 0.4]))
    assert torch.allclose(capped, torch.tensor([0.6, 0.4], dtype=torch.float64), atol=1e-7)
    assert project(torch.tensor([5.0])).tolist() == [1.0]


def test_limits_that_leave_no_mixture_are_refused() -> None:
    with pytest.raises(MixtureError, match="floors"):
        project(torch.zeros(4), floor=0.3)
    with pytest.raises(MixtureError, match="caps"):
        project(torch.zeros(4), cap=0.2)
    with pytest.raises(MixtureError, match="finite"):
        project(torch.tensor([0.0, math.nan]))

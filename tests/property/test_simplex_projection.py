"""The projection is the nearest mixture within the limits, for any vector, any limits and any K."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cuvee.agents.simplex import project

SIZES = st.integers(1, 60)
VECTORS = SIZES.flatmap(lambda K: arrays(np.float64, (3, K), elements=st.floats(-100, 100)))


@settings(max_examples=60, deadline=None)
@given(VECTORS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_nearest_point_within_the_limits(x: np.ndarray, low: float, high: float, seed: int) -> None:
    rng, K = np.random.default_rng(seed), x.shape[1]
    floor_K = low * rng.dirichlet(np.ones(K))
    cap_K = np.minimum(floor_K + (1 - floor_K.sum()) * (high + rng.uniform(0, 1, K)), 1.0)
    if cap_K.sum() < 1:
        cap_K = np.ones(K)
    nearest = project(
        torch.from_numpy(x), torch.from_numpy(floor_K), torch.from_numpy(cap_K)
    ).numpy()
    assert np.abs(nearest.sum(1) - 1).max() < 1e-9
    assert (nearest >= floor_K - 1e-12).all()
    assert (nearest <= cap_K + 1e-12).all()
    # Optimality: weight can only move from a domain above its floor to a domain below its cap, and
    # no such move brings the answer nearer to x.
    residual = x - nearest
    for row in range(3):
        giving, taking = nearest[row] > floor_K + 1e-9, nearest[row] < cap_K - 1e-9
        if giving.any() and taking.any():
            assert residual[row][taking].max() <= residual[row][giving].min() + 1e-7


@settings(max_examples=30, deadline=None)
@given(VECTORS)
def test_projecting_twice_changes_nothing(x: np.ndarray) -> None:
    once = project(torch.from_numpy(x))
    assert torch.allclose(project(once), once, atol=1e-12)


def test_at_a_thousand_domains_in_float32() -> None:
    x = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0))
    nearest = project(x, floor=1e-4, cap=0.01)
    assert (nearest.double().sum(-1) - 1).abs().max() < 1e-5
    assert nearest.min() >= 1e-4
    assert nearest.max() <= 0.01

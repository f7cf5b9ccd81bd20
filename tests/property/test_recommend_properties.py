"""For any bounds and phases, paths are mixtures that keep floors and caps, and lengths convert
both ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.recommend.choose import Bounds
from cuvee.recommend.table import in_phases
from cuvee.recommend.tokens import to_samples, to_tokens


@given(
    st.integers(0, 2**32), st.integers(2, 8), st.integers(1, 3), st.floats(0, 0.9), st.floats(0, 1)
)
def test_paths_within_bounds_keep_them(
    seed: int, domains: int, phases: int, low: float, slack: float
) -> None:
    rng = np.random.default_rng(seed)
    names = tuple(f"d{k}" for k in range(domains))
    floors = rng.dirichlet(np.ones(domains)) * low
    caps = np.minimum(1.0, floors + rng.dirichlet(np.ones(domains)) * (1 + slack))
    given_caps = dict(zip(names, caps.tolist(), strict=True))
    given_floors = dict(zip(names, floors.tolist(), strict=True))
    if caps.sum() < 1 - 1e-9:  # caps that sum to 1 may miss it by a rounding error
        with pytest.raises(ConfigError):
            Bounds.of(names, caps=given_caps, floors=given_floors)
        return
    bounds = Bounds.of(names, caps=given_caps, floors=given_floors)
    shares = rng.dirichlet(np.ones(phases))
    paths = rng.dirichlet(np.full(domains, 0.3), (20, phases))
    within = bounds.within(paths, shares)
    assert np.abs(within.sum(axis=2) - 1.0).max() < 1e-6
    assert (within >= floors - 1e-9).all()
    assert (np.einsum("mpk,p->mk", within, shares) <= caps + 1e-6).all()


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 3))
def test_phases_keep_the_exposure(seed: int, intervals: int, phases: int) -> None:
    path = np.random.default_rng(seed).dirichlet(np.ones(4), intervals)
    assert in_phases(path, phases).mean(axis=0) == pytest.approx(path.mean(axis=0))


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1, 1e5)), min_size=1, max_size=9))
def test_lengths_convert_and_back(rows: list[tuple[float, float]]) -> None:
    names = [f"d{k}" for k in range(len(rows))]
    tokens = Mixture.normalise(names, [share for share, _ in rows])
    lengths = {name: length for name, (_, length) in zip(names, rows, strict=True)}
    back = to_tokens(to_samples(tokens, lengths), lengths)
    assert back.weights_K == pytest.approx(tokens.weights_K)

"""The prior draws mixtures, and the cap keeps them within it, for any sizes of the domains."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.domain import Domain
from cuvee.methods.regmix.method import capped, draw

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=12)


@given(SIZES, st.integers(0, 2**32))
def test_draws_are_mixtures(sizes: list[int], seed: int) -> None:
    drawn = draw(
        tuple(Domain(f"d{k}", size) for k, size in enumerate(sizes)),
        20,
        np.random.default_rng(seed),
    )
    assert drawn.shape == (20, len(sizes))
    assert (drawn >= 0).all()
    assert np.abs(drawn.sum(axis=1) - 1.0).max() < 1e-9


@given(SIZES, st.integers(0, 2**32), st.floats(1.0, 50.0))
def test_capped_mixtures_hold_the_cap_and_are_mixtures(
    sizes: list[int], seed: int, slack: float
) -> None:
    """Ceilings in proportion to sizes that sum to `slack`: four epochs of a corpus over a
    target run of 4/slack epochs."""
    domains = tuple(Domain(f"d{k}", size) for k, size in enumerate(sizes))
    shares = np.array(sizes) / sum(sizes)
    ceilings = np.minimum(1.0, slack * shares)
    drawn = draw(domains, 20, np.random.default_rng(seed))
    within = capped(drawn, ceilings, shares)
    assert (within >= 0).all()
    assert (within <= ceilings * (1 + 1e-9)).all()
    assert np.abs(within.sum(axis=1) - 1.0).max() < 1e-6
    untouched = (drawn <= ceilings * (1 - 1e-9)).all(axis=1)
    assert np.abs(within[untouched] - drawn[untouched]).max(initial=0.0) < 1e-9

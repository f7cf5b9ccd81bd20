"""Pacing: caps hold and plans are followed, whatever the budgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.policies.pacing import LATE, allocate, fill, paced_shares

budgets = st.lists(st.floats(0.0, 0.6), min_size=1, max_size=6)
powers = st.sampled_from([0.0, 0.3, 1.0, LATE, 10.0])


def spend(
    means: list[float], power: float, intervals: int, most: float, noise: float = 0.0
) -> np.ndarray:
    """(T, K) tokens read by domain in a run of `intervals` intervals of 1 token; the last domain has no cap."""
    rng = np.random.default_rng(0)
    left_K = np.array([*(intervals * mean for mean in means), np.inf])
    reference_K, scarce_K = np.ones(len(left_K)), np.isfinite(left_K)
    read_TK = []
    for t in range(intervals):
        paced_K = paced_shares(left_K, intervals - t, 1.0, t / intervals, power, most)
        share_K = allocate(reference_K, paced_K, scarce_K, most)
        assert (share_K >= 0).all()
        assert share_K.sum() == pytest.approx(1.0)
        read_K = np.minimum(share_K * rng.uniform(1 - noise, 1 + noise, len(share_K)), left_K)
        left_K = left_K - read_K
        read_TK.append(read_K)
    return np.array(read_TK)


@given(
    budgets, powers, st.integers(2, 60), st.sampled_from([0.5, 0.9]), st.sampled_from([0.0, 0.4])
)
@settings(max_examples=200, deadline=None)
def test_no_budget_is_used_up_before_the_last_interval(
    means: list[float], power: float, intervals: int, most: float, noise: float
) -> None:
    read_TK = spend(means, power, intervals, most, noise)[:, :-1]
    budget_K = intervals * np.array(means)
    left_K = budget_K - read_TK[:-1].sum(axis=0)
    assert (left_K[budget_K > 1e-9] > 0).all()


@given(budgets, powers, st.integers(2, 60), st.sampled_from([0.5, 0.9]))
@settings(max_examples=200, deadline=None)
def test_what_can_be_spent_is_spent(
    means: list[float], power: float, intervals: int, most: float
) -> None:
    read = float(spend(means, power, intervals, most)[:, :-1].sum())
    assert read == pytest.approx(intervals * min(sum(means), most), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, LATE])
def test_spending_follows_the_plan(power: float) -> None:
    read_T = spend([0.1], power, 100, 0.9)[:, 0]
    spent_T = np.linspace(0.0, 1.0, 101) ** (power + 1.0)
    np.testing.assert_allclose(read_T, 0.1 * 100 * np.diff(spent_T), rtol=1e-9)


def test_what_was_read_too_much_is_corrected_over_the_rest_of_the_run() -> None:
    assert paced_shares(np.array([1.0]), 50.0, 1.0, 0.5, 0.0)[0] == pytest.approx(1 / 50)


@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 1.0)), min_size=1, max_size=8),
    st.floats(0.0, 1.0),
)
def test_filling_keeps_within_ceilings(pairs: list[tuple[float, float]], total: float) -> None:
    weights_K, ceiling_K = np.array(pairs).T
    filled_K = fill(weights_K, ceiling_K, total)
    assert (filled_K <= ceiling_K + 1e-12).all()
    assert filled_K.sum() == pytest.approx(min(total, ceiling_K[weights_K > 0].sum()), abs=1e-9)


def test_a_cap_that_does_not_bind_changes_nothing() -> None:
    reference_K, paced_K = np.array([0.5, 0.3, 0.2]), np.array([np.inf, 2.0, 0.4])
    np.testing.assert_allclose(allocate(reference_K, paced_K, np.zeros(3, dtype=bool)), reference_K)


def test_all_domains_capped_and_none_preferred_end_together() -> None:
    paced_K = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(allocate(np.ones(3), paced_K, np.ones(3, dtype=bool), 0.5), paced_K)

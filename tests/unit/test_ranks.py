"""Rank correlation: known values, ties, intervals."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.evaluation.ranks import rank_correlation


def test_known_values() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 1001]).value == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]).value == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).value == pytest.approx(
        0.8
    )  # 1 − 6·4/(5·24)
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]).value == pytest.approx(
        np.sqrt(0.9)
    )  # ties share rank 1.5


def test_what_never_changes_is_related_to_nothing() -> None:
    constant = rank_correlation([3, 3, 3, 3], [1, 2, 3, 4])
    assert (constant.value, constant.low, constant.high) == (0.0, 0.0, 0.0)


def test_agrees_with_scipy_and_its_interval_holds_the_value() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    first = generator.integers(0, 9, 50)
    second = first + generator.normal(0, 3, 50)
    found = rank_correlation(first, second)
    assert found.value == pytest.approx(spearmanr(first, second).statistic)
    assert found.low < found.value < found.high
    assert (found.runs, found) == (50, rank_correlation(first, second))

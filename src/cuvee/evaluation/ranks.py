"""Rank correlation of two measurements over runs, with a bootstrap interval. Deterministic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ over `runs` runs, with its 95 % interval from `low` to `high`.

    ρ is 0 if either measurement is the same for all runs.
    """

    value: float
    low: float
    high: float
    runs: int


def rank_correlation(
    first: npt.ArrayLike, second: npt.ArrayLike, *, resamples: int = 1000
) -> RankCorrelation:
    """Return Spearman's ρ between two measurements (N,) of the same N ≥ 3 runs.

    The interval is a percentile bootstrap over runs with a fixed seed. It is too narrow if N is
    small, like every percentile bootstrap. Ties get their mean rank.
    """
    first_N, second_N = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    assert first_N.shape == second_N.shape == (len(first_N),), (first_N.shape, second_N.shape)
    assert len(first_N) >= 3, f"rank correlation needs at least 3 runs, got {len(first_N)}"
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = [generator.integers(0, len(first_N), len(first_N)) for _ in range(resamples)]
    low, high = np.quantile(
        [spearman(first_N[rows], second_N[rows]) for rows in drawn], [0.025, 0.975]
    )
    return RankCorrelation(spearman(first_N, second_N), float(low), float(high), len(first_N))


def spearman(first_N: FloatArray, second_N: FloatArray) -> float:
    """Return Spearman's ρ between two measurements (N,), 0 if one of them is constant."""
    first_N, second_N = _ranks(first_N), _ranks(second_N)
    spread = float(np.sqrt((first_N @ first_N) * (second_N @ second_N)))
    return float(first_N @ second_N) / spread if spread > 0 else 0.0


def _ranks(values_N: FloatArray) -> FloatArray:
    """Return centred ranks (N,); equal values get their mean rank."""
    _, which_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks: FloatArray = (np.cumsum(counts) - (counts - 1) / 2)[which_N] - (len(values_N) + 1) / 2
    return ranks

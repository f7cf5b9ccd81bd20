"""Compare runs: paired differences over seeds with a bootstrap interval, and speed to a given loss.

Differences are paired because runs with the same seed share initial weights, data order and
evaluation, so the effect of the seed cancels. Every function is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray

_BATCH = 4_000_000
"""The most resampled values that are in memory at a time."""

Levels = tuple[int, ...]
"""The seeds of a run's parts, if those are crossed: one for each part that varies."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `pairs` paired observations, with its interval at confidence `level`.

    `low` and `high` are None if there is only one pair: one pair supports no claim of a difference.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_difference(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    levels: Mapping[int, Levels] | None = None,
) -> Estimate | None:
    """Return the mean of ours − theirs over the shared seeds, or None if there are none.

    `ours` and `theirs` map seeds to values. The interval is a percentile bootstrap over whole pairs
    (Efron & Tibshirani 1993, §8.3) with a fixed seed. It is too narrow if there are few pairs; use
    at least 5 seeds before claiming a difference. `levels` are given for crossed seeds, by seed.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    return bootstrap_mean(
        [ours[seed] - theirs[seed] for seed in seeds],
        level=level,
        resamples=resamples,
        levels=[levels[seed] for seed in seeds] if levels else None,
    )


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    levels: Sequence[Levels] | None = None,
) -> Estimate:
    """Return the mean of `values` (N,) with its percentile bootstrap interval.

    `levels` are the levels of crossed factors of each value. Values that share a level are not
    independent, so the levels of each factor are resampled instead of the values (the pigeonhole
    bootstrap, Owen 2007).
    """
    values_N = np.asarray(values, dtype=np.float64)
    assert values_N.ndim == 1, values_N.shape
    return bootstrap_means(values_N[None], level=level, resamples=resamples, levels=levels)[0]


def bootstrap_means(
    values_KN: FloatArray,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    levels: Sequence[Levels] | None = None,
) -> list[Estimate]:
    """Return the mean of each of K rows with its interval, as `bootstrap_mean` does for one."""
    count = values_KN.shape[1]
    assert count, "a mean needs at least one value"
    means_K = values_KN.mean(axis=1)
    if count == 1:
        return [Estimate(float(mean), None, None, 1, level) for mean in means_K]
    if levels is not None:
        made_RK = _resampled_levels(values_KN, levels, resamples)
        tails = [(1 - level) / 2, (1 + level) / 2]
        lows_K, highs_K = np.quantile(made_RK, tails, axis=0)
        return [
            Estimate(float(mean), float(low), float(high), count, level)
            for mean, low, high in zip(means_K, lows_K, highs_K, strict=True)
        ]
    from scipy.stats import bootstrap  # takes seconds to import

    interval = bootstrap(
        (values_KN,),
        np.mean,
        axis=1,
        n_resamples=resamples,
        batch=max(1, _BATCH // values_KN.size),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [
        Estimate(float(mean), float(low), float(high), count, level)
        for mean, low, high in zip(means_K, interval.low, interval.high, strict=True)
    ]


def _resampled_levels(
    values_KN: FloatArray, levels: Sequence[Levels], resamples: int
) -> FloatArray:
    """Return (R, K) means, each over levels drawn with replacement for each factor alone."""
    rng = np.random.default_rng(0)
    weights_RN = np.ones((resamples, len(levels)))
    for column in zip(*levels, strict=True):
        names, place_N = np.unique(column, return_inverse=True)
        shares = np.full(len(names), 1 / len(names))
        weights_RN *= rng.multinomial(len(names), shares, size=resamples)[:, place_N]
    weights_RN = weights_RN[weights_RN.sum(axis=1) > 0]  # else drawn where no run is
    means_RK: FloatArray = weights_RN @ values_KN.T / weights_RN.sum(axis=1)[:, None]
    return means_RK


def variance_shares(values: Mapping[tuple[int, ...], float]) -> tuple[FloatArray, float] | None:
    """Return how much of the variance each of F crossed factors explains, and its square root.

    `values` has one value for each combination of levels, a tuple of F levels. The result is
    (F + 1,) shares that sum to 1 (the last one is that of combinations of factors), and the standard
    deviation that they divide. None unless every combination is there, F is at least 2 and each
    factor has two levels.

    Variance components of a crossed random-effects design, by mean squares (Searle, Casella and
    McCulloch 1992, §4.3); negative ones count as 0.

    >>> shares, deviation = variance_shares({(0, 0): 1.0, (0, 1): 1.0, (1, 0): 2.0, (1, 1): 2.0})
    >>> shares.tolist()
    [1.0, 0.0, 0.0]
    """
    levels = [sorted(set(column)) for column in zip(*values, strict=True)]
    shape = tuple(map(len, levels))
    if len(shape) < 2 or min(shape) < 2 or len(values) != math.prod(shape):
        return None
    place = [{level: i for i, level in enumerate(column)} for column in levels]
    table = np.empty(shape)
    for combination, value in values.items():
        table[tuple(at[level] for at, level in zip(place, combination, strict=True))] = value
    centred = table - table.mean()
    effects = [
        centred.mean(axis=tuple(other for other in range(len(shape)) if other != axis))
        for axis in range(len(shape))
    ]
    squares_F = np.array([table.size / len(e) * float(e @ e) for e in effects])
    freedom_F = np.array(shape) - 1
    rest = float((centred**2).sum() - squares_F.sum()) / (table.size - 1 - freedom_F.sum())
    parts_F = (squares_F / freedom_F - rest) * np.array(shape) / table.size
    parts = np.append(np.maximum(parts_F, 0.0), max(rest, 0.0))
    total = float(parts.sum())
    return (parts / total if total else parts), math.sqrt(total)


def steps_to_reach(steps: npt.ArrayLike, losses: npt.ArrayLike, goal: float) -> float | None:
    """Return the optimizer step at which a loss curve first reaches `goal`, else None.

    `steps` (T,) is ascending and `losses` (T,) holds the loss at each step; values between them are
    interpolated linearly. Divide the result by the baseline's step for the same goal to get the
    share of the baseline's steps that a run needs.
    """
    steps_T: FloatArray = np.asarray(steps, dtype=np.float64)
    losses_T: FloatArray = np.asarray(losses, dtype=np.float64)
    assert steps_T.shape == losses_T.shape == (len(steps_T),)
    reached = np.flatnonzero(losses_T <= goal)
    if not len(reached):
        return None
    t = int(reached[0])
    if t == 0:
        return float(steps_T[0])
    share = (losses_T[t - 1] - goal) / (losses_T[t - 1] - losses_T[t])
    return float(steps_T[t - 1] + share * (steps_T[t] - steps_T[t - 1]))


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Convert a loss in nats per token to bits per byte, which does not depend on the tokenizer."""
    assert bytes_per_token > 0
    return nats_per_token / math.log(2.0) / bytes_per_token

"""Comparing runs honestly: paired differences over seeds with a bootstrap interval, and how soon a run gets where another ended.

Differences are paired because runs of one seed share model weights, data order and evaluation (METHODS, "Comparing honestly"):
what the seed does to both cancels. Pure numpy; every function is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray


@dataclass(frozen=True)
class Estimate:
    """A mean over `pairs` paired observations with its interval at `level`.

    One pair says nothing of the spread: then `low` and `high` are None, and nobody may claim a difference from it.
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
) -> Estimate | None:
    """Mean of ours − theirs over the seeds that both have, with a percentile bootstrap interval; None if there is none.

    Resamples whole pairs with replacement (Efron & Tibshirani 1993, §8.3), from a generator with a fixed seed. With few
    pairs the interval is too narrow; at least 5 seeds are needed for a claim.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    return bootstrap_mean(
        [ours[seed] - theirs[seed] for seed in seeds], level=level, resamples=resamples
    )


def bootstrap_mean(
    values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """Mean of `values` (N,) with its percentile bootstrap interval."""
    values_N = np.asarray(values, dtype=np.float64)
    assert values_N.ndim == 1, values_N.shape
    assert len(values_N), "a mean needs at least one value"
    if len(values_N) == 1:
        return Estimate(float(values_N[0]), None, None, 1, level)
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = generator.integers(0, len(values_N), size=(resamples, len(values_N)))
    low, high = np.quantile(values_N[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values_N.mean()), float(low), float(high), len(values_N), level)


def steps_to_reach(steps: npt.ArrayLike, losses: npt.ArrayLike, goal: float) -> float | None:
    """The optimizer step at which a loss curve first comes down to `goal`, linear between measurements; None if it never does.

    `steps` (T,) ascending, `losses` (T,) measured at them. Divided by the baseline's step for the same goal, it is the share
    of the baseline's steps that a run needs.
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
    """A loss that does not depend on the tokenizer: nats per token over the bytes that a token stands for, in bits."""
    assert bytes_per_token > 0
    return nats_per_token / math.log(2.0) / bytes_per_token

"""What a paired comparison supports: better, worse, tied or open; and how many seeds would tell.

Several methods against one baseline are several chances to be lucky. Their p-values are corrected
by Holm's procedure (Holm 1979), so the chance of any false claim stays below 5 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.evaluation.statistics import Estimate, Levels, bootstrap_mean, variance_shares

Outcome = Literal["better", "worse", "tied", "open"]
ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 10_000
"""More seeds than this are reported as "more than" this."""


@dataclass(frozen=True)
class Verdict:
    """A paired comparison of losses, ours less theirs, and what it supports.

    - `better` or `worse`: the 95 % interval excludes 0, and so does the corrected test.
    - `tied`: the whole interval is within ± `margin`.
    - `open`: neither. `seeds_needed` says how many paired seeds would decide it with a probability
      of 80 %, if the difference and its spread stay as they are. It takes the most severe level of
      the correction, so it holds whatever the other comparisons show.

    `p_value` is that of a two-sided paired t-test, corrected for the number of comparisons. It is
    None if fewer than two pairs exist.
    """

    difference: Estimate
    outcome: Outcome
    margin: float
    p_value: float | None = None
    seeds_needed: int | None = None
    comparisons: int = 1
    deviation: float | None = None
    """Standard error of the mean times √`seeds`; None if fewer than two pairs exist."""
    seeds: int = 1
    """Independent seeds: the pairs, or the fewest seeds of a part of crossed runs."""


def compare_paired(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    margin: float,
    levels: Mapping[int, Levels] | None = None,
) -> Verdict | None:
    """Compare losses by seed. Returns None if no seed is shared.

    `levels` are the seeds of the parts of a run, by seed, if those are crossed.

    Example:

        compare_paired({0: 4.10, 1: 4.12}, {0: 4.22, 1: 4.25}, margin=0.01).outcome
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    differences_N = np.array([ours[seed] - theirs[seed] for seed in seeds])
    crossed = [levels[seed] for seed in seeds] if levels else None
    spread = _spread(differences_N, crossed)
    mean = float(differences_N.mean())
    found = Verdict(
        bootstrap_mean(differences_N, levels=crossed),
        "open",
        margin,
        _p_value(mean, *spread),
        deviation=spread[0],
        seeds=spread[1],
    )
    return replace(found, outcome=_outcome(found), seeds_needed=_seeds_needed(found))


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts with p-values corrected by Holm's procedure, in the same order.

    Verdicts without a p-value are not counted.
    """
    known = [i for i, verdict in enumerate(verdicts) if verdict.p_value is not None]
    adjusted = _holm([verdicts[i].p_value or 0.0 for i in known])
    result = list(verdicts)
    for i, p_value in zip(known, adjusted, strict=True):
        one = replace(verdicts[i], p_value=p_value, comparisons=len(known))
        result[i] = replace(one, outcome=_outcome(one), seeds_needed=_seeds_needed(one))
    return result


def _outcome(verdict: Verdict) -> Outcome:
    difference, margin = verdict.difference, verdict.margin
    low, high = difference.low, difference.high
    if low is None or high is None or verdict.p_value is None:
        return "open"
    if -margin <= low and high <= margin:
        return "tied"
    if difference.excludes_zero and verdict.p_value <= ALPHA:
        return "better" if difference.mean < 0 else "worse"
    return "open"


def _spread(differences_N: FloatArray, levels: Sequence[Levels] | None) -> tuple[float | None, int]:
    """Return the standard error of the mean times √n, and the number n of independent seeds.

    Of crossed runs, n is the fewest seeds of a part. Their error has the variance that each part
    carries over its seeds, and that of combinations over the runs.
    """
    count = len(differences_N)
    if count < 2:
        return None, count
    plain = float(differences_N.std(ddof=1))
    if levels is None:
        return plain, count
    sizes = [len(set(column)) for column in zip(*levels, strict=True)]
    fewest = min(sizes)
    found = variance_shares(dict(zip(levels, differences_N.tolist(), strict=True)))
    if found is None:  # a combination is missing: as if there were no more than `fewest` runs
        return plain, fewest
    shares, deviation = found
    error = math.sqrt(float((shares / np.array([*sizes, count])).sum())) * deviation
    return error * math.sqrt(fewest), fewest


def _p_value(mean: float, deviation: float | None, seeds: int) -> float | None:
    """Return that of a two-sided t-test with `seeds` − 1 degrees of freedom."""
    if deviation is None or seeds < 2:
        return None
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else 0.0  # without any spread
    from scipy.stats import t  # takes seconds to import

    return float(2 * t.sf(abs(mean) / deviation * math.sqrt(seeds), seeds - 1))


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: step down from the smallest, never decreasing."""
    order = np.argsort(p_values, kind="stable")
    scaled = [(len(p_values) - rank) * p_values[i] for rank, i in enumerate(order)]
    adjusted = np.minimum(1.0, np.maximum.accumulate(scaled)) if scaled else np.zeros(0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return [float(value) for value in result]


def _seeds_needed(verdict: Verdict) -> int | None:
    """Return the paired seeds at which a t-test decides with probability `POWER`.

    It decides for a difference of the observed mean or, where that is within the margin, for a tie.
    None if the spread is unknown, or if neither can be decided.
    """
    mean = abs(verdict.difference.mean)
    distance = max(mean, verdict.margin - mean)
    if verdict.deviation is None or distance <= 0:
        return None
    effect = distance / max(verdict.deviation, 1e-12 * distance)
    counts = range(2, MOST_SEEDS + 1)
    power = partial(_power, effect=effect, level=ALPHA / verdict.comparisons)
    return 2 + bisect_left(counts, POWER, key=power)


def _power(seeds: int, effect: float, level: float) -> float:
    """Return the power of a two-sided one-sample t-test, without rejections on the wrong side."""
    from scipy.stats import nct, t

    critical = float(t.isf(level / 2, seeds - 1))
    shift = effect * math.sqrt(seeds)
    found = float(nct.sf(critical, seeds - 1, shift))
    return found if math.isfinite(found) else float(shift > critical)

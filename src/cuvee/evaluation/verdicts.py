"""What a paired comparison supports: better, worse, tied or open; and how many seeds would tell.

Several methods against one baseline are several chances to be lucky. Their p-values are corrected
by Holm's procedure (Holm 1979), so the chance of any false claim stays below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.evaluation.statistics import Estimate, bootstrap_mean

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
      of 80 %, if the difference and its spread stay as they are.

    `p_value` is that of a two-sided paired t-test, corrected for the number of comparisons. It is
    None if fewer than two pairs exist.
    """

    difference: Estimate
    outcome: Outcome
    margin: float
    p_value: float | None = None
    seeds_needed: int | None = None
    comparisons: int = 1


def compare_paired(
    ours: Mapping[int, float], theirs: Mapping[int, float], margin: float
) -> Verdict | None:
    """Compare losses by seed. Returns None if no seed is shared.

    Example:

        compare_paired({0: 4.10, 1: 4.12}, {0: 4.22, 1: 4.25}, margin=0.01).outcome
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    differences_N = np.array([ours[seed] - theirs[seed] for seed in seeds])
    found = Verdict(bootstrap_mean(differences_N), "open", margin, _p_value(differences_N))
    return replace(
        found, outcome=_outcome(found), seeds_needed=_seeds_needed(differences_N, margin)
    )


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts with p-values corrected by Holm's procedure, in the same order.

    Verdicts without a p-value are not counted.
    """
    known = [i for i, verdict in enumerate(verdicts) if verdict.p_value is not None]
    adjusted = _holm([verdicts[i].p_value or 0.0 for i in known])
    result = list(verdicts)
    for i, p_value in zip(known, adjusted, strict=True):
        one = replace(verdicts[i], p_value=p_value, comparisons=len(known))
        result[i] = replace(one, outcome=_outcome(one))
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


def _p_value(differences_N: FloatArray) -> float | None:
    if len(differences_N) < 2:
        return None
    if np.ptp(differences_N) <= 1e-12 * max(1.0, float(np.abs(differences_N).max())):
        return 1.0 if abs(float(differences_N[0])) <= 1e-12 else 0.0  # without any spread
    from scipy.stats import ttest_1samp  # takes seconds to import

    return float(ttest_1samp(differences_N, 0.0).pvalue)


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: step down from the smallest, never decreasing."""
    order = np.argsort(p_values, kind="stable")
    scaled = [(len(p_values) - rank) * p_values[i] for rank, i in enumerate(order)]
    adjusted = np.minimum(1.0, np.maximum.accumulate(scaled)) if scaled else np.zeros(0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return [float(value) for value in result]


def _seeds_needed(differences_N: FloatArray, margin: float) -> int | None:
    """Return the paired seeds at which a t-test decides with probability `POWER`.

    It decides for a difference of the observed mean or, where that is within the margin, for a tie.
    None if the spread is unknown.
    """
    if len(differences_N) < 2:
        return None
    from scipy.stats import norm

    spread = float(differences_N.std(ddof=1))
    mean = abs(float(differences_N.mean()))
    distance = max(mean, margin - mean)
    if distance <= 0:
        return None
    quantiles = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    # The two more make up for the t distribution's wider tails at few seeds.
    needed = (quantiles * spread / distance) ** 2 + 2
    return min(MOST_SEEDS + 1, math.ceil(float(needed)))

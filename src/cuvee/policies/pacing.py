"""Pacing: how much of a limited budget each domain may spend in the next interval.

A domain with an epoch cap may be read C_k = epochs_k · n_k tokens in the run. L_k of them are left,
and R tokens of the run are to come. A plan says how spending is spread over progress p:

    w(p) ∝ pⁿ       n = 0: the same share all along; n = 4: half of the budget in the last 13 %

What is left of a budget is spent in proportion to what is left of the plan, W(p) = 1 − pⁿ⁺¹. Δ is
the interval's part of the run:

    share_k = L_k / R · (1 − p) / Δ · [W(p) − W(p + Δ)] / W(p)

The share is computed again in every interval from the tokens that were really read. An interval
that read too much or too little is therefore corrected over the rest of the run. No budget is used
up before the last interval, whatever the plan.
"""

from __future__ import annotations

import math

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray

LATE = 4.0
"""The power n of the plan of `late` and `gain`."""


def paced_shares(
    left_K: FloatArray,
    to_come: float,
    interval: float,
    progress: float,
    power: float,
    most: float = 1.0,
) -> FloatArray:
    """Return (K,) the share of the next interval that the plan gives each domain.

    `left_K`, `to_come` and `interval` are in tokens. `left_K` is infinite for a domain without a
    cap, and so is its share. The plan rises less steeply if the shares would otherwise sum to more
    than `most` at the end of the run, because that excess could not be spent. The shares themselves
    may exceed `most`; `allocate` limits them.
    """
    limited_K = np.isfinite(left_K)
    if not limited_K.any() or to_come <= 0.0:
        return np.where(limited_K, 0.0, np.inf)
    mean_K = np.where(limited_K, left_K, 0.0) / to_come
    part = min(interval, to_come) / to_come
    if part >= 1.0 - 1e-9:  # the last interval
        return np.where(limited_K, mean_K, np.inf)
    degree = _feasible(power, float(mean_K.sum()), progress, most) + 1.0  # of the integral of pⁿ
    after = progress + (1.0 - progress) * part
    spent = (after**degree - progress**degree) / (1.0 - progress**degree)
    return np.where(limited_K, mean_K * spent / part, np.inf)


def allocate(
    weights_K: FloatArray, paced_K: FloatArray, scarce_K: BoolArray, most: float = 1.0
) -> FloatArray:
    """Return a mixture (K,) in which each domain of `scarce_K` gets its paced share.

    Together these get at most `most`. The other domains share the rest in proportion to
    `weights_K`, none of them above its own paced share. If all paced shares together leave a part
    of the interval over, all shares are raised by the same factor: the caps cannot hold then.
    """
    paced = scarce_K & np.isfinite(paced_K)
    shares_K = np.where(paced, paced_K, 0.0)
    others_K = np.where(paced, 0.0, weights_K)
    ceiling_K = np.where(others_K > 0, paced_K, 0.0)
    most = most if ceiling_K.any() else 1.0
    shares_K = shares_K * min(1.0, most / max(float(shares_K.sum()), 1e-300))
    mixture_K: FloatArray = shares_K + fill(others_K, ceiling_K, 1.0 - float(shares_K.sum()))
    total = float(mixture_K.sum())
    return mixture_K / total if total > 0 else weights_K / weights_K.sum()


def fill(weights_K: FloatArray, ceiling_K: FloatArray, total: float) -> FloatArray:
    """Return x (K,) in proportion to `weights_K` with x ≤ `ceiling_K` and Σx = `total`.

    Σx is less than `total` if the ceilings do not allow it.
    """
    filled_K = np.zeros_like(weights_K)
    free_K = (weights_K > 0) & (ceiling_K > 0)
    while free_K.any() and total > 1e-15:
        share_K = np.where(free_K, weights_K, 0.0)
        share_K = share_K / share_K.sum() * total
        over_K = free_K & (share_K >= ceiling_K)
        if not over_K.any():
            return np.where(free_K, share_K, filled_K)
        filled_K = np.where(over_K, ceiling_K, filled_K)
        total -= float(ceiling_K[over_K].sum())
        free_K &= ~over_K
    return filled_K


def _feasible(power: float, mean: float, progress: float, most: float) -> float:
    """Return the largest n up to `power` whose share at the end of the run is ≤ `most`.

    That share is mean (1 − p) (n + 1) / (1 − pⁿ⁺¹), which rises with n.
    """

    def last_share(power: float) -> float:
        left = 1.0 - math.pow(progress, power + 1.0)
        return mean * (1.0 - progress) * (power + 1.0) / left

    if progress >= 1.0 or mean >= most:
        return 0.0
    if last_share(power) <= most:
        return power
    low = 0.0
    high = power
    for _ in range(40):
        middle = 0.5 * (low + high)
        if last_share(middle) <= most:
            low = middle
        else:
            high = middle
    return low

"""Epoch caps as ceilings: the largest weight of each domain in the next interval.

A domain may be read `epochs_k` times, that is C_k = epochs_k · tokens_k tokens. L_k = C_k − (tokens
drawn so far) are left. In an interval of N tokens its weight is at most L_k / N, and 0 when nothing
is left. The stream draws whole rows, so intervals deviate a little from their mixture. A margin for
this deviation is kept back, so that the stream does not reach its own cap.

A policy may read scarce domains early, as long as the run can end within all limits. With R tokens
to come, domains with ceilings c_k can take at most Σ c_k R of them. Before that limit is reached,
scarce domains are spread evenly over the rest of the run, at most L_k / R each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import available_K
from cuvee.core.epochs import TokensRead, allowed, largest_shares
from cuvee.core.errors import CorpusExhausted, PolicyError
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Trajectory

# Fraction of the drawn tokens that may exceed the caps. Where the caps equal the token budget,
# rounding would otherwise end the run early.
_ROUNDING = 0.01
_LARGEST_MARGIN = 0.05  # fraction of an interval


@dataclass(frozen=True)
class BudgetForecast:
    """What a run has drawn so far, and an estimate of what it will draw.

    `interval` N and `to_come` R are in tokens, and None while they are not known.
    """

    drawn_K: FloatArray
    interval: float | None
    to_come: float | None
    margin: float
    """Tokens of each domain to keep back.

    Twice the largest deviation of an interval from its mixture, because two deviations can add up.
    """


class EpochBudget:
    """Counts what a trajectory has drawn, incrementally, O(K) per interval.

    Another trajectory restarts the count. `first_interval` is the number of tokens of the first
    interval, if known.
    """

    def __init__(self, first_interval: int | None = None) -> None:
        self._first_interval = first_interval
        self._restart()

    def _restart(self) -> None:
        self._read = TokensRead()
        self._newest: Signals | None = None
        self._counted = 0
        self._interval = 0
        self._deviation = 0.0

    def forecast(self, so_far: Trajectory) -> BudgetForecast:
        """Return what has been drawn up to the end of `so_far`, and what is to come."""
        if self._counted > len(so_far) or so_far.at(self._counted) is not self._newest:
            self._restart()
            self._add(so_far.at(0), None)
        for _, mixture, after in so_far.since(self._counted):
            self._add(after, mixture.weights_K)
            self._counted += 1
        drawn = self._read.total
        progress = so_far.last.progress
        interval = float(self._interval or self._first_interval or 0) or None
        return BudgetForecast(
            drawn_K=self._read.of(so_far.names),
            interval=interval,
            to_come=drawn * (1.0 - progress) / progress if drawn and progress > 0 else None,
            margin=min(2.0 * self._deviation, _LARGEST_MARGIN * self._interval),
        )

    def _add(self, signals: Signals, weights_K: FloatArray | None) -> None:
        self._read.add(signals)
        total = int(signals.tokens_K.sum())
        if weights_K is not None:
            deviation = float(np.abs(signals.tokens_K - weights_K * total).max())
            self._deviation = max(self._deviation, deviation)
        self._interval = max(self._interval, total)
        self._newest = signals


def capped_ceilings(
    epochs_K: FloatArray, so_far: Trajectory, forecast: BudgetForecast, ceiling_K: FloatArray
) -> FloatArray:
    """Return `ceiling_K` (K,), lowered so that the next interval stays within the epoch caps.

    Raises `PolicyError` after the first interval if the run cannot end within the caps, and
    `CorpusExhausted` when too few tokens are left for an interval.
    """
    if np.isinf(epochs_K).all():
        return ceiling_K
    allowed_K = allowed(epochs_K, available_K(so_far.domains))
    if forecast.interval is None:
        return _first_ceilings(allowed_K, so_far, ceiling_K)
    left_K = np.maximum(allowed_K - forecast.drawn_K, 0.0)
    to_come = forecast.to_come if forecast.to_come is not None else np.inf
    if len(so_far) == 1:
        _check_run_can_end(so_far, left_K, ceiling_K, to_come, forecast)
    interval = max(min(forecast.interval, to_come), 1.0)
    kept_K = np.where(np.isinf(left_K), left_K, np.maximum(left_K - forecast.margin, 0.0))
    for spare_K in (kept_K, left_K):
        lowered_K = _ceilings(spare_K, ceiling_K, interval, to_come)
        if lowered_K.sum() >= 1.0 - 1e-9:
            return lowered_K
    missing = 1.0 - float(lowered_K.sum())
    beyond = np.maximum(forecast.drawn_K - allowed_K, 0.0).sum() + missing * interval
    if beyond <= _ROUNDING * forecast.drawn_K.sum():
        finite_K = np.where(np.isinf(allowed_K), 0.0, allowed_K)
        raised_K: FloatArray = np.minimum(lowered_K + missing * finite_K / finite_K.sum(), 1.0)
        return raised_K
    raise CorpusExhausted(
        f"at step {so_far.last.step} the epoch caps and ceilings of the guard leave "
        f"{lowered_K.sum() * interval:,.0f} tokens for an interval of {interval:,.0f}: "
        "raise guard.epochs or guard.ceiling, add a domain, or end the run here"
    )


def _ceilings(
    left_K: FloatArray, ceiling_K: FloatArray, interval: float, to_come: float
) -> FloatArray:
    soon_K = np.minimum(ceiling_K, largest_shares(left_K, interval))
    if not np.isfinite(to_come) or to_come <= interval:
        return soon_K
    scarce_K = left_K < ceiling_K * to_come
    others = float(ceiling_K[~scarce_K].sum())
    spare = float(np.minimum(left_K, ceiling_K * to_come).sum()) - to_come
    if others >= 1.0 or soon_K[scarce_K].sum() <= 1.0 - others + spare / interval:
        return soon_K
    return np.minimum(ceiling_K, largest_shares(left_K, to_come))


def _first_ceilings(allowed_K: FloatArray, so_far: Trajectory, ceiling_K: FloatArray) -> FloatArray:
    """Return the ceilings of the first interval, when no interval's size is known.

    They assume an interval as large as the whole corpus. If the caps and ceilings do not allow that
    much, they assume the largest interval that they allow.
    """
    most = float(sum(domain.tokens for domain in so_far.domains))
    low = 0.0
    high = most
    if np.minimum(ceiling_K, largest_shares(allowed_K, most)).sum() < 1.0:
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (
                (middle, high)
                if np.minimum(ceiling_K, largest_shares(allowed_K, middle)).sum() >= 1.0
                else (low, middle)
            )
        most = low
    return np.minimum(ceiling_K, largest_shares(allowed_K, most)) if most > 0 else ceiling_K


def _check_run_can_end(
    so_far: Trajectory,
    left_K: FloatArray,
    ceiling_K: FloatArray,
    to_come: float,
    forecast: BudgetForecast,
) -> None:
    if not np.isfinite(to_come):
        return
    most = float(np.minimum(left_K, ceiling_K * to_come).sum())
    if most < to_come * (1.0 - _ROUNDING):
        caps = " and ceilings" if (ceiling_K < 1.0).any() else ""
        raise PolicyError(
            f"after one interval {to_come:,.0f} tokens are to come, but the epoch caps{caps} of "
            f"the guard allow {most:,.0f} of {len(so_far.names)} domains: raise guard.epochs by a "
            f"factor of {to_come / max(most, 1.0):.2f}, leave a domain without a cap, or train on "
            "fewer tokens"
        )

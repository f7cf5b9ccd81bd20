"""Epoch caps as ceilings: how large a share of the next interval each domain may have and still keep within its cap.

A domain may be read `epochs` times, C_k = epochs_k · tokens_k, of which L_k = C_k − (tokens drawn) are left. Where an interval
reads N tokens, its share is at most L_k / N, and 0 once nothing is left. The stream counts in rows, so a little is
kept back, by what intervals were seen to read beside their mixtures; then the stream does not meet a cap of its own.

Reading early what is scarce is the policy's business, unless ceilings on the other domains would leave no mixture at the end:
of R tokens to come they take at most Σ c_k R. Before it comes to that, scarce domains are spread evenly, at most L_k / R each.
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

_ROUNDING = 0.01  # of what was drawn: where caps and budget are equal, so much may lie beyond the caps rather than end the run
_LARGEST_MARGIN = 0.05  # a share of an interval


@dataclass(frozen=True)
class Outlook:
    """What a run has read, and what is to come. `interval` N and `to_come` R are tokens, None while nobody knows them."""

    drawn_K: FloatArray
    interval: float | None
    to_come: float | None
    margin: float
    """Tokens of each domain to keep back: twice the most that an interval read beside its mixture, since errors of two add up."""


class EpochBudget:
    """Adds up what a trajectory has drawn while it grows, O(K) an interval; given another one, it starts anew.

    `first_interval` is how many tokens that will read, if it is known.
    """

    def __init__(self, first_interval: int | None = None) -> None:
        self._first_interval = first_interval
        self._forget()

    def _forget(self) -> None:
        self._read = TokensRead()
        self._newest: Signals | None = None
        self._counted, self._interval, self._stray = 0, 0, 0.0

    def outlook(self, so_far: Trajectory) -> Outlook:
        signals = so_far.signals
        if not 0 < self._counted <= len(signals) or signals[self._counted - 1] is not self._newest:
            self._forget()
        mixtures = so_far.mixtures
        for t in range(self._counted, len(signals)):
            self._add(signals[t], mixtures[t - 1].weights_K if t else None)
        drawn, progress = self._read.total, so_far.last.progress
        interval = float(self._interval or self._first_interval or 0) or None
        return Outlook(
            drawn_K=self._read.of(so_far.names),
            interval=interval,
            to_come=drawn * (1.0 - progress) / progress if drawn and progress > 0 else None,
            margin=min(2.0 * self._stray, _LARGEST_MARGIN * self._interval),
        )

    def _add(self, signals: Signals, weights_K: FloatArray | None) -> None:
        self._read.add(signals)
        total = int(signals.tokens_K.sum())
        if weights_K is not None:
            self._stray = max(
                self._stray, float(np.abs(signals.tokens_K - weights_K * total).max())
            )
        self._interval, self._newest, self._counted = (
            max(self._interval, total),
            signals,
            self._counted + 1,
        )


def capped_ceilings(
    epochs_K: FloatArray, so_far: Trajectory, outlook: Outlook, ceiling_K: FloatArray
) -> FloatArray:
    """(K,) `ceiling_K` lowered so that the next interval keeps within the caps.

    Raises `PolicyError` after the first interval if the run cannot end within them, `CorpusExhausted` when nothing is left.
    """
    if np.isinf(epochs_K).all():
        return ceiling_K
    allowed_K = allowed(epochs_K, available_K(so_far.domains))
    if outlook.interval is None:
        return _before_anything_is_known(allowed_K, so_far, ceiling_K)
    left_K = np.maximum(allowed_K - outlook.drawn_K, 0.0)
    to_come = outlook.to_come if outlook.to_come is not None else np.inf
    if len(so_far) == 1:
        _refuse_what_cannot_end(so_far, left_K, ceiling_K, to_come, outlook)
    interval = max(min(outlook.interval, to_come), 1.0)
    kept_K = np.where(np.isinf(left_K), left_K, np.maximum(left_K - outlook.margin, 0.0))
    for spare_K in (kept_K, left_K):
        lowered_K = _ceilings(spare_K, ceiling_K, interval, to_come)
        if lowered_K.sum() >= 1.0 - 1e-9:
            return lowered_K
    missing = 1.0 - float(lowered_K.sum())
    beyond = np.maximum(outlook.drawn_K - allowed_K, 0.0).sum() + missing * interval
    if beyond <= _ROUNDING * outlook.drawn_K.sum():
        finite_K = np.where(np.isinf(allowed_K), 0.0, allowed_K)
        raised_K: FloatArray = np.minimum(lowered_K + missing * finite_K / finite_K.sum(), 1.0)
        return raised_K
    raise CorpusExhausted(
        f"at step {so_far.last.step} the epoch caps and ceilings of the guard leave {lowered_K.sum() * interval:,.0f} tokens for "
        f"an interval of {interval:,.0f}: raise guard.epochs or guard.ceiling, add a domain or end the run here"
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


def _before_anything_is_known(
    allowed_K: FloatArray, so_far: Trajectory, ceiling_K: FloatArray
) -> FloatArray:
    """As if the first interval read as much as the whole corpus, or as much as the caps and ceilings allow, if that is less."""
    most = float(sum(domain.tokens for domain in so_far.domains))
    low, high = 0.0, most
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


def _refuse_what_cannot_end(
    so_far: Trajectory, left_K: FloatArray, ceiling_K: FloatArray, to_come: float, outlook: Outlook
) -> None:
    if not np.isfinite(to_come):
        return
    most = float(np.minimum(left_K, ceiling_K * to_come).sum())
    if most < to_come * (1.0 - _ROUNDING):
        caps = " and ceilings" if (ceiling_K < 1.0).any() else ""
        raise PolicyError(
            f"after one interval {to_come:,.0f} tokens are to come, but the epoch caps{caps} of the guard allow {most:,.0f} of "
            f"{len(so_far.names)} domains: raise guard.epochs by a factor of {to_come / max(most, 1.0):.2f}, leave a domain "
            "without a cap, or train on fewer tokens"
        )

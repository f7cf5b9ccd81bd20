"""Apportionment: how many rows of each domain a batch holds, so that counts follow the mixture.

Weights become integers ("shares") that sum to 2^58. After m batches of B rows, domain d is due

    t_d(m) = credit_d + m B share_d / 2^58    (exact: an integer, and a fraction in units of 2^-58)

rows. It gets c_d(m) rows: t_d rounded down or up, so that |c_d − t_d| < 1. The counts are integers
that never fall, with Σ_d c_d(m) = m B.

Rounding each m independently could make counts fall (the Alabama paradox of apportionment).
Rounding is therefore done along a binary tree over time. The first level is the multiples of
2^level steps. They are so far apart that every domain is due at least two rows between neighbours,
so no count can fall. Then the midpoints are rounded, each within the bounds of its two neighbours,
and so on down to single steps. This computes c(m) from m alone with at most `level` roundings of
O(K). Any step can be reached directly, and a block of steps takes a few array operations.

The fractions with the largest (fraction − ½) (share + 1/K) are rounded up. With plain largest
remainders, the error of a heavy domain stays near ±1, and light domains, whose counts rarely
change, cannot compensate for it at the steps in between.

Counts only rise, so rows that were given are not taken back when the mixture changes. If each
domain with weight is due at least one row per batch, |c − t| < 1 holds through any changes.
Otherwise no rule that does not know the future can guarantee it: an adversary who sets the weights
can always drop the domains that were just served, and so starve one of K by about ln K rows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import IntArray

ShareArray = npt.NDArray[np.uint64]

SHARE_BITS = 58  # leaves room for a credit of ±32 rows in 64 bits
WHOLE = 1 << SHARE_BITS
_FRACTION = np.uint64(WHOLE - 1)
_LOW = np.uint64((1 << SHARE_BITS // 2) - 1)
_HALF = np.uint64(SHARE_BITS // 2)
_ALL = np.uint64(SHARE_BITS)
_28 = np.uint64(28)
_TIE_BITS = 14
_MOST_DOMAINS = 1 << _TIE_BITS
MOST_ROWS = 1 << 20
"""The largest batch. With it and 2^40 steps, no product below exceeds 64 bits."""
_MOST_STEPS = 1 << 40


def integer_shares(weights_K: npt.NDArray[np.float64]) -> ShareArray:
    """Return weights (K,) as integers that sum to exactly 2^58.

    Each is within K/2^52 of its weight's share; 0 stays 0. Only operations that IEEE 754 rounds in
    the same way everywhere are used, so every rank and platform gets the same integers.
    """
    assert len(weights_K) < _MOST_DOMAINS
    shares_K = np.floor(np.ldexp(weights_K / math.fsum(weights_K.tolist()), SHARE_BITS)).astype(
        np.int64
    )
    shares_K[int(np.argmax(shares_K))] += WHOLE - int(shares_K.sum())
    return shares_K.astype(np.uint64)


def spread(credit_K: IntArray, amount: int, shares_K: ShareArray) -> IntArray:
    """Add `amount` to `credit_K`, divided among domains in proportion to `shares_K`.

    This redistributes the credit of domains that can no longer use it.
    """
    if not amount:
        return credit_K
    parts_K = np.array([amount * int(share) >> SHARE_BITS for share in shares_K], dtype=np.int64)
    parts_K[int(np.argmax(shares_K))] += amount - int(parts_K.sum())
    return credit_K + parts_K


class Quota:
    """The counts of a stretch of batches under constant shares.

    `credit_K` is the credit carried over from before: requested minus delivered rows, in units of
    2^-58.
    """

    def __init__(self, batch_size: int, shares_K: ShareArray, credit_K: IntArray) -> None:
        assert batch_size <= MOST_ROWS
        assert int(shares_K.sum()) == WHOLE
        assert int(credit_K.sum()) == 0
        self.batch_size = batch_size
        self.shares_K = shares_K
        self.credit_K = credit_K
        self._pull_K = ((shares_K >> _28) + np.uint64((1 << 30) // len(shares_K))).astype(np.int64)
        smallest = int(shares_K[shares_K > 0].min())
        apart = 3 + int(np.abs(credit_K >> SHARE_BITS).max())
        self._level = min(
            _MOST_STEPS.bit_length() - 1, (apart * WHOLE // (smallest * batch_size)).bit_length()
        )

    def due(self, step_N: IntArray) -> tuple[IntArray, ShareArray]:
        """Return t_d at each step as integers (N, K) and fractions (N, K) in units of 2^-58."""
        rows_N1 = (np.asarray(step_N, dtype=np.uint64) * np.uint64(self.batch_size))[:, None]
        rows_low = rows_N1 & _LOW
        rows_high = rows_N1 >> _HALF
        low_K = self.shares_K & _LOW
        high_K = self.shares_K >> _HALF
        cross_NK = rows_high * low_K + rows_low * high_K
        fraction_NK = (
            ((cross_NK & _LOW) << _HALF)
            + rows_low * low_K
            + (self.credit_K & (WHOLE - 1)).astype(np.uint64)
        )
        carried_NK = (rows_high * high_K + (cross_NK >> _HALF) + (fraction_NK >> _ALL)).astype(
            np.int64
        )
        return carried_NK + (self.credit_K >> SHARE_BITS), fraction_NK & _FRACTION

    def counts(self, first: int, steps: int) -> IntArray:
        """Return (steps + 1, K) rows of each domain given before step `first`, `first` + 1, …"""
        last = first + steps
        assert last <= _MOST_STEPS
        spacing = 1 << self._level
        start = first // spacing * spacing
        stop = -(-last // spacing) * spacing
        stop = max(stop, start + spacing)
        step_N = np.arange(start, stop + 1, spacing)
        counts_NK = self._anchors(step_N)
        while spacing > 1:
            half = spacing // 2
            middle_N = step_N[:-1] + half
            middle_NK = self._round(middle_N, counts_NK[:-1], counts_NK[1:])
            step_N = np.arange(start, stop + 1, half)
            finer_NK = np.empty((len(step_N), counts_NK.shape[1]), dtype=np.int64)
            finer_NK[::2] = counts_NK
            finer_NK[1::2] = middle_NK
            low = (first - start) // half
            high = -(-(last - start) // half)
            high = max(high, low + 1)
            step_N = step_N[low : high + 1]
            counts_NK = finer_NK[low : high + 1]
            start = int(step_N[0])
            stop = int(step_N[-1])
            spacing = half
        return counts_NK[first - start : last - start + 1]

    def credit_at(self, step: int, counts_K: IntArray) -> IntArray:
        """Return requested minus delivered rows (K,) before `step`, in units of 2^-58."""
        whole_1K, fraction_1K = self.due(np.array([step]))
        credit_K: IntArray = ((whole_1K[0] - counts_K) << SHARE_BITS) + fraction_1K[0].astype(
            np.int64
        )
        return credit_K

    def _anchors(self, step_N: IntArray) -> IntArray:
        """Return the counts at multiples of the widest spacing, each rounded independently."""
        bottom_NK = np.zeros((len(step_N), len(self.shares_K)), dtype=np.int64)
        top_NK = np.where((self.shares_K > 0) & (step_N[:, None] > 0), np.int64(WHOLE), np.int64(0))
        return self._round(step_N, bottom_NK, top_NK)

    def _round(self, step_N: IntArray, bottom_NK: IntArray, top_NK: IntArray) -> IntArray:
        """Round t to integers in [bottom, top] whose sum is the number of rows before each step.

        The method is that of largest remainders.
        """
        whole_NK, fraction_NK = self.due(step_N)
        rows_N = step_N * self.batch_size
        down_NK = np.clip(whole_NK, bottom_NK, top_NK)
        up_NK = np.clip(whole_NK + 1, bottom_NK, top_NK)
        missing_N = rows_N - down_NK.sum(axis=1)
        wrong_N = (missing_N < 0) | (missing_N > (up_NK - down_NK).sum(axis=1))
        shift_N = np.zeros(len(step_N), dtype=np.int64)
        # Only after adverse changes of the mixture: no rounding within one row of t exists.
        while wrong_N.any():
            shift_N += np.where(wrong_N, np.where(missing_N < 0, -1, 1), 0)
            down_NK = np.clip(whole_NK + shift_N[:, None], bottom_NK, top_NK)
            up_NK = np.clip(whole_NK + shift_N[:, None] + 1, bottom_NK, top_NK)
            missing_N = rows_N - down_NK.sum(axis=1)
            wrong_N = (missing_N < 0) | (missing_N > (up_NK - down_NK).sum(axis=1))
        claim_NK = ((fraction_NK >> _28).astype(np.int64) - (1 << 29)) * self._pull_K
        return down_NK + _largest(claim_NK, up_NK > down_NK, missing_N)


def _largest(
    claim_NK: IntArray, allowed_NK: npt.NDArray[np.bool_], number_N: IntArray
) -> npt.NDArray[np.bool_]:
    """Mark the `number_N` largest allowed claims of each row; the first domains win ties."""
    rows, domains = claim_NK.shape
    order_K = np.arange(domains, 0, -1)
    nothing = np.iinfo(np.int64).min
    keys_NK = np.where(allowed_NK, (claim_NK & -(1 << _TIE_BITS)) | order_K, nothing)
    sorted_NK = np.sort(keys_NK, axis=1)
    cut_N = sorted_NK[np.arange(rows), np.minimum(domains - number_N, domains - 1)]
    marked: npt.NDArray[np.bool_] = (keys_NK >= cut_N[:, None]) & (number_N > 0)[:, None]
    return marked

"""Apportionment: how many rows of each domain every batch holds, so that the realised mixture follows the asked one.

Weights become integers that sum to 2^58. After m batches of B rows, domain d is due

    t_d(m) = credit_d + m B share_d / 2^58        (exact: a whole part, and a fraction in units of 2^-58)

rows, and gets c_d(m), whole, never falling, Σ_d c_d(m) = m B: t_d rounded down or up, so that every |c_d − t_d| < 1. Rounding
each m on its own would let counts fall (the Alabama paradox of apportionment). So it is done along a binary tree over time:
first at multiples of 2^level steps, so far apart that every domain is due two rows and more between neighbours and no count
can fall; then at the midpoints between those, each confined to what its two neighbours hold; and so on down to single steps.
c(m) is thus computed from m alone by at most `level` roundings of O(K): any step is reached at once, and a block of steps is
a few array operations.

Which fractions are rounded up: those with the largest (fraction − ½) (share + 1/K). Plain largest remainders leave a heavy
domain near ±1, and the light ones, whose counts rarely change, can then not make up for it at the steps in between.

A count can only rise, so when mixtures change, rows once given are not taken back. If every domain with weight is due one row
a batch or more, |c − t| < 1 holds through any changes. If not, no rule that does not know the future can promise it: whoever
names the weights can always drop the domains that were just served and so starve one of K by about ln K rows.
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
_HALF, _ALL = np.uint64(SHARE_BITS // 2), np.uint64(SHARE_BITS)
_28 = np.uint64(28)
_TIE_BITS = 14
_MOST_DOMAINS = 1 << _TIE_BITS
MOST_ROWS = 1 << 20
"""The largest batch: with it and 2^40 steps, no product below leaves 64 bits."""
_MOST_STEPS = 1 << 40


def integer_shares(weights_K: npt.NDArray[np.float64]) -> ShareArray:
    """Weights as integers that sum to 2^58 exactly, each within K/2^52 of its weight's share; 0 stays 0.

    Uses only operations that IEEE 754 rounds alike everywhere, so every rank and platform gets the same integers.
    """
    assert len(weights_K) < _MOST_DOMAINS
    shares_K = np.floor(np.ldexp(weights_K / math.fsum(weights_K.tolist()), SHARE_BITS)).astype(
        np.int64
    )
    shares_K[int(np.argmax(shares_K))] += WHOLE - int(shares_K.sum())
    return shares_K.astype(np.uint64)


def spread(credit_K: IntArray, amount: int, shares_K: ShareArray) -> IntArray:
    """`credit_K` plus `amount`, divided by `shares_K`: how credit that nobody holds any more goes to the rest."""
    if not amount:
        return credit_K
    parts_K = np.array([amount * int(share) >> SHARE_BITS for share in shares_K], dtype=np.int64)
    parts_K[int(np.argmax(shares_K))] += amount - int(parts_K.sum())
    return credit_K + parts_K


class Quota:
    """Counts of one stretch of batches under constant shares, from a carried credit (asked minus realised, in 2^-58 rows)."""

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
        """t_d at each step: whole parts (N, K) and fractions (N, K) in units of 2^-58."""
        rows_N1 = (np.asarray(step_N, dtype=np.uint64) * np.uint64(self.batch_size))[:, None]
        rows_low, rows_high = rows_N1 & _LOW, rows_N1 >> _HALF
        low_K, high_K = self.shares_K & _LOW, self.shares_K >> _HALF
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
        """(steps + 1, K) rows of each domain given before step `first`, `first` + 1, …, `first` + `steps`."""
        last = first + steps
        assert last <= _MOST_STEPS
        spacing = 1 << self._level
        start, stop = first // spacing * spacing, -(-last // spacing) * spacing
        stop = max(stop, start + spacing)
        step_N = np.arange(start, stop + 1, spacing)
        counts_NK = self._anchors(step_N)
        while spacing > 1:
            half = spacing // 2
            middle_N = step_N[:-1] + half
            middle_NK = self._round(middle_N, counts_NK[:-1], counts_NK[1:])
            step_N = np.arange(start, stop + 1, half)
            finer_NK = np.empty((len(step_N), counts_NK.shape[1]), dtype=np.int64)
            finer_NK[::2], finer_NK[1::2] = counts_NK, middle_NK
            low = (first - start) // half
            high = -(-(last - start) // half)
            high = max(high, low + 1)
            step_N, counts_NK = step_N[low : high + 1], finer_NK[low : high + 1]
            start, stop, spacing = int(step_N[0]), int(step_N[-1]), half
        return counts_NK[first - start : last - start + 1]

    def credit_at(self, step: int, counts_K: IntArray) -> IntArray:
        """Asked minus realised before `step`, in units of 2^-58 rows."""
        whole_1K, fraction_1K = self.due(np.array([step]))
        credit_K: IntArray = ((whole_1K[0] - counts_K) << SHARE_BITS) + fraction_1K[0].astype(
            np.int64
        )
        return credit_K

    def _anchors(self, step_N: IntArray) -> IntArray:
        """Counts at multiples of the widest spacing, each rounded on its own; none of anything before step 0."""
        bottom_NK = np.zeros((len(step_N), len(self.shares_K)), dtype=np.int64)
        top_NK = np.where((self.shares_K > 0) & (step_N[:, None] > 0), np.int64(WHOLE), np.int64(0))
        return self._round(step_N, bottom_NK, top_NK)

    def _round(self, step_N: IntArray, bottom_NK: IntArray, top_NK: IntArray) -> IntArray:
        """t rounded to integers in [bottom, top] that sum to the rows drawn before each step, by largest remainder."""
        whole_NK, fraction_NK = self.due(step_N)
        rows_N = step_N * self.batch_size
        down_NK = np.clip(whole_NK, bottom_NK, top_NK)
        up_NK = np.clip(whole_NK + 1, bottom_NK, top_NK)
        missing_N = rows_N - down_NK.sum(axis=1)
        wrong_N = (missing_N < 0) | (missing_N > (up_NK - down_NK).sum(axis=1))
        shift_N = np.zeros(len(step_N), dtype=np.int64)
        while (
            wrong_N.any()
        ):  # only after adverse changes of mixture: no rounding within one row of t exists
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
    """Marks the `number` largest allowed claims of each row; of equal ones the first domains."""
    rows, domains = claim_NK.shape
    order_K = np.arange(domains, 0, -1)
    nothing = np.iinfo(np.int64).min
    keys_NK = np.where(allowed_NK, (claim_NK & -(1 << _TIE_BITS)) | order_K, nothing)
    sorted_NK = np.sort(keys_NK, axis=1)
    cut_N = sorted_NK[np.arange(rows), np.minimum(domains - number_N, domains - 1)]
    marked: npt.NDArray[np.bool_] = (keys_NK >= cut_N[:, None]) & (number_N > 0)[:, None]
    return marked

"""The order of rows inside a batch: domains are dealt to the lanes of the batch like cards to players.

The rows of a batch, sorted by domain, go round the ranks one by one, so that the slice of each rank, and the slice of each
micro-batch of a rank, holds its fair share of every domain to within one row. Where the round begins moves by a golden-ratio
step from batch to batch, so that what is left over favours no rank for long.
"""

from __future__ import annotations

import numpy as np

from cuvee.core.arrays import IntArray
from cuvee.data.stream.permutation import stable_key

_GOLDEN = 0x9E3779B97F4A7C15


def dealing_order(batch_size: int) -> IntArray:
    """(B,) for each lane, which of the sorted rows it is dealt: digit reversal in the prime factors of B, twos first.

    Lanes [r B/W, (r+1) B/W) belong to rank r of W; for W a product of the first factors, row i goes to rank i mod W permuted.
    """
    lanes = np.arange(batch_size)
    row_B = np.zeros(batch_size, dtype=np.int64)
    width, stride = batch_size, 1
    for factor in _prime_factors(batch_size):
        width //= factor
        row_B += lanes // width % factor * stride
        stride *= factor
    return row_B


def rotations(seed: int, step_S: IntArray, batch_size: int) -> IntArray:
    """(S,) where in the round each batch begins: the fractional parts of step × golden ratio, from a start of the seed's."""
    phase_S = step_S.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(
        stable_key("rotation", seed)
    )
    return ((phase_S >> np.uint64(32)) * np.uint64(batch_size) >> np.uint64(32)).astype(np.int64)


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors

"""The order of rows within a batch: each rank gets a fair share of every domain.

The rows of a batch, sorted by domain, are assigned to the ranks in turn. The slice of each rank,
and of each micro-batch of a rank, then holds its share of every domain to within one row. The
starting rank moves by a golden-ratio step from batch to batch, so that the remainders do not favour
any rank.
"""

from __future__ import annotations

import numpy as np

from cuvee.core.arrays import IntArray
from cuvee.data.stream.permutation import stable_key

_GOLDEN = 0x9E3779B97F4A7C15


def lane_order(batch_size: int) -> IntArray:
    """Return (B,) for each lane the index of its row among the rows sorted by domain.

    The order is digit reversal in the prime factors of B, twos first. Lanes [r B/W, (r+1) B/W)
    belong to rank r of W. If W is a product of the first factors, row i goes to rank i mod W,
    permuted.
    """
    lanes = np.arange(batch_size)
    row_B = np.zeros(batch_size, dtype=np.int64)
    width = batch_size
    stride = 1
    for factor in _prime_factors(batch_size):
        width //= factor
        row_B += lanes // width % factor * stride
        stride *= factor
    return row_B


def rotations(seed: int, step_S: IntArray, batch_size: int) -> IntArray:
    """Return (S,) the lane at which each batch starts.

    These are the fractional parts of step × golden ratio, with an offset from the seed.
    """
    phase_S = step_S.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(
        stable_key("rotation", seed)
    )
    return ((phase_S >> np.uint64(32)) * np.uint64(batch_size) >> np.uint64(32)).astype(np.int64)


def _prime_factors(number: int) -> list[int]:
    factors = []
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors

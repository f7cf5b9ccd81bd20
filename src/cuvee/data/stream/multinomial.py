"""Random counts: each row of a batch draws its domain independently.

The draw is a hash of (seed, global slot), where slots number all rows of a run.
"""

from __future__ import annotations

import numpy as np

from cuvee.core.arrays import IntArray
from cuvee.data.stream.apportion import SHARE_BITS, ShareArray
from cuvee.data.stream.permutation import mix64, stable_key

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK_ROWS = 1 << 18


class Multinomial:
    """The counts of batches whose rows are the global slots from `first_slot`.

    The domain of a slot is found by inverting the cumulative shares at a uniform 58-bit hash. The
    hash is splitmix64 used as a counter-based generator (Salmon et al., "Parallel random numbers:
    as easy as 1, 2, 3", SC 2011).
    """

    def __init__(self, batch_size: int, shares_K: ShareArray, seed: int, first_slot: int) -> None:
        self.batch_size = batch_size
        self.first_slot = first_slot
        self._ends_K = np.cumsum(shares_K, dtype=np.uint64)
        self._key = np.uint64(stable_key("multinomial", seed))

    def counts(self, first: int, steps: int) -> IntArray:
        """Return (steps + 1, K) rows of each domain given before step `first`, `first` + 1, …"""
        counts_SK = np.zeros((first + steps + 1, len(self._ends_K)), dtype=np.int64)
        at_once = max(1, _CHUNK_ROWS // self.batch_size)
        for begin in range(0, first + steps, at_once):
            end = min(begin + at_once, first + steps)
            counts_SK[begin + 1 : end + 1] = self._drawn(begin, end - begin)
        return np.cumsum(counts_SK, axis=0)[first:]

    def _drawn(self, step: int, steps: int) -> IntArray:
        begin = self.first_slot + step * self.batch_size
        slot_N = np.arange(begin, begin + steps * self.batch_size, dtype=np.uint64)
        uniform_N = mix64(mix64(slot_N * _GOLDEN + self._key)) >> np.uint64(64 - SHARE_BITS)
        domain_N = np.searchsorted(self._ends_K, uniform_N, side="right")
        domains = len(self._ends_K)
        cell_N = domain_N + np.repeat(np.arange(steps) * domains, self.batch_size)
        return np.bincount(cell_N, minlength=steps * domains).reshape(steps, domains)

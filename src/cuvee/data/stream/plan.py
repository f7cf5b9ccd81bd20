"""Plans: which window of which domain fills each row of the next steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.core.arrays import IntArray
from cuvee.data.stream.lanes import lane_order, rotations
from cuvee.data.stream.permutation import epoch_keys, permute, sides, stable_key


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The rows of one rank for S steps that are `stride` apart.

    Arrays `_SB` are in the order of the batch. Arrays `_N` hold the same N = S B rows sorted by
    domain; `row_SB` is the index of each row among them.
    """

    first: int
    stride: int
    domain_SB: IntArray
    epoch_SB: IntArray
    window_SB: IntArray
    domain_N: IntArray
    window_N: IntArray
    row_SB: IntArray

    def __contains__(self, step: int) -> bool:
        """Whether the plan covers `step`."""
        ahead = step - self.first
        return 0 <= ahead < len(self.row_SB) * self.stride and ahead % self.stride == 0

    def index(self, step: int) -> int:
        """Return the index of `step` along the S axis."""
        return (step - self.first) // self.stride


class Planner:
    """Maps counts to windows.

    The n-th row that a domain of W windows gives is window permutation(n mod W) of pass n div W.
    The permutation is keyed by the seed, the domain and the pass.
    """

    def __init__(self, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        share = batch_size // world_size
        self._seed = seed
        self._batch_size = batch_size
        self._lane_B = lane_order(batch_size)
        self._own_B = np.arange(rank * share, (rank + 1) * share)

    def domains(self, keys: Sequence[str], size_K: IntArray) -> None:
        """Set the domains: their permutation keys and their numbers of windows."""
        radix_K2 = np.array([sides(int(size)) for size in size_K], dtype=np.uint32)
        self._size_K = size_K
        self._a_K = radix_K2[:, 0].copy()
        self._b_K = radix_K2[:, 1].copy()
        self._key_K = np.array(
            [stable_key("domain", self._seed, key) for key in keys], dtype=np.uint64
        )

    def plan(
        self, first: int, counts_TK: IntArray, stride: int = 1, lanes_B: IntArray | None = None
    ) -> BatchPlan:
        """Return the plan of every `stride`-th step.

        `counts_TK` holds the cumulative counts before the first step and after each. `lanes_B` are
        the lanes of the global batch to plan, by default those of this rank.
        """
        lanes_B = self._own_B if lanes_B is None else lanes_B
        steps = len(counts_TK) - 1
        size = self._batch_size
        taken_K = counts_TK[-1] - counts_TK[0]
        # Where each domain's rows begin when the block is sorted by domain.
        base_K = np.cumsum(taken_K) - taken_K
        domain_N = np.repeat(np.arange(len(taken_K)), taken_K)
        draw_N = np.arange(steps * size) + (counts_TK[0] - base_K).take(domain_N)
        row_SB = self._rows_of_lanes(first, counts_TK, base_K, lanes_B)[::stride]
        if stride > 1 or len(lanes_B) < size:
            mine_N = np.zeros(steps * size, dtype=np.bool_)
            mine_N[row_SB] = True
            domain_N = domain_N[mine_N]
            draw_N = draw_N[mine_N]
            row_SB = (np.cumsum(mine_N) - 1).take(row_SB)
        epoch_N, window_N = self._places(domain_N, draw_N, counts_TK[0])
        lanes = (domain_N.take(row_SB), epoch_N.take(row_SB), window_N.take(row_SB))
        return BatchPlan(first, stride, *lanes, domain_N, window_N, row_SB)

    def _rows_of_lanes(
        self, first: int, counts_TK: IntArray, base_K: IntArray, lanes_B: IntArray
    ) -> IntArray:
        """Return (S, B) the row, in the block sorted by domain, of each of the lanes."""
        steps = len(counts_TK) - 1
        size = self._batch_size
        rows_N = np.diff(counts_TK, axis=0).ravel()
        offset_N = (base_K + counts_TK[:-1] - counts_TK[0]).ravel() - (np.cumsum(rows_N) - rows_N)
        sorted_SB = (np.arange(steps * size) + np.repeat(offset_N, rows_N)).reshape(steps, size)
        turns_S = rotations(self._seed, np.arange(first, first + steps), size)
        lane_SB = self._lane_B[lanes_B] + turns_S[:, None]
        lane_SB -= np.where(lane_SB >= size, size, 0)
        lane_SB += np.arange(0, steps * size, size)[:, None]
        rows_SB: IntArray = sorted_SB.ravel().take(lane_SB)
        return rows_SB

    def _places(
        self, domain_N: IntArray, draw_N: IntArray, before_K: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Return the pass (N,) and the window (N,) of each row."""
        size_N = self._size_K.take(domain_N)
        epoch_K = before_K // np.maximum(self._size_K, 1)
        epoch_N = epoch_K.take(domain_N)
        index_N = draw_N - (epoch_K * self._size_K).take(domain_N)
        key_N = epoch_keys(self._key_K, epoch_K).take(domain_N)
        later = np.flatnonzero(index_N >= size_N)  # rows of passes that begin inside the block
        if later.size:
            epoch_N[later] = draw_N[later] // size_N[later]
            index_N[later] = draw_N[later] - epoch_N[later] * size_N[later]
            key_N[later] = epoch_keys(self._key_K[domain_N[later]], epoch_N[later])
        return epoch_N, permute(
            index_N, size_N, self._a_K.take(domain_N), self._b_K.take(domain_N), key_N
        )

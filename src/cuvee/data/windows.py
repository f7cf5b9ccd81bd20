"""Windows: a domain cut into stretches of L tokens, the last one padded, so that an epoch holds every token exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.data.pool import TokenPool

IntArray = npt.NDArray[np.int64]


class Windows:
    """The ⌈N/L⌉ windows of one pool. Window w is tokens [w L, (w+1) L); the last may hold fewer than L."""

    def __init__(self, pool: TokenPool, length: int) -> None:
        self.pool = pool
        self.length = length
        self.tokens: npt.NDArray[Any] = np.asarray(pool.tokens)
        whole = len(self.tokens) // length
        self.whole_WL = self.tokens[: whole * length].reshape(whole, length)
        self.tail = self.tokens[whole * length :]
        self.number = whole + (len(self.tail) > 0)

    def __len__(self) -> int:
        return self.number

    def read(self, window_N: IntArray, out_NL: npt.NDArray[Any]) -> None:
        """Writes the windows' tokens to `out_NL`; what is short is filled with the pool's last token, its end of text."""
        whole = len(self.whole_WL)
        if whole:
            np.take(self.whole_WL, window_N, axis=0, out=out_NL, mode="clip")
        if self.tail.size:
            for row in np.flatnonzero(window_N == whole):
                out_NL[row, : self.tail.size] = self.tail
                out_NL[row, self.tail.size :] = self.tail[-1]

    def filled(self, window_N: IntArray) -> IntArray:
        """(N,) how many tokens of each window are text and not padding."""
        return np.minimum(len(self.tokens) - window_N * self.length, self.length)


def document_ordinals(windows: Sequence[Windows], domain_B: IntArray, window_B: IntArray, length: int) -> IntArray:
    """(B, L) ordinal of each token's document within its row, from 0; padding counts as one more document."""
    ordinal_BL = np.zeros((len(domain_B), length), dtype=np.int64)
    for domain in np.unique(domain_B):
        source = windows[domain]
        rows = np.flatnonzero(domain_B == domain)
        begin = window_B[rows] * length
        filled = source.filled(window_B[rows])
        starts = source.pool.document_starts
        low = np.searchsorted(starts, begin, side="right")
        high = np.searchsorted(starts, begin + filled, side="left")
        row_of = np.repeat(np.arange(len(rows)), high - low)
        which = (
            np.arange(len(row_of))
            - np.repeat(np.cumsum(high - low) - (high - low), high - low)
            + np.repeat(low, high - low)
        )
        ordinal_BL[rows[row_of], starts[which] - begin[row_of]] = 1
        padded = filled < length
        ordinal_BL[rows[padded], filled[padded]] = 1
    return np.cumsum(ordinal_BL, axis=1)

"""Windows: a domain cut into stretches of L tokens, the last one padded, so that an epoch holds every token exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from cuvee.data.pool import TokenPool

IntArray = npt.NDArray[np.int64]
TokenArray = npt.NDArray[Any]

_LONG_BYTES = 512


class Windows:
    """The ⌈N/L⌉ windows of one pool. Window w is tokens [w L, (w+1) L); the last may hold fewer than L."""

    def __init__(self, pool: TokenPool, length: int) -> None:
        self.pool = pool
        self.length = length
        self.tokens: TokenArray = np.asarray(pool.tokens)
        self.whole = len(self.tokens) // length
        self.whole_WL = self.tokens[: self.whole * length].reshape(self.whole, length)
        self.tail = self.tokens[self.whole * length :]

    def __len__(self) -> int:
        return self.whole + (len(self.tail) > 0)

    def padded_tail(self) -> TokenArray:
        """(L,) the last, short window, filled up with the pool's last token, which is an end of text."""
        return np.concatenate([self.tail, np.full(self.length - len(self.tail), self.tail[-1])])

    def filled(self, window_N: IntArray) -> IntArray:
        """(N,) how many tokens of each window are text and not padding."""
        return np.minimum(len(self.tokens) - window_N * self.length, self.length)


class Reader:
    """Gathers windows of many pools into rows, at the cost of one gather from one array."""

    def __init__(self, windows: Sequence[Windows], length: int) -> None:
        self.windows = windows
        self.length = length
        self.dtype = np.result_type(*(w.tokens.dtype for w in windows)) if windows else np.dtype(np.uint16)
        self._whole_K = np.array([w.whole for w in windows], dtype=np.int64)
        self._tails = any(w.tail.size for w in windows)
        self._flat, self._offset_K = self._one_array()

    @property
    def by_row(self) -> bool:
        """True if rows are best read one batch at a time; else a block of several batches, sorted by domain, is cheaper."""
        return self._flat is not None

    def read(self, domain_N: IntArray, window_N: IntArray) -> TokenArray:
        """(N, L) tokens in the pools' own type. Without `by_row` the rows must be sorted by domain."""
        if self._flat is not None:
            start_N = self._offset_K.take(domain_N) + window_N * self.length
            short = self.short(domain_N, window_N)
            start_N[short] = self._safe
            rows_NL: TokenArray = self._flat[start_N]
        else:
            rows_NL = np.empty((len(domain_N), self.length), dtype=self.dtype)
            number_K = np.bincount(domain_N, minlength=len(self.windows))
            end_K = np.cumsum(number_K)
            for domain in np.flatnonzero(number_K * (self._whole_K > 0)).tolist():
                source, rows = self.windows[domain], slice(end_K[domain] - number_K[domain], end_K[domain])
                if source.tokens.dtype == self.dtype:
                    np.take(source.whole_WL, window_N[rows], axis=0, out=rows_NL[rows], mode="clip")
                else:
                    rows_NL[rows] = source.whole_WL[np.minimum(window_N[rows], source.whole - 1)]
            short = self.short(domain_N, window_N)
        for row in short:
            rows_NL[row] = self.windows[domain_N[row]].padded_tail()
        return rows_NL

    def short(self, domain_N: IntArray, window_N: IntArray) -> IntArray:
        """Which rows hold padding."""
        if not self._tails:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(window_N == self._whole_K.take(domain_N))

    def _one_array(self) -> tuple[TokenArray | None, IntArray]:
        """Long windows: all pools as one overlapping-window view over the address space, with each pool's place in it.

        Only addresses inside the pools are ever read: `read` forms no others, and each pool is kept alive by `windows`.
        It spares one call for each domain in a batch, so that cost does not grow with the number of domains.
        """
        full = [k for k, w in enumerate(self.windows) if w.whole]
        itemsize = self.dtype.itemsize
        addresses = [int(w.tokens.__array_interface__["data"][0]) for w in self.windows]
        alike = all(w.tokens.dtype == self.dtype and w.tokens.flags.c_contiguous for w in self.windows)
        lowest = min((addresses[k] for k in full), default=0)
        aligned = all((addresses[k] - lowest) % itemsize == 0 for k in full)
        offset_K = np.zeros(len(self.windows), dtype=np.int64)
        if self.length * itemsize < _LONG_BYTES or not (full and alike and aligned):
            return None, offset_K
        offset_K[full] = [(addresses[k] - lowest) // itemsize for k in full]
        self._safe = int(offset_K[full[0]])
        base = self.windows[min(full, key=lambda k: addresses[k])].tokens
        rows = max(int(offset_K[k]) + self.windows[k].whole * self.length for k in full) - self.length + 1
        return as_strided(base, shape=(rows, self.length), strides=(itemsize, itemsize), writeable=False), offset_K


def document_ordinals(windows: Sequence[Windows], domain_B: IntArray, window_B: IntArray, length: int) -> IntArray:
    """(B, L) ordinal of each token's document within its row, from 0; padding counts as one more document."""
    begins_BL = np.zeros((len(domain_B), length), dtype=np.int64)
    for domain in np.unique(domain_B):
        source = windows[domain]
        rows = np.flatnonzero(domain_B == domain)
        begin = window_B[rows] * length
        filled = source.filled(window_B[rows])
        starts = source.pool.document_starts
        low = np.searchsorted(starts, begin, side="right")
        number = np.searchsorted(starts, begin + filled, side="left") - low
        row = np.repeat(np.arange(len(rows)), number)
        which = np.arange(len(row)) + np.repeat(low - (np.cumsum(number) - number), number)
        begins_BL[rows[row], starts[which] - begin[row]] = 1
        padded = filled < length
        begins_BL[rows[padded], filled[padded]] = 1
    return np.cumsum(begins_BL, axis=1)

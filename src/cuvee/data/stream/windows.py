"""Windows: a domain cut into pieces of L tokens, the last one padded.

An epoch therefore contains every token exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from cuvee.core.arrays import IntArray
from cuvee.data.corpus.pool import TokenPool

TokenArray = npt.NDArray[Any]

_LONG_BYTES = 512


class Windows:
    """The ⌈N/L⌉ windows of one pool.

    Window w holds tokens [w L, (w+1) L); the last may hold fewer than L.
    """

    def __init__(self, pool: TokenPool, length: int) -> None:
        self.pool = pool
        self.length = length
        self.tokens: TokenArray = np.asarray(pool.tokens)
        self.whole = len(self.tokens) // length
        self.whole_WL = self.tokens[: self.whole * length].reshape(self.whole, length)
        self.tail = self.tokens[self.whole * length :]

    def __reduce__(self) -> tuple[Any, ...]:
        return Windows, (self.pool, self.length)

    def __len__(self) -> int:
        return self.whole + (len(self.tail) > 0)

    def padded_tail(self) -> TokenArray:
        """Return (L,) the last, short window, padded with the pool's last token, an end of text."""
        return np.concatenate([self.tail, np.full(self.length - len(self.tail), self.tail[-1])])

    def filled(self, window_N: IntArray) -> IntArray:
        """Return (N,) the number of tokens of each window that are not padding."""
        return np.minimum(len(self.tokens) - window_N * self.length, self.length)


class Reader:
    """Reads windows of many pools, if possible in one numpy operation for all pools.

    Pools are files mapped at page boundaries. The address space from the lowest to the highest
    mapping can then be viewed as one array whose rows are windows. If the distances are not
    multiples of a window, it can still be viewed as one array with a row beginning at every token.
    Only addresses of whole windows are read from it, and `windows` keeps each pool alive.
    """

    def __init__(self, windows: Sequence[Windows], length: int) -> None:
        self.windows = windows
        self.length = length
        self.dtype = (
            np.result_type(*(w.tokens.dtype for w in windows)) if windows else np.dtype(np.uint16)
        )
        self._whole_K = np.array([w.whole for w in windows], dtype=np.int64)
        self._tails = any(w.tail.size for w in windows)
        self._step, self._first_K, self._one = self._as_one_array()

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild the reader from the copied windows: the array spans memory of other objects."""
        return Reader, (self.windows, self.length)

    @property
    def by_row(self) -> bool:
        """Whether rows can be read in any order at the same cost.

        Otherwise it is faster to read many rows at once, sorted by domain (`read_sorted`).
        """
        return self._one is not None

    def rows(self, domain: IntArray, window: IntArray) -> IntArray:
        """Return the index of each window in the one array; arguments may have any shape.

        Windows with padding get the index of an arbitrary whole window.
        """
        assert self._one is not None
        row = self._first_K.take(domain) + window * self._step
        if self._tails:
            row[self.short(domain, window)] = self._safe
        return row

    def read_rows(self, row_N: IntArray) -> TokenArray:
        """Return (N, L) tokens at indices from `rows`. The caller replaces windows with padding."""
        assert self._one is not None
        return self._one.take(row_N, axis=0, mode="clip") if self._step == 1 else self._one[row_N]

    def short(self, domain: IntArray, window: IntArray) -> npt.NDArray[np.bool_]:
        """Return which windows contain padding."""
        if not self._tails:
            return np.zeros(domain.shape, dtype=np.bool_)
        mask: npt.NDArray[np.bool_] = window == self._whole_K.take(domain)
        return mask

    def tail(self, domain: int) -> TokenArray:
        """Return (L,) the window of a domain that contains padding."""
        return self.windows[domain].padded_tail()

    def read_sorted(self, domain_N: IntArray, window_N: IntArray) -> TokenArray:
        """Return (N, L) tokens of windows sorted by domain, without the one array."""
        rows_NL = np.empty((len(domain_N), self.length), dtype=self.dtype)
        number_K = np.bincount(domain_N, minlength=len(self.windows))
        end_K = np.cumsum(number_K)
        for domain in np.flatnonzero(number_K * (self._whole_K > 0)).tolist():
            source = self.windows[domain]
            rows = slice(end_K[domain] - number_K[domain], end_K[domain])
            rows_NL[rows] = source.whole_WL.take(window_N[rows], axis=0, mode="clip")
        return rows_NL

    def _as_one_array(self) -> tuple[int, IntArray, TokenArray | None]:
        """Return the rows from one window to the next, the first row of each pool, and the array.

        The array is None if neither view is possible and efficient.
        """
        first_K = np.zeros(len(self.windows), dtype=np.int64)
        full = [k for k, w in enumerate(self.windows) if w.whole]
        if not full or any(
            w.tokens.dtype != self.dtype or not w.tokens.flags.c_contiguous for w in self.windows
        ):
            return 0, first_K, None
        address_K = np.array(
            [int(w.tokens.__array_interface__["data"][0]) for w in self.windows], dtype=np.int64
        )
        lowest = min(full, key=lambda k: int(address_K[k]))
        apart_K = address_K - address_K[lowest]
        token = self.dtype.itemsize
        window = self.length * token
        if not (apart_K[full] % window).any():
            step = 1
            stride = window
        elif not (apart_K[full] % token).any() and window >= _LONG_BYTES:
            step = self.length
            stride = token
        else:
            return 0, first_K, None
        first_K[full] = apart_K[full] // stride
        self._safe = int(first_K[lowest])
        rows = int((first_K + (self._whole_K - 1) * step)[full].max()) + 1
        view = as_strided(
            self.windows[lowest].tokens, (rows, self.length), (stride, token), writeable=False
        )
        return step, first_K, view


def document_ordinals(
    windows: Sequence[Windows], domain_B: IntArray, window_B: IntArray, length: int
) -> IntArray:
    """Return (B, L) the ordinal of each token's document within its row, from 0.

    Padding counts as one more document.
    """
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

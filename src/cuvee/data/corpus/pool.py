"""`TokenPool`: all tokens of one domain and split, with the offsets of its documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.data.corpus.mapped import portable


@dataclass(frozen=True, eq=False)
class TokenPool:
    """The tokens of one domain and split.

    `tokens` (N,) is a read-only, usually memory-mapped array of integer ids, uint16 or int32 if
    cuvee wrote it. Every document ends with the end-of-text token. `document_starts` (D,) holds the
    ascending offsets of the documents; the first is 0.

    A pickle or copy stores the path of the file that an array is mapped from and maps it again.
    Arrays that are not in a file are pickled by value. `reopen`, if given, is pickled in place of
    both arrays and opens the same pool from its files.
    """

    name: str
    tokens: npt.NDArray[Any]
    document_starts: npt.NDArray[np.int64]
    reopen: Callable[[], TokenPool] | None = None

    def __len__(self) -> int:
        """N, the number of tokens."""
        return len(self.tokens)

    def __copy__(self) -> TokenPool:
        """Nothing in a pool changes, so a copy shares its arrays."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenPool:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reopen is not None:
            return _reopened, (self.reopen,)
        return TokenPool, (self.name, portable(self.tokens), portable(self.document_starts))


def _reopened(reopen: Callable[[], TokenPool]) -> TokenPool:
    return reopen()

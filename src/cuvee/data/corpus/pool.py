"""`TokenPool`: the tokens of one domain and split as one flat array, with where its documents begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.data.corpus.mapped import portable


@dataclass(frozen=True, eq=False)
class TokenPool:
    """`tokens` (N,) is a read-only, usually memory-mapped array of uint16 or int32 ids in which every document ends with
    the end-of-text token; `document_starts` (D,) are the ascending offsets at which documents begin, the first of them 0.

    Pickles and copies name the file that an array is mapped from and map it again. Arrays that are in no file are pickled
    by value. `reopen`, if given, opens the same pool from its files and takes the place of both arrays in a pickle.
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

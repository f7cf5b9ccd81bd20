"""`TokenPool`: the tokens of one domain and split as one flat array, with where its documents begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class TokenPool:
    """`tokens` (N,) is a read-only, usually memory-mapped array of uint16 or int32 ids in which every document ends with
    the end-of-text token; `document_starts` (D,) are the ascending offsets at which documents begin, the first of them 0.
    """

    name: str
    tokens: npt.NDArray[Any]
    document_starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """N, the number of tokens."""
        return len(self.tokens)

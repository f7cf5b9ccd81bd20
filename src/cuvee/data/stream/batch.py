"""`Batch`: one step's rows as a rank sees them, with where each came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import IntArray


@dataclass(frozen=True, eq=False)
class Origin:
    """Where each of B rows came from: window `window_B` of pass `epoch_B` over its domain."""

    epoch_B: IntArray
    window_B: IntArray


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one rank at one global step. Labels are the same tokens; the model shifts them inside."""

    step: int
    names: tuple[str, ...]
    tokens_BL: IntArray
    domain_B: IntArray
    """Index into `names`."""
    counted_BL: npt.NDArray[np.bool_]
    """False on padding."""
    origin: Origin
    version: int
    """Version of the mixture in force, which counts the updates since the stream began."""
    mixture_digest: str
    """`Mixture.digest()` of the mixture in force."""
    log_digest: str
    """Hash chain over all updates up to `version`: ranks that agree on it agree on everything that was ever asked."""
    documents: Callable[[], IntArray] = field(repr=False)

    @cached_property
    def document_BL(self) -> IntArray:
        """Ordinal of each token's document within its row, from 0: tokens attend only to equal ordinals. Padding has its own."""
        return self.documents()

    @cached_property
    def position_BL(self) -> IntArray:
        """Position of each token in its document, as far as it lies in this row."""
        place_L = np.arange(self.document_BL.shape[1])
        begins_BL = np.diff(self.document_BL, axis=1, prepend=-1) > 0
        return place_L - np.maximum.accumulate(np.where(begins_BL, place_L, 0), axis=1)

    @property
    def domain_BL(self) -> IntArray:
        """The domain of each token. A window holds one domain, so this is `domain_B` along the row."""
        return np.broadcast_to(self.domain_B[:, None], self.tokens_BL.shape)

    def tokens_K(self) -> IntArray:
        """(K,) tokens of each domain in this rank's rows, padding not counted."""
        return np.bincount(
            self.domain_B, weights=self.counted_BL.sum(axis=1), minlength=len(self.names)
        ).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """For the trip from a loader's worker: the documents themselves instead of the pools that they are read from."""
        document_BL = self.document_BL
        return {**self.__dict__, "documents": _Ready(document_BL)}


@dataclass(frozen=True)
class _Ready:
    document_BL: IntArray

    def __call__(self) -> IntArray:
        return self.document_BL

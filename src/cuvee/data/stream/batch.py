"""`Batch`: the rows of one rank at one step, with their domains and origins."""

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
    """The origin of each of B rows: window `window_B` in pass `epoch_B` over its domain."""

    epoch_B: IntArray
    window_B: IntArray


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one rank at one global step.

    `tokens_BL` are also the labels; the model shifts them.
    """

    step: int
    names: tuple[str, ...]
    tokens_BL: IntArray
    domain_B: IntArray
    """Index into `names` of each row's domain."""
    counted_BL: npt.NDArray[np.bool_]
    """Whether a token counts in the loss; False on padding."""
    origin: Origin
    version: int
    """Version of the mixture in force: the number of updates before it."""
    mixture_digest: str
    """`Mixture.digest()` of the mixture in force."""
    log_digest: str
    """Hash chain over all updates up to `version`. Ranks with equal digests have equal logs."""
    documents: Callable[[], IntArray] = field(repr=False)

    @cached_property
    def document_BL(self) -> IntArray:
        """The ordinal of each token's document within its row, from 0.

        A token attends only to tokens with the same ordinal. Padding has an ordinal of its own.
        """
        return self.documents()

    @cached_property
    def position_BL(self) -> IntArray:
        """The position of each token in the part of its document that lies in this row."""
        place_L = np.arange(self.document_BL.shape[1])
        begins_BL = np.diff(self.document_BL, axis=1, prepend=-1) > 0
        return place_L - np.maximum.accumulate(np.where(begins_BL, place_L, 0), axis=1)

    @property
    def domain_BL(self) -> IntArray:
        """The domain of each token. A row holds one domain, so this repeats `domain_B`."""
        return np.broadcast_to(self.domain_B[:, None], self.tokens_BL.shape)

    def tokens_K(self) -> IntArray:
        """Return (K,) tokens of each domain in this rank's rows, without padding."""
        return np.bincount(
            self.domain_B, weights=self.counted_BL.sum(axis=1), minlength=len(self.names)
        ).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the document ordinals instead of the pools that they are computed from."""
        document_BL = self.document_BL
        return {**self.__dict__, "documents": _Ready(document_BL)}


@dataclass(frozen=True)
class _Ready:
    """Document ordinals that are already computed."""

    document_BL: IntArray

    def __call__(self) -> IntArray:
        return self.document_BL

"""`Batch`: the rows of one rank at one step, with their domains and origins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import IntArray

if TYPE_CHECKING:
    import torch

_IGNORED = -100  # the label that torch's cross-entropy leaves out


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

    def to(self, device: torch.device | str = "cpu") -> Tensors:
        """Return the batch as torch tensors on `device`."""
        return Tensors.of(self, device)

    def __repr__(self) -> str:
        rows, length = self.tokens_BL.shape
        read = ", ".join(
            f"{name} {n:,}" for name, n in zip(self.names, self.tokens_K().tolist(), strict=True)
        )
        return f"Batch(step {self.step}, {rows} × {length} tokens: {read})"

    def tokens_K(self) -> IntArray:
        """Return (K,) tokens of each domain in this rank's rows, without padding."""
        return np.bincount(
            self.domain_B, weights=self.counted_BL.sum(axis=1), minlength=len(self.names)
        ).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the document ordinals instead of the pools that they are computed from."""
        document_BL = self.document_BL
        return {**self.__dict__, "documents": _Ready(document_BL)}


@dataclass(frozen=True, eq=False)
class Tensors:
    """A batch as int64 tensors on one device, as Hugging Face models take them.

    batch = next(stream).to("cuda")
    loss = model(input_ids=batch.tokens_BL, labels=batch.labels_BL).loss
    """

    step: int
    tokens_BL: torch.Tensor
    labels_BL: torch.Tensor
    """The tokens, and −100 on padding. Models shift them."""
    position_BL: torch.Tensor
    """The position of each token in its document: `position_ids`."""
    domain_B: torch.Tensor
    """Index of each row's domain."""

    @classmethod
    def of(cls, batch: Batch, device: torch.device | str = "cpu") -> Tensors:
        import torch

        def tensor(values: IntArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

        labels_BL = np.where(batch.counted_BL, batch.tokens_BL, _IGNORED)
        rest = (tensor(one) for one in (labels_BL, batch.position_BL, batch.domain_B))
        return cls(batch.step, tensor(batch.tokens_BL), *rest)


@dataclass(frozen=True)
class _Ready:
    """Document ordinals that are already computed."""

    document_BL: IntArray

    def __call__(self) -> IntArray:
        return self.document_BL

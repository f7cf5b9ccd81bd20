"""`Rows`: the rows of one forward pass, with the log of mixtures under which they were drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import IntArray
from cuvee.data.stream.batch import Batch


@dataclass(frozen=True, eq=False)
class Rows:
    """B rows of L tokens for one forward pass of one rank at global step `step`."""

    step: int
    version: int
    """Version of the mixture in force."""
    log_digest: str
    """Hash chain over all mixtures up to `version`."""
    tokens_BL: Tensor
    domain_BL: Tensor
    """int64 index of each token's domain; −1 on padding."""
    counted_BL: Tensor
    """Positions whose next-token loss counts."""
    uncut: Rows | None = None
    """The whole rows, if these are some of their positions."""

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        real_BL = torch.from_numpy(np.array(batch.counted_BL))
        counted_BL = torch.zeros_like(real_BL)
        counted_BL[:, :-1] = real_BL[:, :-1] & real_BL[:, 1:]
        domain_BL = torch.from_numpy(np.array(batch.domain_BL))
        return cls(
            batch.step,
            batch.version,
            batch.log_digest,
            torch.from_numpy(batch.tokens_BL),
            domain_BL.masked_fill(~real_BL, -1),
            counted_BL,
        )

    def at(self, positions_T: Tensor) -> Rows:
        """Return the (B, T) part of the rows that a context-parallel rank holds.

        `counted_BL` was made from whole rows: the label of a part's last position, the next token,
        may lie on another rank. So shift labels before you split them.
        """
        names = ("tokens_BL", "domain_BL", "counted_BL")
        parts = {name: getattr(self, name)[:, positions_T] for name in names}
        return replace(self, **parts, uncut=self)

    def digest(self) -> bytes:
        """Return the sha256 of the tokens of the whole rows."""
        tokens_BL = (self.uncut or self).tokens_BL
        return hashlib.sha256(tokens_BL.cpu().numpy().tobytes()).digest()

    def tokens_K(self, domains: int) -> IntArray:
        """Return (K,) tokens of each domain, without padding."""
        counts: IntArray = (
            torch.bincount(self.domain_BL[self.domain_BL >= 0], minlength=domains).cpu().numpy()
        )
        return counts

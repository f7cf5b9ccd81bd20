"""`Rows`: the rows of one forward pass, with the log of mixtures under which they were drawn."""

from __future__ import annotations

from dataclasses import dataclass

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

    def tokens_K(self, domains: int) -> IntArray:
        """Return (K,) tokens of each domain, without padding."""
        counts: IntArray = (
            torch.bincount(self.domain_BL[self.domain_BL >= 0], minlength=domains).cpu().numpy()
        )
        return counts

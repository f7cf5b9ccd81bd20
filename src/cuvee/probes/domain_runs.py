"""`DomainRuns`: which runs of consecutive positions of a micro-batch belong to which domain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SHORT_RUN = 128
"""In tokens. For shorter runs, sorting positions first is faster than one product per run.

The time of such a small matrix product is dominated by reading and writing its result.
"""


@dataclass(frozen=True)
class DomainRuns:
    """The T = B·L positions of a micro-batch, row by row, cut where the domain changes."""

    runs: tuple[tuple[int, int, int], ...]
    """(domain, start, stop) of each run. Together the runs cover 0…T."""
    order_T: Tensor | None
    """If not None, reorder the positions by it first. Then there is one run per domain."""

    @property
    def positions(self) -> int:
        return self.runs[-1][2] if self.runs else 0

    @classmethod
    def of(cls, domain_BL: Tensor) -> DomainRuns:
        """Find the runs of equal domain. If they are short on average, sort positions by domain.

        Nothing is copied for batches in which each row has one domain, such as cuvee's own. The
        domain ids are copied to the CPU once per micro-batch, because they decide which matrix
        products are launched.
        """
        domain_T = domain_BL.detach().cpu().numpy().reshape(-1)
        runs = _runs(domain_T)
        if len(runs) * _SHORT_RUN <= len(domain_T) or len(runs) == len(np.unique(domain_T)):
            return cls(runs, None)
        order_T = np.argsort(domain_T, kind="stable")
        return cls(_runs(domain_T[order_T]), torch.from_numpy(order_T).to(domain_BL.device))

    def flat(self, x_BLD: Tensor) -> Tensor:
        """Return the positions of `x_BLD` in the order of `runs`, as (T, D)."""
        x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
        return x_TD if self.order_T is None else x_TD.index_select(0, self.order_T)


def _runs(domain_T: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    if len(domain_T) == 0:
        return ()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(domain_T)) + 1])
    stops = np.append(starts[1:], len(domain_T))
    return tuple(zip(domain_T[starts].tolist(), starts.tolist(), stops.tolist(), strict=True))

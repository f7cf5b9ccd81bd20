"""`Readable`: what a run may still read of each domain, as ceilings of the next mixture.

    c_k = L_k / R      L_k tokens may still be read of the domain, R tokens of the run are to come

A domain of n_k tokens may be read min(cap of the run, `most`) · n_k tokens. Up to about four passes
over a text, a repeated token is worth nearly as much as a new one; later passes are worth ever less
(Muennighoff et al. 2023, arXiv:2305.16264). A learned policy that has not seen scarce domains
therefore stays below `most` passes, spread evenly over the run, whatever the caps of the run allow.
"""

from __future__ import annotations

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import available_K
from cuvee.core.epochs import EpochCaps, allowed, caps_K
from cuvee.core.trajectory import Trajectory
from cuvee.policies.guard.epochs import EpochBudget
from cuvee.policies.pacing import fill

MOST_EPOCHS = 4.0
"""Passes over a text up to which a repeated token is worth nearly as much as a new one."""


class Readable:
    """Limits mixtures in a run of `tokens` tokens with the epoch caps `epochs`.

    No domain is read more than `most` times. None is no such limit. Counts incrementally.
    """

    def __init__(self, epochs: EpochCaps, tokens: int, most: float | None = MOST_EPOCHS) -> None:
        self._epochs = epochs
        self._tokens = tokens
        self._most = np.inf if most is None else most
        self._budget = EpochBudget()

    def ceilings(self, so_far: Trajectory) -> FloatArray:
        """Return (K,) the largest shares of the next interval, infinite without a limit."""
        epochs_K = np.minimum(caps_K(self._epochs, so_far.names), self._most)
        forecast = self._budget.forecast(so_far)
        to_come = self._tokens if forecast.to_come is None else forecast.to_come
        left_K = allowed(epochs_K, available_K(so_far.domains)) - forecast.drawn_K
        return np.asarray(np.maximum(left_K, 0.0) / max(to_come, 1.0))

    def limit(self, so_far: Trajectory, weights_K: FloatArray) -> FloatArray:
        """Return the mixture (K,) that is below the ceilings and else in proportion to `weights_K`.

        What a ceiling takes from a domain goes to the other domains. If all ceilings together leave
        a part of the interval over, they are raised by the same factor.
        """
        limited_K = fill(weights_K, self.ceilings(so_far), 1.0)
        total = float(limited_K.sum())
        return limited_K / total if total > 0 else weights_K

"""`GainEstimate`: which domains help the objective, and how certain that is.

It sums the measurements of the probe "target_gain" (`probes.target_gain`):

    m_k   mean gain of the rows of domain k; older intervals have weight `kept`, `kept`², …
    s_k   its standard error, from the variance of rows within domains
    τ²    variance of the true gains between domains, by moments (DerSimonian and Laird 1986)
    z_k   = τ (m_k − μ) / (τ² + s_k²), the standardised gain, shrunken towards the mean μ

z is the posterior mean over τ (empirical Bayes, James and Stein 1961). If the rows tell the domains
apart, z is m standardised. If they do not, τ is 0 and so is z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.protocols import State
from cuvee.core.signals import Measured, Signals
from cuvee.probes.target_gain import NAME, ROWS, SQUARE


class RowGains(NamedTuple):
    """The gains of one interval: mean and mean square (K,) of each domain's rows, and their number."""

    mean: Measured
    square: Measured
    rows_K: FloatArray


def row_gains(signals: Signals, noise: int | None = None) -> RowGains | None:
    """Return what "target_gain" measured in an interval, or None if it did not.

    With `noise`, a seed, the gains are replaced by standard normal ones of as many rows.
    """
    mean = signals.probes.get(NAME)
    square = signals.probes.get(SQUARE)
    rows = signals.probes.get(ROWS)
    if mean is None or square is None or rows is None:
        return None
    if noise is None:
        return RowGains(mean, square, rows.values)
    rng = np.random.default_rng([noise, signals.step])
    noise_K = rng.normal(size=len(rows.values)) / np.sqrt(np.maximum(rows.values, 1.0))
    ones_K = np.ones(len(rows.values))
    return RowGains(Measured(noise_K, mean.present), Measured(ones_K, mean.present), rows.values)


class Gains(NamedTuple):
    """How the true gains of domains differ: their mean μ, deviation τ, and z (K,)."""

    centre: float
    deviation: float
    z_K: FloatArray


class GainEstimate:
    """Decayed sums by name, so that domains may join and leave.

    `kept` is the weight of an interval after one more interval. `noise` as in `row_gains`.
    """

    def __init__(self, kept: float = 0.97, noise: int | None = None) -> None:
        self._kept = kept
        self._noise = noise
        # Of each domain: rows, Σ x, Σ x², and rows weighted by the squared weights.
        self._names: tuple[str, ...] = ()
        self._sums_4K = np.zeros((4, 0))

    def add(self, signals: Signals) -> None:
        """Add the gains of one interval, if they were measured."""
        gains = row_gains(signals, self._noise)
        if gains is None:
            return
        n_K = gains.rows_K
        new_4K = np.stack([n_K, n_K * gains.mean.values, n_K * gains.square.values, n_K])
        now = set(signals.names)
        gone = [name for name in self._names if name not in now]
        names = (*signals.names, *gone)
        decay_41 = np.array([[self._kept], [self._kept], [self._kept], [self._kept**2]])
        old_4K = self._of(names)
        old_4K[:, : len(n_K)] = decay_41 * old_4K[:, : len(n_K)] + new_4K
        self._names = names
        self._sums_4K = old_4K

    def moments(self, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Return means (K,) and standard errors (K,), infinite for fewer than two rows."""
        sums_4K = self._of(names)
        rows_K = np.maximum(sums_4K[0], 1e-12)
        effective_K = sums_4K[0] ** 2 / np.maximum(sums_4K[3], 1e-12)
        known_K = effective_K >= 2.0
        error_K = self.row_deviation(names) / np.sqrt(np.maximum(effective_K, 1e-12))
        return np.where(known_K, sums_4K[1] / rows_K, 0.0), np.where(known_K, error_K, np.inf)

    def row_deviation(self, names: Sequence[str]) -> float:
        """Return the standard deviation of rows within domains.

        One number for all domains, because the few rows of one domain do not determine its own.
        """
        rows_K, sum_K, square_K, weight_K = self._of(names)
        within_K = np.maximum(square_K - sum_K**2 / np.maximum(rows_K, 1e-12), 0.0)
        freedom_K = rows_K - weight_K / np.maximum(rows_K, 1e-12)
        known_K = rows_K**2 >= 2.0 * weight_K
        return float(np.sqrt(within_K[known_K].sum() / max(freedom_K[known_K].sum(), 1e-12)))

    def gains(self, names: Sequence[str], among_K: BoolArray) -> Gains:
        """Return the shrunken gains among the domains of `among_K`; z is 0 for the others."""
        return shrunken(*self.moments(names), among_K)

    def _of(self, names: Sequence[str]) -> FloatArray:
        """Return a copy of the sums of these domains, 0 for unknown ones."""
        if self._names == tuple(names):
            return self._sums_4K.copy()
        place = {name: k for k, name in enumerate(self._names)}
        known = [i for i, name in enumerate(names) if name in place]
        sums_4K = np.zeros((4, len(names)))
        sums_4K[:, known] = self._sums_4K[:, [place[names[i]] for i in known]]
        return sums_4K

    def state_dict(self) -> State:
        return {"names": list(self._names), "sums": self._sums_4K.copy()}

    def load_state_dict(self, state: State) -> None:
        sums = state["sums"]
        if isinstance(sums, Mapping):  # of earlier versions: an array for each domain
            self._names = tuple(sums)
            self._sums_4K = np.array([sums[name] for name in sums]).reshape(-1, 4).T.copy()
        else:
            self._names = tuple(state["names"])
            self._sums_4K = np.array(sums)


def shrunken(mean_K: FloatArray, error_K: FloatArray, among_K: BoolArray) -> Gains:
    """Return μ, τ and z over the domains of `among_K` with a finite standard error.

    With fewer than three such domains, τ and z are 0.
    """
    used_K = among_K & np.isfinite(error_K) & (error_K > 0)
    z_K = np.zeros(len(mean_K))
    if used_K.sum() < 3:
        return Gains(0.0, 0.0, z_K)
    mean = mean_K[used_K]
    square = error_K[used_K] ** 2
    weight = 1.0 / square
    centre = float(weight @ mean / weight.sum())
    excess = float(weight @ (mean - centre) ** 2) - (len(mean) - 1)
    between = max(excess / float(weight.sum() - weight @ weight / weight.sum()), 0.0)
    weight = 1.0 / (between + square)
    centre = float(weight @ mean / weight.sum())
    z_K[used_K] = np.sqrt(between) * (mean - centre) * weight
    return Gains(centre, float(np.sqrt(between)), z_K)

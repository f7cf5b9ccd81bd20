"""`GainEstimate`: which domains help the objective, and how certain that is.

It sums the measurements of the probe "target_gain" (`probes.target_gain`):

    m_k   mean gain of the rows of domain k; older rows count less
    s_k   its standard error, from the variance of rows within domains
    μ + δ_k    the true gain. Its prior is δ ~ Σ_j p_j N(0, σ_j²) over a grid of σ that begins with
               0. Expectation maximisation fits p and μ (adaptive shrinkage, Stephens 2017)
    τ²    mean of δ_k² after the rows are seen
    z_k   = E[δ_k] / τ, the standardised gain
    h_k   = P[μ + δ_k > min(0, μ − τ)], the probability that the domain does no harm

If the rows tell the domains apart, z is m standardised. If they do not (Cochran's Q is no larger
than its degrees of freedom), τ and z are 0 and h is 1. A normal prior would be too wide where a few
domains harm and all others are alike: it would follow the noise of those.

h is for such domains. Where most domains help, it is the probability of a gain above 0. Where no
domain helps, as for a scarce target late in a run, somebody has to be read, and h only lowers those
that are far below the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.protocols import State
from cuvee.core.signals import Measured, Signals
from cuvee.probes.target_gain import NAME, ROWS, SQUARE

_ROUNDS = 100  # of expectation maximisation


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
    """How the true gains of domains differ: their centre μ, deviation τ, z (K,) and h (K,)."""

    centre: float
    deviation: float
    z_K: FloatArray
    helps_K: FloatArray


class GainEstimate:
    """Decayed sums by name, so that domains may join and leave.

    `kept` is the weight of an interval after one more interval, for a domain with a mean number of
    rows. A domain that is hardly read keeps what is known of it. `noise` as in `row_gains`.
    """

    def __init__(self, kept: float = 0.97, noise: int | None = None) -> None:
        self._kept = kept
        self._noise = noise
        # Of each domain: rows, Σ x, Σ x², and rows weighted by the squared weights.
        self._names: tuple[str, ...] = ()
        self._sums_4K = np.zeros((4, 0))
        self._found: tuple[tuple[tuple[str, ...], bytes], Gains] | None = None

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
        # A domain that was hardly read keeps what is known of it.
        kept_K = self._kept ** np.minimum(n_K / max(n_K.mean(), 1e-12), 1.0)
        decay_4K = np.stack([kept_K, kept_K, kept_K, kept_K**2])
        old_4K = self._of(names)
        old_4K[:, : len(n_K)] = decay_4K * old_4K[:, : len(n_K)] + new_4K
        self._names = names
        self._sums_4K = old_4K
        self._found = None

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
        asked = (tuple(names), among_K.tobytes())
        if self._found is None or self._found[0] != asked:
            self._found = asked, shrunken(*self.moments(names), among_K)
        return self._found[1]

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
        self._found = None
        sums = state["sums"]
        if isinstance(sums, Mapping):  # of earlier versions: an array for each domain
            self._names = tuple(sums)
            self._sums_4K = np.array([sums[name] for name in sums]).reshape(-1, 4).T.copy()
        else:
            self._names = tuple(state["names"])
            self._sums_4K = np.array(sums)


def shrunken(mean_K: FloatArray, error_K: FloatArray, among_K: BoolArray) -> Gains:
    """Return μ, τ and z over the domains of `among_K` with a finite standard error.

    With fewer than three such domains, and if their means differ no more than their errors explain,
    τ and z are 0.
    """
    used_K = among_K & np.isfinite(error_K) & (error_K > 0)
    z_K = np.zeros(len(mean_K))
    helps_K = np.ones(len(mean_K))
    if used_K.sum() < 3:
        return Gains(0.0, 0.0, z_K, helps_K)
    mean = mean_K[used_K]
    square = error_K[used_K] ** 2
    weight = 1.0 / square
    centre = float(weight @ mean / weight.sum())
    if float(weight @ (mean - centre) ** 2) <= len(mean) - 1:
        return Gains(centre, 0.0, z_K, helps_K)
    found = _posterior(mean, square)
    deviation = float(np.sqrt(found.square_N.sum() / (len(mean) - 1)))
    z_K[used_K] = found.effect_N / deviation
    helps_K[used_K] = found.above(min(0.0, found.centre - deviation))
    return Gains(found.centre, deviation, z_K, helps_K)


class _Posterior(NamedTuple):
    """Of the true gains: their centre, and of each domain N and component J of the prior its
    probability, mean difference from the centre and variance."""

    centre: float
    odds_NJ: FloatArray
    effect_NJ: FloatArray
    variance_NJ: FloatArray

    @property
    def effect_N(self) -> FloatArray:
        """Posterior means (N,) of the differences from the centre."""
        mean_N: FloatArray = (self.odds_NJ * self.effect_NJ).sum(axis=1)
        return mean_N

    @property
    def square_N(self) -> FloatArray:
        """Posterior means (N,) of the squared differences from the centre."""
        mean_N: FloatArray = (self.odds_NJ * (self.effect_NJ**2 + self.variance_NJ)).sum(axis=1)
        return mean_N

    def above(self, least: float) -> FloatArray:
        """Posterior probabilities (N,) of a gain above `least`."""
        from scipy.special import ndtr  # slow to import

        distance_NJ = self.centre + self.effect_NJ - least
        scale_NJ = np.sqrt(np.maximum(self.variance_NJ, 1e-24))
        above_N: FloatArray = (self.odds_NJ * ndtr(distance_NJ / scale_NJ)).sum(axis=1)
        return above_N


def _posterior(mean_N: FloatArray, square_N: FloatArray) -> _Posterior:
    """Fit the prior of N domains, given their mean gains and squared standard errors.

    The prior is a mixture of normal distributions N(0, σ_j²) over a grid of σ that begins with 0.
    Expectation maximisation fits its weights and μ.
    """
    centre = float(np.median(mean_N))
    furthest = float(np.abs(mean_N - centre).max())
    least = max(float(np.sqrt(np.median(square_N))) / 4, furthest / 2**20)
    number = 2 + int(np.ceil(2 * np.log2(max(furthest / least, 1.0))))
    prior_J = np.concatenate([[0.0], least * 2 ** (np.arange(number) / 2)]) ** 2
    total_NJ = prior_J + square_N[:, None]
    precision_NJ = 1.0 / total_NJ
    level_NJ = -0.5 * np.log(total_NJ)
    share_J = np.full(len(prior_J), 1.0 / len(prior_J))
    for _ in range(_ROUNDS):
        log_NJ = level_NJ - 0.5 * ((mean_N - centre) ** 2)[:, None] * precision_NJ
        log_NJ += np.log(np.maximum(share_J, 1e-300))
        odds_NJ = np.exp(log_NJ - log_NJ.max(axis=1, keepdims=True))
        odds_NJ /= odds_NJ.sum(axis=1, keepdims=True)
        share_J = odds_NJ.sum(axis=0)
        share_J[0] += 1.0  # one more domain that does not differ: the penalty of Stephens 2017
        share_J /= share_J.sum()
        weight_N = np.einsum("nj,nj->n", odds_NJ, precision_NJ)
        centre = float(weight_N @ mean_N / weight_N.sum())
    kept_NJ = prior_J / total_NJ
    effect_NJ = kept_NJ * (mean_N[:, None] - centre)
    return _Posterior(centre, odds_NJ, effect_NJ, kept_NJ * square_N[:, None])

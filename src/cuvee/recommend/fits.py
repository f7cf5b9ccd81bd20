"""From the mixtures of runs to their metrics: several regressions, weighted by how well they
predict runs left out.

gaussian_process, lightgbm, log_linear    of `methods.regmix.fit`; one fit for each metric
constant                                  the mean of all runs, for metrics without an effect
dynamics_model                            `simulation.dynamics_model`, for whole trajectories

A run of P phases is described by its mean mixture, and by the mixtures of its later phases if order
matters. Whether it does is decided by cross-validation: the phases must reduce the squared error on
runs left out by more than chance explains.

The weights of the fits minimise the squared error on runs left out (stacking, Wolpert 1992).
Intervals are those of the Gaussian process, widened or narrowed until nine of ten runs left out are
inside (conformal prediction, Vovk et al. 2005).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray, IntArray
from cuvee.evaluation.ranks import RankCorrelation, rank_correlation
from cuvee.evaluation.statistics import Estimate, bootstrap_mean
from cuvee.methods.regmix.fit import FITS, Prediction, folds
from cuvee.methods.regmix.gaussian_process import GaussianProcess
from cuvee.recommend.table import Runs
from cuvee.simulation.dynamics_model import Regression

LEVEL = 0.9
"""Of every interval."""

CONSTANT = "constant"
"""The fit that predicts the mean of all runs."""

_NORMAL = 1.6448536269514722  # deviations of a normal distribution within which LEVEL of it lies
_LEAST_FOR_TREES = 50  # LightGBM splits no leaf of fewer than 20 runs


@dataclass(frozen=True)
class Evidence:
    """How the fits did on runs that they had not seen.

    `regret` is by how much the run picked among a fold's runs is worse than the best of them, as a
    mean over folds, in units of the objective; `regret_of_chance` is that of a random pick.
    `coverage` is the share of runs inside their interval, whose width was set without them. `noise`
    is a run's standard deviation by metric; `noise_measured` says whether it comes from repeated
    runs or is the process's estimate.
    """

    ranks: RankCorrelation
    ranks_by_metric: Mapping[str, float]
    ranks_by_fit: Mapping[str, float]
    regret: float
    regret_of_chance: float
    coverage: float
    noise: Mapping[str, float]
    noise_measured: bool
    weights: Mapping[str, Mapping[str, float]]
    order: Estimate | None
    """Squared error without phases less that with phases, standardised; None where no run moves."""


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Predicts the metrics of new runs (M, P, K).

    `costs_D` are the metrics' weights in the objective, which is minimised. `factor_D` and
    `factor` calibrate the deviations of metrics and of the objective; `least_D` and `least` are the
    least half widths of their intervals.
    """

    metrics: tuple[str, ...]
    costs_D: FloatArray
    shares_P: FloatArray
    order: bool
    fits: Mapping[str, Sequence[Prediction]]
    weights_DF: FloatArray
    noise_D: FloatArray
    factor_D: FloatArray
    factor: float
    least_D: FloatArray
    least: float
    evidence: Evidence

    def means(self, paths_MPK: FloatArray) -> FloatArray:
        """(M, D)"""
        return np.stack([self._mean(paths_MPK, d) for d in range(len(self.metrics))], axis=1)

    def half_widths(self, paths_MPK: FloatArray) -> FloatArray:
        """Return the (M, D) half widths of the intervals of metrics, with the noise of a run."""
        found = [
            np.sqrt(process.deviation(self._features(paths_MPK)) ** 2 + noise**2)
            for process, noise in zip(self.processes, self.noise_D, strict=True)
        ]
        return np.maximum(np.stack(found, axis=1) * self.factor_D, self.least_D)

    def objective(self, paths_MPK: FloatArray) -> FloatArray:
        """(M,)"""
        valued = [self.costs_D[d] * self._mean(paths_MPK, d) for d in self._valued]
        return np.asarray(np.sum(valued, axis=0))

    def deviation(self, paths_MPK: FloatArray) -> FloatArray:
        """Return the (M,) calibrated standard deviation of the expected objective.

        It does not include the noise of a run.
        """
        x_MF = self._features(paths_MPK)
        squared = [
            np.square(self.costs_D[d] * self.processes[d].deviation(x_MF)) for d in self._valued
        ]
        return np.asarray(np.sqrt(np.sum(squared, axis=0)) * self.factor / _NORMAL)

    def objective_half_width(self, paths_MPK: FloatArray) -> FloatArray:
        """Return the (M,) half widths of the objective's intervals, with the noise of a run."""
        known_M = self.deviation(paths_MPK) * _NORMAL / self.factor
        return np.maximum(np.sqrt(known_M**2 + self.noise_variance) * self.factor, self.least)

    def difference(self, ours_PK: FloatArray, theirs_PK: FloatArray) -> Estimate:
        """Return our objective minus theirs, with a paired interval.

        Errors that both predictions share cancel.
        """
        both = np.stack([ours_PK, theirs_PK])
        x_2F = self._features(both)
        apart = np.array([1.0, -1.0])
        variance = sum(
            self.costs_D[d] ** 2 * float(apart @ self.processes[d].covariance(x_2F, x_2F) @ apart)
            for d in self._valued
        )
        mean = float(apart @ self.objective(both))
        width = float(np.sqrt(max(variance, 0.0))) * self.factor
        return Estimate(mean, mean - width, mean + width, self.evidence.ranks.runs, LEVEL)

    def covariance(self, paths_MPK: FloatArray, other_PK: FloatArray) -> FloatArray:
        """(M,) calibrated covariance of the objective's expectation with that of another path."""
        x_MF, other_1F = self._features(paths_MPK), self._features(other_PK[None])
        summed_M = np.sum(
            [
                self.costs_D[d] ** 2 * self.processes[d].covariance(x_MF, other_1F)[:, 0]
                for d in self._valued
            ],
            axis=0,
        )
        return np.asarray(summed_M * (self.factor / _NORMAL) ** 2)

    @property
    def noise_variance(self) -> float:
        """Of a run's objective."""
        return float(np.square(self.costs_D * self.noise_D).sum())

    @property
    def processes(self) -> Sequence[GaussianProcess]:
        """The Gaussian process of each metric."""
        return [fit for fit in self.fits["gaussian_process"] if isinstance(fit, GaussianProcess)]

    @property
    def _valued(self) -> IntArray:
        return np.flatnonzero(self.costs_D)

    def _features(self, paths_MPK: FloatArray) -> FloatArray:
        return features(paths_MPK, self.shares_P, self.order)

    def _mean(self, paths_MPK: FloatArray, d: int) -> FloatArray:
        x_MF = self._features(paths_MPK)
        mean_M = np.zeros(len(paths_MPK))
        for weight, (name, fits) in zip(self.weights_DF[d], self.fits.items(), strict=True):
            if weight > 0:
                mean_M += weight * fits[d](paths_MPK if name == "dynamics_model" else x_MF)
        return mean_M


def features(paths_MPK: FloatArray, shares_P: FloatArray, order: bool) -> FloatArray:
    """(M, K) mean mixtures; with `order`, followed by those of the second and later phases: (M,
    P·K).
    """
    mean_MK = np.einsum("mpk,p->mk", paths_MPK, shares_P)
    if not order:
        return np.asarray(mean_MK)
    return np.concatenate([mean_MK, paths_MPK[:, 1:].reshape(len(paths_MPK), -1)], axis=1)


@dataclass(frozen=True, eq=False)
class _Unseen:
    """Predictions for each run by fits that did not see it.

    `means` (N, D) are by fit. `spread_ND` is the Gaussian process's standard deviation. `parts` are
    the rows of each fold.
    """

    means: Mapping[str, FloatArray]
    spread_ND: FloatArray
    parts: Sequence[IntArray]


def fit_surrogate(
    runs: Runs, costs: Mapping[str, float], names: Sequence[str] | None = None
) -> Surrogate:
    """Fits `names` (default: all that are installed and have enough runs) and weighs them.

    `runs` are usable ones.
    """
    costs_D = np.array([costs.get(name, 0.0) for name in runs.metrics])
    order, compared = _order_matters(runs, costs_D)
    names = list(names or _available(runs))
    unseen = _cross_validated(runs, names, order)
    fitted = _fit_all(runs, names, order)
    weights_DF = _stacked(runs.values_ND, list(unseen.means.values()))
    blended_ND = np.einsum("fnd,df->nd", np.stack(list(unseen.means.values())), weights_DF)
    measured_D = runs.noise_D()
    estimated_D = np.array([_noise(fit) for fit in fitted["gaussian_process"]])
    noise_D = estimated_D if measured_D is None else measured_D
    errors_ND = runs.values_ND - blended_ND
    pairs = zip(errors_ND.T, unseen.spread_ND.T, strict=True)
    valued = np.asarray(costs_D != 0)
    spread_N = np.sqrt(np.square(unseen.spread_ND[:, valued] * costs_D[valued]).sum(axis=1))
    errors_N = errors_ND[:, valued] @ costs_D[valued]
    return Surrogate(
        metrics=runs.metrics,
        costs_D=costs_D,
        shares_P=runs.shares_P,
        order=order,
        fits=fitted,
        weights_DF=weights_DF,
        noise_D=noise_D,
        factor_D=np.array([_factor(errors_N, spread_N) for errors_N, spread_N in pairs]),
        factor=_factor(errors_N, spread_N),
        least_D=np.array([_least(one_N, measured_D) for one_N in errors_ND.T]),
        least=_least(errors_N, measured_D),
        evidence=Evidence(
            **_objective_evidence(runs, unseen, blended_ND, costs_D, spread_N),
            ranks_by_metric=_ranks(runs.metrics, blended_ND, runs.values_ND),
            noise=dict(zip(runs.metrics, noise_D.tolist(), strict=True)),
            noise_measured=measured_D is not None,
            weights={
                metric: dict(zip(names, weights_F.tolist(), strict=True))
                for metric, weights_F in zip(runs.metrics, weights_DF, strict=True)
            },
            order=compared,
        ),
    )


def _cross_validated(runs: Runs, names: Sequence[str], order: bool) -> _Unseen:
    """Repeats of one mixture are left out together."""
    means = {name: np.full_like(runs.values_ND, np.nan) for name in names}
    spread_ND = np.full_like(runs.values_ND, np.nan)
    parts = []
    for out, kept in folds(runs.groups_N):
        paths = runs.mixtures_NPK[out]
        x_MF = features(paths, runs.shares_P, order)
        for name, fits in _fit_all(runs.only(kept), names, order).items():
            x = paths if name == "dynamics_model" else x_MF
            means[name][out] = np.stack([fit(x) for fit in fits], axis=1)
            if name == "gaussian_process":
                spread_ND[out] = np.stack([_run_deviation(fit, x) for fit in fits], axis=1)
        parts.append(out)
    return _Unseen(means, spread_ND, parts)


def _objective_evidence(
    runs: Runs, unseen: _Unseen, blended_ND: FloatArray, costs_D: FloatArray, spread_N: FloatArray
) -> dict[str, Any]:
    """The parts of `Evidence` that are about the objective, over the runs that have all of its
    metrics.
    """
    valued = np.asarray(costs_D != 0)
    whole_N = _whole(runs, valued)
    parts = [out[whole_N[out]] for out in unseen.parts if whole_N[out].any()]
    real_N = runs.values_ND[:, valued] @ costs_D[valued]
    seen_N = blended_ND[:, valued] @ costs_D[valued]
    best = np.mean([real_N[out].min() for out in parts])
    picked = np.mean([real_N[out][seen_N[out].argmin()] for out in parts])
    by_chance = np.mean([real_N[out].mean() for out in parts])
    return {
        "ranks": rank_correlation(seen_N[whole_N], real_N[whole_N]),
        "ranks_by_fit": {
            name: _rank(found[:, valued] @ costs_D[valued], real_N)
            for name, found in unseen.means.items()
            if name != CONSTANT
        },
        "regret": float(picked - best),
        "regret_of_chance": float(by_chance - best),
        "coverage": _coverage(real_N - seen_N, spread_N, parts),
    }


def _available(runs: Runs) -> list[str]:
    names = ["gaussian_process", "log_linear", CONSTANT]
    if find_spec("lightgbm") is not None and len(runs.names) >= _LEAST_FOR_TREES:
        names.append("lightgbm")
    return names + (["dynamics_model"] if runs.curves else [])


def _fit_all(runs: Runs, names: Sequence[str], order: bool) -> dict[str, list[Prediction]]:
    x_NF = features(runs.mixtures_NPK, runs.shares_P, order)
    fitted: dict[str, list[Prediction]] = {}
    for name in names:
        if name == "dynamics_model":
            fitted[name] = _dynamics(runs)
            continue
        if name == CONSTANT:
            fitted[name] = [_constant(mean) for mean in np.nanmean(runs.values_ND, axis=0)]
            continue
        fitted[name] = []
        for values_N in runs.values_ND.T:
            there_N = np.isfinite(values_N)
            fitted[name].append(FITS[name](x_NF[there_N], values_N[there_N]))
    return fitted


def _constant(mean: float) -> Prediction:
    return lambda x_MF: np.full(len(x_MF), mean)


def _dynamics(runs: Runs) -> list[Prediction]:
    """The dynamics model of whole trajectories, as one prediction for each metric of runs in phases
    (M, P, K).
    """
    regression = Regression(runs.curves, fields=len(runs.metrics))
    T = len(runs.curves[0].weights_TK)
    phase_T = np.minimum(
        np.searchsorted(np.cumsum(runs.shares_P), (np.arange(T) + 0.5) / T), len(runs.shares_P) - 1
    )

    def predict(d: int) -> Prediction:
        return lambda paths_MPK: (
            regression.start_Y[d] + regression.at_end(paths_MPK[:, phase_T])[:, d]
        )

    return [predict(d) for d in range(len(runs.metrics))]


def _order_matters(runs: Runs, costs_D: FloatArray) -> tuple[bool, Estimate | None]:
    """Whether phases predict the objective of runs left out better than their mean mixture does,
    surely.
    """
    if not runs.moves:
        return False, None
    valued = np.flatnonzero(costs_D)
    whole = runs.only(_whole(runs, valued))
    real_N = whole.values_ND[:, valued] @ costs_D[valued]
    errors = []
    for order in (False, True):
        x_NF = features(whole.mixtures_NPK, whole.shares_P, order)
        seen_N = np.zeros(len(real_N))
        for out, kept in folds(whole.groups_N):
            for d in valued:
                process = FITS["gaussian_process"](x_NF[kept], whole.values_ND[kept, d])
                seen_N[out] += costs_D[d] * process(x_NF[out])
        errors.append(np.square((real_N - seen_N) / (real_N.std() or 1.0)))
    gained = bootstrap_mean(errors[0] - errors[1])
    return gained.low is not None and gained.low > 0, gained


def _whole(runs: Runs, valued: BoolArray | IntArray) -> BoolArray:
    """(N,) the runs that have all of these metrics."""
    return np.asarray(np.isfinite(runs.values_ND[:, valued]).all(axis=1))


def _run_deviation(fit: Prediction, x_MF: FloatArray) -> FloatArray:
    assert isinstance(fit, GaussianProcess)
    return np.asarray(np.hypot(fit.deviation(x_MF), fit.noise_deviation))


def _noise(fit: Prediction) -> float:
    assert isinstance(fit, GaussianProcess)
    return fit.noise_deviation


def _stacked(values_ND: FloatArray, unseen: Sequence[FloatArray]) -> FloatArray:
    """(D, F) weights ≥ 0 that sum to 1 and minimise each metric's error on runs left out."""
    from scipy.optimize import nnls

    found = []
    for d, values_N in enumerate(values_ND.T):
        there_N = np.isfinite(values_N)
        spread = float(values_N[there_N].std()) or 1.0
        errors_NF = np.stack([one[there_N, d] - values_N[there_N] for one in unseen], axis=1)
        sure = 1e3 * np.sqrt(len(errors_NF))  # the row that makes the weights sum to 1
        system = np.vstack([errors_NF / spread, np.full(len(unseen), sure)])
        weights_F, _ = nnls(system, np.append(np.zeros(len(errors_NF)), sure))
        found.append(weights_F / weights_F.sum())
    return np.array(found)


def _factor(errors_N: FloatArray, spread_N: FloatArray) -> float:
    """The conformal factor: so many deviations hold LEVEL of the runs left out."""
    scores = np.abs(errors_N) / np.maximum(spread_N, 1e-12)
    scores = scores[np.isfinite(scores)]
    rank = min(1.0, np.ceil((len(scores) + 1) * LEVEL) / len(scores))
    return float(np.quantile(scores, rank, method="higher"))


def _least(errors_N: FloatArray, measured_D: FloatArray | None) -> float:
    """The least half width of an interval: what holds LEVEL of the errors on runs left out.

    It is 0 if noise is measured. Without repeated runs, a process cannot tell noise from a signal
    of short range. It may then take its own runs for exact, and the chosen plan is often near the
    best of them.
    """
    return _factor(errors_N, np.ones_like(errors_N)) if measured_D is None else 0.0


def _coverage(errors_N: FloatArray, spread_N: FloatArray, parts: Sequence[IntArray]) -> float:
    """The share of runs inside an interval whose factor comes from the other folds."""
    inside = []
    for out in parts:
        others = np.concatenate([part for part in parts if part is not out])
        factor = _factor(errors_N[others], spread_N[others])
        inside.append(np.abs(errors_N[out]) <= factor * spread_N[out])
    return float(np.concatenate(inside).mean())


def _ranks(metrics: Sequence[str], seen_ND: FloatArray, real_ND: FloatArray) -> dict[str, float]:
    pairs = zip(metrics, seen_ND.T, real_ND.T, strict=True)
    return {name: _rank(seen_N, real_N) for name, seen_N, real_N in pairs}


def _rank(seen_N: FloatArray, real_N: FloatArray) -> float:
    there_N = np.isfinite(real_N)
    return rank_correlation(seen_N[there_N], real_N[there_N], resamples=1).value

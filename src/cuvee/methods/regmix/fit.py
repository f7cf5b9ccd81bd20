"""From mixtures to losses: the regressions of RegMix, and how well each ranks runs that it has not seen.

lightgbm           boosted trees as published (Liu et al. 2024, arXiv 2407.01492, and its notebook): up to 1,000 trees at a
                   rate of 0.01, L2, stopped when three more do not help
log_linear         L = c + exp(k + Σ_j t_j α_j), the data mixing law (Ye et al. 2024, arXiv 2403.16952); shares sum
                   to 1, so k is a part of t
gaussian_process   `methods.regmix.gaussian_process`

Each domain's loss is fitted by itself and an objective over domains is the sum of the predictions. Fitting the objective
directly, as the paper does with its one domain, ranks much worse where domains compete: their losses cross, and the sum is flat.

Deviation: the published notebook stops LightGBM where the loss on the *held-out* runs is lowest, which lets them into the fit.
Here a fifth of the fitted runs decides how many trees, and all of them are then fitted with so many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray, IntArray
from cuvee.core.errors import ConfigError
from cuvee.evaluation.ranks import RankCorrelation, rank_correlation
from cuvee.methods.regmix.gaussian_process import fit_gaussian_process

Prediction = Callable[[FloatArray], FloatArray]
"""Mixtures (M, K) → losses (M,) of one domain."""

Fit = Callable[[FloatArray, FloatArray], Prediction]
"""Mixtures (N, K) and the losses (N,) of one domain that they led to → a prediction."""

_FOLDS = 5
_TREES, _RATE, _PATIENCE = 1000, 1e-2, 3
_ASYMPTOTES = (
    0.1,
    0.5,
    2.0,
)  # where the search for c starts: standard deviations of the losses below the lowest
_LARGEST_EXPONENT = 50.0  # no loss is e⁵⁰: a step of the search went astray, and must not overflow
_RIDGE = 1e-3  # on t, so that a domain that no run drew from has t = 0


def fit_lightgbm(mixtures_NK: FloatArray, losses_N: FloatArray) -> Prediction:
    import lightgbm

    settings = {
        "objective": "regression",
        "learning_rate": _RATE,
        "seed": 42,
        "verbosity": -1,
        "num_threads": 1,
    }
    settings |= {"deterministic": True}
    order_N = np.random.Generator(np.random.PCG64(0)).permutation(len(losses_N))
    fitted, watched = order_N[len(order_N) // _FOLDS :], order_N[: len(order_N) // _FOLDS]
    stopped = lightgbm.train(
        settings,
        lightgbm.Dataset(mixtures_NK[fitted], losses_N[fitted]),
        _TREES,
        valid_sets=[lightgbm.Dataset(mixtures_NK[watched], losses_N[watched])],
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
    trees = max(1, stopped.best_iteration)
    return partial(
        _predicted, lightgbm.train(settings, lightgbm.Dataset(mixtures_NK, losses_N), trees)
    )


def _predicted(booster: Any, mixtures_MK: FloatArray) -> FloatArray:
    return np.asarray(booster.predict(mixtures_MK), dtype=np.float64)


def fit_log_linear(mixtures_NK: FloatArray, losses_N: FloatArray) -> Prediction:
    """Least squares from several asymptotes c, each with the t that is best for ln(L − c); the best end is kept."""
    from scipy.optimize import least_squares

    N, K = mixtures_NK.shape
    spread = float(losses_N.std()) or 1.0
    ridge_KK = _RIDGE * np.eye(K)

    def residuals(parameters: FloatArray) -> FloatArray:
        return np.concatenate(
            [(_law(parameters, mixtures_NK) - losses_N) / spread, _RIDGE * parameters[1:]]
        )

    def slopes(parameters: FloatArray) -> FloatArray:
        excess_N1 = (_law(parameters, mixtures_NK) - parameters[0])[:, None]
        data = np.concatenate([np.ones((N, 1)), excess_N1 * mixtures_NK], axis=1) / spread
        return np.concatenate([data, np.concatenate([np.zeros((K, 1)), ridge_KK], axis=1)])

    ends = []
    for below in _ASYMPTOTES:
        asymptote = losses_N.min() - below * spread
        normal_KK = mixtures_NK.T @ mixtures_NK + ridge_KK
        t_K = np.linalg.solve(normal_KK, mixtures_NK.T @ np.log(losses_N - asymptote))
        start = np.concatenate([[asymptote], t_K])
        ends.append(least_squares(residuals, start, jac=slopes, method="lm", max_nfev=200))
    best = min(ends, key=lambda end: float(end.cost))
    return partial(_law, np.asarray(best.x))


def _law(parameters: FloatArray, mixtures_MK: FloatArray) -> FloatArray:
    predicted_M: FloatArray = parameters[0] + np.exp(
        np.minimum(mixtures_MK @ parameters[1:], _LARGEST_EXPONENT)
    )
    return predicted_M


FITS: dict[str, Fit] = {
    "gaussian_process": fit_gaussian_process,
    "lightgbm": fit_lightgbm,
    "log_linear": fit_log_linear,
}
"""Name in a configuration → fit."""


def check_installed(fit: str) -> None:
    """Raises `ConfigError` if what `fit` (a name of `FITS`, or "best" for all) needs is not there."""
    if fit in ("best", "lightgbm") and find_spec("lightgbm") is None:
        raise ConfigError(
            f"fit {fit} needs LightGBM: pip install 'cuvee[regression]', or use fit: gaussian_process"
        )


@dataclass(frozen=True)
class Fitted:
    """One fit for each of D domains, and how well the fits of other runs' losses ranked each run by the objective."""

    name: str
    predictions: tuple[Prediction, ...]
    ranks: RankCorrelation

    def losses(self, mixtures_MK: FloatArray) -> FloatArray:
        """(M, D)"""
        return np.stack([predict(mixtures_MK) for predict in self.predictions], axis=1)


def fit(name: str, mixtures_NK: FloatArray, losses_ND: FloatArray, values_D: FloatArray) -> Fitted:
    """Fits each domain's loss. `values_D` weighs them into the objective by which runs are ranked, here in cross-validation."""
    unseen_ND = cross_validated(FITS[name], mixtures_NK, losses_ND)
    ranks = rank_correlation(unseen_ND @ values_D, losses_ND @ values_D)
    return Fitted(name, tuple(FITS[name](mixtures_NK, losses_N) for losses_N in losses_ND.T), ranks)


def cross_validated(fit_one: Fit, mixtures_NK: FloatArray, losses_ND: FloatArray) -> FloatArray:
    """(N, D) what is predicted of each run by fits to the four fifths of the others that it is not with."""
    unseen_ND = np.empty_like(losses_ND)
    for fold, kept in folds(np.arange(len(mixtures_NK))):
        for d, losses_N in enumerate(losses_ND.T):
            unseen_ND[fold, d] = fit_one(mixtures_NK[kept], losses_N[kept])(mixtures_NK[fold])
    return unseen_ND


def folds(groups_N: IntArray) -> list[tuple[IntArray, IntArray]]:
    """(rows left out, rows fitted) of each of five folds. Rows of one group, such as repeats of a run, stay together."""
    groups = np.unique(groups_N)
    order = np.random.Generator(np.random.PCG64(0)).permutation(groups)
    parts = [np.isin(groups_N, part) for part in np.array_split(order, _FOLDS)]
    return [(np.flatnonzero(out_N), np.flatnonzero(~out_N)) for out_N in parts]

"""The regressions of RegMix from mixtures to losses, and their cross-validation.

- `lightgbm`: boosted trees as published (Liu et al. 2024, arXiv 2407.01492, and its notebook): up
  to 1,000 trees at a learning rate of 0.01 with L2 loss, stopped when three more trees do not help.
- `log_linear`: L = c + exp(k + Σ_j t_j α_j), the data mixing law (Ye et al. 2024, arXiv
  2403.16952). Weights sum to 1, so k is a part of t.
- `gaussian_process`: see `methods.regmix.gaussian_process`.

The loss of each domain is fitted separately, and the objective is the sum of the predictions. The
paper fits its objective, one domain, directly. This ranks much worse where domains compete: their
losses cross, and the sum is flat.

Deviation: the published notebook stops LightGBM where the loss on the *held-out* runs is lowest, so
these runs influence the fit. Here a fifth of the fitted runs determines the number of trees, and
then all of them are fitted with that number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray, IntArray
from cuvee.core.errors import ConfigError, pip_install
from cuvee.evaluation.ranks import RankCorrelation, rank_correlation
from cuvee.methods.regmix.gaussian_process import fit_gaussian_process

Prediction = Callable[[FloatArray], FloatArray]
"""Maps mixtures (M, K) to losses (M,) of one domain."""

Fit = Callable[[FloatArray, FloatArray], Prediction]
"""Maps mixtures (N, K) and the resulting losses (N,) of one domain to a prediction."""

_FOLDS = 5
_TREES = 1000
_RATE = 1e-2
_PATIENCE = 3
# Start values of c, in standard deviations of the losses below the lowest loss.
_ASYMPTOTES = (0.1, 0.5, 2.0)
_LARGEST_EXPONENT = 50.0  # prevents overflow when a step of the search is far off
_RIDGE = 1e-3  # on t, so that a domain that no run drew from has t = 0


def fit_lightgbm(mixtures_NK: FloatArray, losses_N: FloatArray) -> Prediction:
    """Fit boosted trees, deterministically and on one thread."""
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
    watched = order_N[: len(order_N) // _FOLDS]
    fitted = order_N[len(order_N) // _FOLDS :]
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
    """Fit the data mixing law by least squares.

    The search starts from several asymptotes c, each with the t that is best for ln(L − c). The
    best result is kept.
    """
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
"""Fits by their name in a configuration."""


def installed(fit: str) -> tuple[str, ...]:
    """Return the fits of this name, one or for "best" several, whose libraries are installed.

    Raises `ConfigError` if there is none.
    """
    has_lightgbm = find_spec("lightgbm") is not None
    if fit == "lightgbm" and not has_lightgbm:
        raise ConfigError(
            f"fit lightgbm needs LightGBM: {pip_install('regression')}, or use fit: "
            "gaussian_process or best"
        )
    if fit != "best":
        return (fit,)
    return tuple(name for name in FITS if name != "lightgbm" or has_lightgbm)


@dataclass(frozen=True)
class Fitted:
    """Fits of D domains' losses, with the rank correlation in cross-validation."""

    name: str
    predictions: tuple[Prediction, ...]
    ranks: RankCorrelation

    def losses(self, mixtures_MK: FloatArray) -> FloatArray:
        """Return the predicted losses (M, D)."""
        return np.stack([predict(mixtures_MK) for predict in self.predictions], axis=1)


def fit(name: str, mixtures_NK: FloatArray, losses_ND: FloatArray, values_D: FloatArray) -> Fitted:
    """Fit the loss of each domain.

    `values_D` are the weights of the objective by which runs are ranked in cross-validation.
    """
    unseen_ND = cross_validated(FITS[name], mixtures_NK, losses_ND)
    ranks = rank_correlation(unseen_ND @ values_D, losses_ND @ values_D)
    return Fitted(name, tuple(FITS[name](mixtures_NK, losses_N) for losses_N in losses_ND.T), ranks)


def cross_validated(fit_one: Fit, mixtures_NK: FloatArray, losses_ND: FloatArray) -> FloatArray:
    """Return the (N, D) losses of each run as predicted by fits to the other folds."""
    unseen_ND = np.empty_like(losses_ND)
    for fold, kept in folds(np.arange(len(mixtures_NK))):
        for d, losses_N in enumerate(losses_ND.T):
            unseen_ND[fold, d] = fit_one(mixtures_NK[kept], losses_N[kept])(mixtures_NK[fold])
    return unseen_ND


def folds(groups_N: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Return (rows left out, rows fitted) for each of five folds.

    Rows with the same group, such as repeats of a run, are in the same fold.
    """
    groups = np.unique(groups_N)
    order = np.random.Generator(np.random.PCG64(0)).permutation(groups)
    parts = [np.isin(groups_N, part) for part in np.array_split(order, _FOLDS)]
    return [(np.flatnonzero(out_N), np.flatnonzero(~out_N)) for out_N in parts]

"""A Gaussian process from mixtures to a loss (Rasmussen & Williams 2006, §2.2, §5.4.1): what RegMix fits best with.

    x_j = ln(1 + α_j / ε), standardised        ε = 1/(20 K): a loss falls steeply with the first shares of a domain, then slowly
    y   = m + σ_f f(x) + σ_n e                 f with a Matérn-5/2 kernel, one length λ_j a domain; m is the mean of y

λ, σ_f and σ_n maximise the posterior: the marginal likelihood times a broad log-normal prior on each, without which 52 lengths
would be fitted to 64 runs at will. Scikit-learn's process, whose `optimizer` is the one place that lets a prior in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray

_FIRST_SHARE = 0.05  # of a uniform share: ε
_BROAD = 1.5  # standard deviation of the priors of ln λ, ln σ_f, ln σ_n
_NOISE = 0.1  # the prior's median of σ_n, in standard deviations of the losses; of σ_f it is 1
_REACH = 4.0  # deviations of the prior within which is searched
_STEPS = 60
_JITTER = 1e-9  # so that the covariance of two equal mixtures can be inverted
_UNBOUNDED = (
    1e-99,
    1e99,
)  # the search has its own bounds, and a loss that never changes ends at one without a warning
_AT_ONCE = 4096  # mixtures predicted at a time: so many rows of N numbers are held

Objective = Callable[[FloatArray], tuple[float, FloatArray]]
"""ln hyper-parameters → −ln marginal likelihood, and its gradient."""


def fit_gaussian_process(
    mixtures_NK: FloatArray, losses_N: FloatArray
) -> Callable[[FloatArray], FloatArray]:
    """The process given `mixtures_NK` and `losses_N`: called with mixtures (M, K) it returns the expected losses (M,)."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    K = mixtures_NK.shape[1]
    signal, noise = ConstantKernel(1.0, _UNBOUNDED), WhiteKernel(_NOISE**2, _UNBOUNDED)
    kernel = signal * Matern(np.full(K, np.sqrt(K)), _UNBOUNDED, nu=2.5) + noise
    deviations = _BROAD * np.concatenate(
        [[2.0], np.ones(K), [2.0]]
    )  # the kernel's ln σ_f², ln λ_K, ln σ_n²
    search = partial(_most_probable, deviations=deviations)
    process = GaussianProcessRegressor(kernel, alpha=_JITTER, optimizer=search, normalize_y=True)
    fitted = make_pipeline(FunctionTransformer(_logs), StandardScaler(), process).fit(
        mixtures_NK, losses_N
    )
    return partial(_expected, fitted)


def _logs(mixtures_NK: FloatArray) -> FloatArray:
    logs_NK: FloatArray = np.log1p(mixtures_NK * (mixtures_NK.shape[1] / _FIRST_SHARE))
    return logs_NK


def _most_probable(
    unlikelihood: Objective, prior: FloatArray, bounds: FloatArray, *, deviations: FloatArray
) -> tuple[FloatArray, float]:
    """The ln hyper-parameters of the highest posterior that L-BFGS finds from the prior's median `prior`, and −ln of it."""
    from scipy.optimize import Bounds, minimize

    def objective(logs: FloatArray) -> tuple[float, FloatArray]:
        value, slopes = unlikelihood(logs)
        distance = (logs - prior) / deviations
        return float(value + 0.5 * distance @ distance), slopes + distance / deviations

    near = Bounds(prior - _REACH * deviations, prior + _REACH * deviations)
    found = minimize(
        objective, prior, jac=True, method="L-BFGS-B", bounds=near, options={"maxiter": _STEPS}
    )
    return found.x, float(found.fun)


def _expected(fitted: Any, mixtures_MK: FloatArray) -> FloatArray:
    parts = range(0, len(mixtures_MK), _AT_ONCE)
    return np.concatenate(
        [fitted.predict(mixtures_MK[start : start + _AT_ONCE]) for start in parts]
    )

"""A Gaussian process from mixtures to a loss (Rasmussen & Williams 2006, §2.2, §5.4.1): what RegMix fits best with.

    x_j = ln(1 + α_j / ε), standardised        ε = 1/(20 K): a loss falls steeply with the first shares of a domain, then slowly
    y   = m + σ_f f(x) + σ_n e                 f with a Matérn-5/2 kernel, one length λ_j a domain; m is the mean of y

λ, σ_f and σ_n maximise the posterior: the marginal likelihood times a broad log-normal prior on each, without which 52 lengths
would be fitted to 64 runs at will. Own code, and not scikit-learn's: that one has no prior, and its gradient goes through an
array of N² K numbers where the sums below are products of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.mixture import FloatArray

_FIRST_SHARE = 0.05  # of a uniform share: ε
_BROAD = 1.5  # standard deviation of the priors of ln λ, ln σ_f, ln σ_n
_NOISE = 0.1  # the prior's median of σ_n, in standard deviations of the losses; of σ_f it is 1
_STEPS = 60
_JITTER = 1e-9  # so that the covariance of two equal mixtures can be inverted
_AT_ONCE = 4096  # mixtures predicted at a time: so many rows of N numbers are held


@dataclass(frozen=True)
class _Inputs:
    """Mixtures as the kernel sees them, on the scale of the runs that were fitted."""

    mean_K: FloatArray
    spread_K: FloatArray

    @classmethod
    def of(cls, mixtures_NK: FloatArray) -> _Inputs:
        logs_NK = _logs(mixtures_NK)
        spread_K = logs_NK.std(axis=0)
        return cls(logs_NK.mean(axis=0), np.where(spread_K > 0, spread_K, 1.0))

    def __call__(self, mixtures_NK: FloatArray) -> FloatArray:
        return (_logs(mixtures_NK) - self.mean_K) / self.spread_K


class GaussianProcess:
    """Fitted to `mixtures_NK` and `losses_N` when it is made; called with mixtures (M, K) it returns the expected losses (M,)."""

    def __init__(self, mixtures_NK: FloatArray, losses_N: FloatArray) -> None:
        self._inputs = _Inputs.of(mixtures_NK)
        self._mean, spread = float(losses_N.mean()), float(losses_N.std())
        self._spread = spread if spread > 0 else 1.0
        self._x_NK = self._inputs(mixtures_NK)
        y_N = (losses_N - self._mean) / self._spread
        found = _most_probable(self._x_NK, y_N)
        self._lengths_K, self._signal, noise = (
            np.exp(found[:-2]),
            float(np.exp(2 * found[-2])),
            np.exp(2 * found[-1]) + _JITTER,
        )
        kernel_NN, _ = _matern(self._x_NK / self._lengths_K, self._x_NK / self._lengths_K)
        covariance_NN = self._signal * kernel_NN + noise * np.eye(len(y_N))
        self._weights_N = np.linalg.solve(covariance_NN, y_N)

    def __call__(self, mixtures_MK: FloatArray) -> FloatArray:
        x_MK = self._inputs(mixtures_MK) / self._lengths_K
        scaled_NK = self._x_NK / self._lengths_K
        parts = [x_MK[start : start + _AT_ONCE] for start in range(0, len(x_MK), _AT_ONCE)]
        expected_M = np.concatenate([_matern(part, scaled_NK)[0] @ self._weights_N for part in parts])
        return self._mean + self._spread * self._signal * expected_M


def _logs(mixtures_NK: FloatArray) -> FloatArray:
    logs_NK: FloatArray = np.log1p(mixtures_NK * (mixtures_NK.shape[1] / _FIRST_SHARE))
    return logs_NK


def _matern(a_NK: FloatArray, b_MK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Matérn-5/2 of points already divided by their lengths (N, M), and its slope in the squared distance."""
    squares_NM = (a_NK * a_NK).sum(axis=1)[:, None] + (b_MK * b_MK).sum(axis=1) - 2 * a_NK @ b_MK.T
    root_NM = np.sqrt(5 * np.maximum(squares_NM, 0.0))
    decay_NM = np.exp(-root_NM)
    return (1 + root_NM + root_NM**2 / 3) * decay_NM, -5 / 6 * (1 + root_NM) * decay_NM


def _most_probable(x_NK: FloatArray, y_N: FloatArray) -> FloatArray:
    """(K + 2,) ln λ_K, ln σ_f, ln σ_n at the highest posterior that L-BFGS finds from the prior's median."""
    from scipy.optimize import minimize

    K = x_NK.shape[1]
    prior = np.concatenate([np.full(K, 0.5 * np.log(K)), [0.0, np.log(_NOISE)]])
    bounds = [(middle - 6.0, middle + 6.0) for middle in prior]
    found: Any = minimize(
        _objective, prior, (x_NK, y_N, prior), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    best: FloatArray = found.x
    return best


def _objective(logs: FloatArray, x_NK: FloatArray, y_N: FloatArray, prior: FloatArray) -> tuple[float, FloatArray]:
    """−ln posterior up to a constant, and its gradient.

    With W = a aᵀ − C⁻¹, a = C⁻¹ y, the likelihood's gradient in a hyperparameter h is −½ Σ W ∘ ∂C/∂h; for ln λ_j the sum
    Σ_nm M_nm (x_nj − x_mj)², M symmetric, is 2 (Σ_n r_n x_nj² − Σ_n x_nj (M x)_nj) with r = M 1.
    """
    from scipy.linalg.lapack import dpotri

    lengths_K, signal, noise = np.exp(logs[:-2]), np.exp(2 * logs[-2]), np.exp(2 * logs[-1]) + _JITTER
    scaled_NK = x_NK / lengths_K
    kernel_NN, slope_NN = _matern(scaled_NK, scaled_NK)
    lower_NN = np.linalg.cholesky(signal * kernel_NN + noise * np.eye(len(y_N)))
    triangle_NN, _ = dpotri(lower_NN, lower=1)
    inverse_NN = np.tril(triangle_NN) + np.tril(triangle_NN, -1).T
    solved_N = inverse_NN @ y_N
    distance = (logs - prior) / _BROAD
    value = 0.5 * y_N @ solved_N + np.log(np.diag(lower_NN)).sum() + 0.5 * distance @ distance
    w_NN = np.outer(solved_N, solved_N) - inverse_NN
    m_NN = signal * w_NN * slope_NN
    squares_K = 2 * (m_NN.sum(axis=1) @ scaled_NK**2 - (scaled_NK * (m_NN @ scaled_NK)).sum(axis=0))
    gradient = np.concatenate([squares_K, [-signal * (w_NN * kernel_NN).sum(), -noise * np.trace(w_NN)]])
    return float(value), gradient + distance / _BROAD

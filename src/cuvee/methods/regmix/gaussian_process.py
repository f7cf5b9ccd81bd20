"""A Gaussian process from mixtures to a metric.

Source: Rasmussen & Williams 2006, §2.2 and §5.4.1.

    x_j = ln(1 + α_j / ε), standardised        ε = 1/(20 K)
    y   = m + σ_f f(x) + σ_n e                 m is the mean of y

f has a Matérn-5/2 kernel with one length scale λ_j per domain. The logarithm is used because a loss
falls steeply with the first percents of a domain and slowly after that. λ, σ_f and σ_n maximise the
posterior, which is the marginal likelihood times a broad log-normal prior on each. Without the
prior, 52 length scales would overfit 64 runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray

_FIRST_SHARE = 0.05  # ε as a fraction of 1/K
_BROAD = 1.5  # standard deviation of the priors of ln λ, ln σ_f, ln σ_n
_NOISE = 0.1  # the prior's median of σ_n, in standard deviations of y; the median of σ_f is 1
_REACH = 4.0  # the search stays within this many standard deviations of the prior
_STEPS = 60
_SEARCHED = 256  # runs used for the hyper-parameter search; the posterior uses all runs
_JITTER = 1e-8  # keeps the covariance of two equal mixtures invertible
_AT_ONCE = 4096  # mixtures predicted at a time, to limit memory
_ROOT5 = np.sqrt(5.0)


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """The posterior after N runs. Call it with mixtures (M, K) to get the expected metric (M,).

    `inputs_NK` are the features of the fitted runs divided by the length scales. `whitened_NN` is
    the inverse of the Cholesky factor of their covariance, including noise, in units of the
    metric's variance.
    """

    centre_K: FloatArray
    scale_K: FloatArray
    inputs_NK: FloatArray
    whitened_NN: FloatArray
    standardised_N: FloatArray
    signal: float
    noise: float
    mean: float
    spread: float

    def __call__(self, mixtures_MK: FloatArray) -> FloatArray:
        weights_N = self.whitened_NN.T @ (self.whitened_NN @ self.standardised_N)
        parts = range(0, len(mixtures_MK), _AT_ONCE)
        found = [self._to_runs(mixtures_MK[at : at + _AT_ONCE]) @ weights_N for at in parts]
        return self.mean + self.spread * np.concatenate(found)

    @property
    def noise_deviation(self) -> float:
        """Estimated standard deviation of the metric between two runs with the same mixture."""
        return self.spread * self.noise

    def deviation(self, mixtures_MK: FloatArray) -> FloatArray:
        """Return the (M,) posterior standard deviation of the metric, without the noise of runs."""
        parts = range(0, len(mixtures_MK), _AT_ONCE)
        explained = [
            np.square(self.whitened_NN @ self._to_runs(mixtures_MK[at : at + _AT_ONCE]).T).sum(0)
            for at in parts
        ]
        left_M = self.signal**2 - np.concatenate(explained)
        return self.spread * np.sqrt(np.maximum(left_M, 0.0))

    def covariance(self, mixtures_MK: FloatArray, others_LK: FloatArray) -> FloatArray:
        """Return the (M, L) posterior covariance of the metric, for paired differences."""
        prior_ML = self.signal**2 * _matern(
            _squared_distances(self._features(mixtures_MK), self._features(others_LK))
        )
        ours_NM = self.whitened_NN @ self._to_runs(mixtures_MK).T
        theirs_NL = self.whitened_NN @ self._to_runs(others_LK).T
        return np.asarray(self.spread**2 * (prior_ML - ours_NM.T @ theirs_NL))

    def _to_runs(self, mixtures_MK: FloatArray) -> FloatArray:
        """Return the (M, N) prior covariance with the fitted runs."""
        squared_MN = _squared_distances(self._features(mixtures_MK), self.inputs_NK)
        return np.asarray(self.signal**2 * _matern(squared_MN))

    def _features(self, mixtures_MK: FloatArray) -> FloatArray:
        return (_logs(mixtures_MK) - self.centre_K) / self.scale_K


def fit_gaussian_process(mixtures_NK: FloatArray, losses_N: FloatArray) -> GaussianProcess:
    """Return the posterior for mixtures (N, K) with the metric `losses_N`."""
    logs_NK = _logs(mixtures_NK)
    centre_K = logs_NK.mean(axis=0)
    scale_K = np.where(logs_NK.std(axis=0) > 0, logs_NK.std(axis=0), 1.0)
    features_NK = (logs_NK - centre_K) / scale_K
    mean = float(losses_N.mean())
    spread = float(losses_N.std()) or 1.0
    standardised_N = (losses_N - mean) / spread
    searched_S = _spread_rows(len(losses_N))
    lengths_K, signal, noise = _most_probable(features_NK[searched_S], standardised_N[searched_S])
    inputs_NK = features_NK / lengths_K
    return GaussianProcess(
        centre_K=centre_K,
        scale_K=scale_K * lengths_K,
        inputs_NK=inputs_NK,
        whitened_NN=_whitened(inputs_NK, signal, noise),
        standardised_N=standardised_N,
        signal=signal,
        noise=noise,
        mean=mean,
        spread=spread,
    )


def _logs(mixtures_NK: FloatArray) -> FloatArray:
    logs_NK: FloatArray = np.log1p(mixtures_NK * (mixtures_NK.shape[1] / _FIRST_SHARE))
    return logs_NK


def _spread_rows(runs: int) -> npt.NDArray[np.intp]:
    """Return the rows for the hyper-parameter search: all, or a random subset of 256."""
    order_N = np.random.Generator(np.random.PCG64(0)).permutation(runs)
    return order_N[:_SEARCHED]


def _most_probable(
    features_NK: FloatArray, values_N: FloatArray
) -> tuple[FloatArray, float, float]:
    """Return λ (K,), σ_f and σ_n with the highest posterior.

    L-BFGS starts from the median of the prior.
    """
    from scipy.optimize import Bounds, minimize

    K = features_NK.shape[1]
    prior = np.log(np.concatenate([np.full(K, np.sqrt(K)), [1.0, _NOISE]]))
    near = Bounds(prior - _REACH * _BROAD, prior + _REACH * _BROAD)
    cost = partial(_negative_log_posterior, features_NK=features_NK, values_N=values_N, prior=prior)
    found = minimize(
        cost, prior, jac=True, method="L-BFGS-B", bounds=near, options={"maxiter": _STEPS}
    )
    best = np.exp(found.x)
    return best[:K], float(best[K]), float(best[K + 1])


def _negative_log_posterior(
    logs: FloatArray, *, features_NK: FloatArray, values_N: FloatArray, prior: FloatArray
) -> tuple[float, FloatArray]:
    """Return −ln posterior of ln(λ, σ_f, σ_n), and its gradient.

    See Rasmussen & Williams, equations 2.30 and 5.9.
    """
    N, K = features_NK.shape
    lengths_K, signal, noise = np.exp(logs[:K]), np.exp(logs[K]), np.exp(logs[K + 1])
    inputs_NK = features_NK / lengths_K
    far_NN = _ROOT5 * np.sqrt(_squared_distances(inputs_NK, inputs_NK))
    fading_NN = signal**2 * np.exp(-far_NN)
    kernel_NN = (1.0 + far_NN + far_NN**2 / 3.0) * fading_NN
    covariance_NN = kernel_NN + (noise**2 + _JITTER) * np.eye(N)
    inverse_NN, log_determinant = _inverse(covariance_NN)
    weights_N = inverse_NN @ values_N
    outer_NN = np.outer(weights_N, weights_N) - inverse_NN
    per_length_NN = (5 / 3) * outer_NN * (1.0 + far_NN) * fading_NN
    row_N = per_length_NN.sum(axis=1)
    by_length_K = inputs_NK.T**2 @ row_N - np.einsum(
        "nk,nk->k", inputs_NK, per_length_NN @ inputs_NK
    )
    slopes = np.concatenate(
        [by_length_K, [np.sum(outer_NN * kernel_NN)], [noise**2 * np.trace(outer_NN)]]
    )
    distance = (logs - prior) / _BROAD
    value = 0.5 * (values_N @ weights_N + log_determinant + distance @ distance)
    return float(value), distance / _BROAD - slopes


def _whitened(inputs_NK: FloatArray, signal: float, noise: float) -> FloatArray:
    from scipy.linalg import solve_triangular

    N = len(inputs_NK)
    kernel_NN = signal**2 * _matern(_squared_distances(inputs_NK, inputs_NK))
    factor_NN = np.linalg.cholesky(kernel_NN + (noise**2 + _JITTER) * np.eye(N))
    return np.asarray(solve_triangular(factor_NN, np.eye(N), lower=True))


def _inverse(covariance_NN: FloatArray) -> tuple[FloatArray, float]:
    """Return the inverse and the ln determinant of a positive definite matrix."""
    from scipy.linalg.lapack import dpotrf, dpotri

    factor_NN, failed = dpotrf(covariance_NN, lower=1)
    assert not failed, "the noise keeps the covariance positive definite"
    inverse_NN, _ = dpotri(factor_NN, lower=1)
    lower_NN = np.tril(inverse_NN)
    whole_NN = lower_NN + np.tril(inverse_NN, -1).T
    return whole_NN, 2 * float(np.log(np.diagonal(factor_NN)).sum())


def _squared_distances(inputs_MK: FloatArray, others_NK: FloatArray) -> FloatArray:
    squared_MN = (
        np.square(inputs_MK).sum(1)[:, None]
        + np.square(others_NK).sum(1)
        - 2 * inputs_MK @ others_NK.T
    )
    return np.asarray(np.maximum(squared_MN, 0.0))


def _matern(squared: FloatArray) -> FloatArray:
    """Return the Matérn-5/2 kernel of squared distances; 1 at distance 0."""
    far = _ROOT5 * np.sqrt(squared)
    return np.asarray((1.0 + far + far**2 / 3.0) * np.exp(-far))

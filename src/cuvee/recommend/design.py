"""Which runs to do next: those from which the largest improvement of the objective is expected.

    EI(w) = (b − m) Φ(z) + s φ(z),   z = (b − m) / s                        Jones et al. 1998

m and s are the predicted objective and its deviation. b is the lowest m among the finished runs.

Several runs are chosen one after the other. Each chosen run is assumed to end as predicted. This
keeps m and lowers s around the run (the kriging believer, Ginsbourger et al. 2010), so the chosen
runs differ. If no candidate has an expected improvement, the one with the largest s is chosen,
which is the greedy D-optimal design.
"""

from __future__ import annotations

import numpy as np

from cuvee.core.arrays import FloatArray, IntArray
from cuvee.recommend.choose import Bounds, cautious, optimise
from cuvee.recommend.fits import Surrogate

_POOL = 1500
_NOTHING = 1e-9


def propose_next(
    surrogate: Surrogate, bounds: Bounds, starts_NPK: FloatArray, count: int, seed: int = 0
) -> FloatArray:
    """(count, P, K) the paths of the runs to do next, within bounds."""
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    P, K = starts_NPK.shape[1:]
    phases = [(p,) for p in range(P)] if surrogate.order else [tuple(range(P))]
    best_PK = optimise(
        cautious(surrogate, 0.0), bounds, starts_NPK, surrogate.shares_P, phases, seed
    )
    near = (best_PK + 0.2 / K) * np.exp(rng.normal(0, 0.7, (_POOL // 2, P, K)))
    drawn = rng.dirichlet(np.full(K, 0.5), (_POOL // 2, P))
    pool_MPK = np.concatenate([best_PK[None], near / near.sum(axis=2, keepdims=True), drawn])
    if not surrogate.order:
        pool_MPK = np.broadcast_to(pool_MPK[:, :1], pool_MPK.shape)
    pool_MPK = bounds.within(pool_MPK, surrogate.shares_P)
    return pool_MPK[pick(surrogate, pool_MPK, starts_NPK, count)]


def pick(surrogate: Surrogate, pool_MPK: FloatArray, done_NPK: FloatArray, count: int) -> IntArray:
    """(count,) the rows of `pool_MPK` to run next, in order, given the runs `done_NPK`."""
    from scipy.stats import norm

    mean_M = surrogate.objective(pool_MPK)
    variance_M = surrogate.deviation(pool_MPK) ** 2
    lowest = float(surrogate.objective(done_NPK).min())
    noise = surrogate.noise_variance
    chosen: list[int] = []
    learned: list[FloatArray] = []
    for _ in range(min(count, len(pool_MPK))):
        spread_M = np.sqrt(np.maximum(variance_M, 1e-18))
        z_M = (lowest - mean_M) / spread_M
        gain_M = spread_M * (z_M * norm.cdf(z_M) + norm.pdf(z_M))
        gain_M = gain_M if gain_M.max() > _NOTHING else spread_M
        gain_M[chosen] = -np.inf
        row = int(gain_M.argmax())
        chosen.append(row)
        covariance_M = surrogate.covariance(pool_MPK, pool_MPK[row])
        covariance_M = covariance_M - sum(one * one[row] for one in learned)
        learned.append(covariance_M / np.sqrt(max(variance_M[row], 1e-18) + noise))
        variance_M = np.maximum(variance_M - learned[-1] ** 2, 0.0)
        lowest = min(lowest, float(mean_M[row]))
    return np.array(chosen)

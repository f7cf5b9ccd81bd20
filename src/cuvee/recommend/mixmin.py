"""MixMin (Thudi et al. 2025, arXiv 2502.10510): weights from the outputs of one model per domain, without proxy runs.

    minimise over w    −(1/M) Σ_m ln Σ_k w_k p_k(x_m)

p_k(x_m) is the probability that the model trained on domain k gives to target example m. The problem is convex, and the
multiplicative update w_k ← w_k · mean_m [p_k(x_m) / Σ_j w_j p_j(x_m)] lowers it at every step (it is the EM update of the
weights of a mixture of fixed components).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.fleet.store.tabular import number, read_rows

_STEPS, _STILL = 2000, 1e-9


def mixmin(log_probabilities_MK: FloatArray) -> FloatArray:
    """(K,) the weights, from log-probabilities in nats of M examples under K models."""
    shifted_MK = log_probabilities_MK - log_probabilities_MK.max(axis=1, keepdims=True)
    likely_MK = np.exp(shifted_MK)
    weights_K = np.full(likely_MK.shape[1], 1 / likely_MK.shape[1])
    for _ in range(_STEPS):
        moved_K = weights_K * (likely_MK / (likely_MK @ weights_K)[:, None]).mean(axis=0)
        still = np.abs(moved_K - weights_K).max() < _STILL
        weights_K = moved_K / moved_K.sum()
        if still:
            break
    return np.asarray(weights_K)


def mixmin_of(path: Path, domains: tuple[str, ...]) -> Mixture:
    """From a table with a column of log-probabilities for each domain. Raises `ConfigError` if one is missing or not finite."""
    rows = read_rows(path)
    missing = [name for name in domains if name not in rows.columns]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing[:5])}: one model per domain")
    found_MK = np.array([[number(row[name]) for name in domains] for _, row in rows.rows], float)
    if not len(found_MK) or not np.isfinite(found_MK).all() or (found_MK > 0).any():
        raise ConfigError(f"{path} needs log-probabilities: finite numbers of 0 or less")
    return Mixture.normalise(domains, mixmin(found_MK))

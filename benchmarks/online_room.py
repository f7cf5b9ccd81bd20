"""The room for improvement: the best static mixture and the best path that a search finds.

Between mixtures of small models there is little room, and an agent cannot find what is not there. A
trial is a whole run along a path: a mixture at the start, one at the end, linear between (equal for
a static mixture). The first trials are common mixtures and what the methods themselves played, on
average and from their first third to their last. Then follow rounds, half from a regression and
half from differences between good trials (differential evolution, Storn & Price 1997). The
regression is quadratic in the few directions of log shares in which the trials differ most.

The best of many noisy trials is partly luck. So the best two of each kind are run again on the
other seeds, and the room is measured on those runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_LEAST = 0.03  # of uniform: what a share of zero counts as in logs
_DIRECTIONS = 4
_RIDGE = 0.02


@dataclass(frozen=True)
class Trial:
    """A path and the final mean loss of its run."""

    name: str
    start_K: Array
    end_K: Array
    loss: float

    @property
    def is_static(self) -> bool:
        return bool(np.allclose(self.start_K, self.end_K))

    @property
    def logs_2K(self) -> Array:
        return np.concatenate([_log(self.start_K), _log(self.end_K)])


def by_hand(shares_K: Array, valued_K: Array) -> list[tuple[str, Array, Array]]:
    """Uniform, natural and half way between, over all domains and over those that count."""
    found = []
    for where, mask_K in (("", np.ones_like(shares_K)), ("-valued", valued_K)):
        if where and mask_K.all():
            continue
        for name, power in (("uniform", 0.0), ("natural", 1.0), ("half-way", 0.5)):
            mixture_K = mask_K * shares_K**power
            mixture_K = mixture_K / mixture_K.sum()
            found.append((name + where, mixture_K, mixture_K))
    return found


def by_example(name: str, weights_TK: Array) -> list[tuple[str, Array, Array]]:
    """What a method did: its mean mixture, and from its first third to its last."""
    third = max(1, len(weights_TK) // 3)
    mean_K, first_K, last_K = (
        weights_TK.mean(0),
        weights_TK[:third].mean(0),
        weights_TK[-third:].mean(0),
    )
    return [(f"{name}-mean", mean_K, mean_K), (f"{name}-path", first_K, last_K)]


def next_paths(
    trials: Sequence[Trial], number: int, rng: np.random.Generator
) -> list[tuple[Array, Array]]:
    """The next trials: by regression and by differences in turn, every other one of each static."""
    ranked = sorted(trials, key=lambda trial: trial.loss)
    paths = []
    for i in range(number):
        static = i // 2 % 2 == 0
        pool = [trial for trial in ranked if trial.is_static] if static else ranked
        best = pool[0]
        if i % 2 == 0:
            x_2K = _by_regression(trials, best, static, rng)
        else:
            one, other = rng.choice(len(pool) // 2 + 2, 2, replace=False)
            x_2K = best.logs_2K + 0.5 * (
                pool[min(one, other)].logs_2K - pool[max(one, other)].logs_2K
            )
        start_K, end_K = (_softmax(half) for half in np.split(x_2K, 2))
        paths.append((start_K, start_K if static else end_K))
    return paths


def _by_regression(
    trials: Sequence[Trial], best: Trial, static: bool, rng: np.random.Generator
) -> Array:
    """The minimum of a ridge regression near `best`, fitted to a random four fifths of the
    trials."""
    kept = [trial for trial in trials if trial is best or rng.random() < 0.8]
    x_N2K = np.stack([trial.logs_2K for trial in kept])
    middle_2K = x_N2K.mean(axis=0)
    _, sizes, directions = np.linalg.svd(x_N2K - middle_2K, full_matrices=False)
    directions = directions[:_DIRECTIONS]
    scale = sizes[:_DIRECTIONS] / np.sqrt(len(kept)) + 1e-9
    z_ND = (x_N2K - middle_2K) @ directions.T / scale

    def features(z_D: Array) -> Array:
        return np.concatenate([np.ones((*z_D.shape[:-1], 1)), z_D, z_D**2], axis=-1)

    phi_NF, loss_N = features(z_ND), np.array([trial.loss for trial in kept])
    penalty = _RIDGE * len(kept) * np.diag([0.0] + [1.0] * (phi_NF.shape[1] - 1))
    weights_F = np.linalg.solve(phi_NF.T @ phi_NF + penalty, phi_NF.T @ (loss_N - loss_N.mean()))
    around_D = (best.logs_2K - middle_2K) @ directions.T / scale
    tried_MD = around_D + 0.7 * rng.standard_normal((4096, len(scale)))
    found_D = tried_MD[int((features(tried_MD) @ weights_F).argmin())]
    x_2K: Array = best.logs_2K + (found_D - around_D) * scale @ directions
    if static:
        half_K = x_2K.reshape(2, -1).mean(axis=0)
        x_2K = np.concatenate([half_K, half_K])
    return x_2K


def _log(weights: Array) -> Array:
    """Log of a share relative to uniform."""
    logs: Array = np.log(np.maximum(weights * weights.shape[-1], _LEAST))
    return logs


def _softmax(x: Array) -> Array:
    e: Array = np.exp(x - x.max())
    e[e < 1.5 * _LEAST * np.median(e)] = 0.0  # what counted as zero is zero again
    shares: Array = e / e.sum()
    return shares

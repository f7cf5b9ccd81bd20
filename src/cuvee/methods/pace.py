"""Learns how late to read scarce domains, and how far to follow gains, from whole proxy runs.

The closed form (`policies.paced`) has two numbers that a run cannot measure while it trains: the
power n of the plan, and the sharpness κ. What they are worth shows at the end of a run. So each
proxy run is an episode with one pair (n, κ), and its return is minus the objective's validation
loss at its end. The losses L of the episodes are fitted:

    L = b_0 + b_1 u + b_2 κ + b_3 u κ + σ e        u = n / (n + 1)
    b_0 flat;  b_i ~ N(0, r² σ²), each r of `_RATIOS` equally likely;  σ² ~ inverse χ² (`_NOISE`)

This is Bayesian linear regression (Gelman et al. 2013, §14.8), averaged over r. The pair with the
lowest upper bound of L − L(default) is chosen: its posterior mean plus `_SURE` deviations. For the
default, both are 0. So it is kept unless another pair is better beyond the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import State
from cuvee.core.trajectory import Run
from cuvee.policies.gain_estimate import GainEstimate
from cuvee.policies.objective import objective_K

Pair = tuple[float, float]
"""Power n and sharpness κ."""

_GRID: tuple[Pair, ...] = ((0, 0), (4, 2), (0, 2), (4, 0), (0, 1), (4, 1), (1, 1), (1, 0), (1, 2))
_SURE = 2.0
_RATIOS = (0.5, 1.0, 2.0, 4.0, 8.0)
_NOISE = 0.004, 2.0
"""Standard deviation of the losses of equal runs, as a part of the loss; runs that this is worth.

Runs of one mixture differed by 0.02 nats at 4.4 (docs/lab/scarce.md).
"""
_FLAT = 1e6
_FEWEST = 4  # episodes, of which anything is learned


class Episode(NamedTuple):
    """A pair and the objective's validation loss at the end of its run."""

    pair: Pair
    loss: float


class Pace(NamedTuple):
    """The pair that was chosen, and its loss minus the default's: posterior mean and deviation."""

    pair: Pair
    difference: float
    deviation: float


def pairs(default: Pair) -> tuple[Pair, ...]:
    """Return the pairs of the first, second, … proxy run: the default, then those of a grid."""
    return (default, *(pair for pair in _GRID if pair != default))


def settings_of(pair: Pair) -> dict[str, float]:
    """Return a pair as settings of `policies.paced.Paced`."""
    return {"power": float(pair[0]), "sharpness": float(pair[1])}


def check_proxies(proxies: int, default: Pair) -> None:
    """Raise `ConfigError` for a number of proxy runs that cannot be used."""
    most = len(pairs(default))
    if not 1 <= proxies <= most:
        raise ConfigError(f"proxies is {proxies}: mode proxy needs 1 to {most}")


def episodes_of(
    runs: Sequence[Run], objective: Mapping[str, float], *, within: Sequence[str] = ()
) -> list[Episode]:
    """Return the episodes of proxy runs. Those whose configuration names no pair are left out.

    The keys `within` lead from the settings of a run's policy to those of its closed form. Raises
    `PolicyError` if a run has not measured the objective's validation loss at its end.
    """
    found = []
    for run in runs:
        settings: Any = run.config.get("policy")
        for key in ("settings", *within):
            settings = settings.get(key) if isinstance(settings, Mapping) else None
        if isinstance(settings, Mapping) and {"power", "sharpness"} <= settings.keys():
            found.append(episode_of(run, settings, objective))
    return found


def episode_of(run: Run, settings: Mapping[str, Any], objective: Mapping[str, float]) -> Episode:
    """Return the episode of a proxy run whose closed form had `settings`.

    Raises `PolicyError` if the run has not measured the objective's validation loss at its end.
    """
    so_far = run.trajectory
    counts_K = objective_K(so_far, objective)
    loss = so_far.last.probes.get("valid_loss")
    if loss is None or not loss.present[counts_K > 0].all():
        raise PolicyError(
            f"proxy run {run.id} has no validation loss of the objective at its end: build the "
            "corpus with a valid split, and set train.validation_tokens above 0"
        )
    pair = (float(settings["power"]), float(settings["sharpness"]))
    return Episode(pair, float(counts_K @ loss.values / counts_K.sum()))


def best_pace(episodes: Sequence[Episode], default: Pair) -> Pace:
    """Return the pair to use in the target run.

    It is the default if there are fewer than four episodes that ended with a finite loss.

    >>> late_wins = [Episode((n, k), 4.0 - 0.02 * n) for n in (0, 4) for k in (0, 1, 2)]
    >>> best_pace(late_wins, (0, 1)).pair[0]
    4
    """
    used = [episode for episode in episodes if np.isfinite(episode.loss)]
    tried = sorted({default, *(episode.pair for episode in used)})
    if len(used) < _FEWEST:
        return Pace(default, 0.0, 0.0)
    x_CF = np.stack([_features(pair) for pair in tried]) - _features(default)
    x_NF = np.stack([_features(episode.pair) for episode in used]) - _features(default)
    mean_C, deviation_C = _posterior(x_NF, np.array([episode.loss for episode in used]), x_CF)
    best = int(np.argmin(mean_C + _SURE * deviation_C))
    return Pace(tried[best], float(mean_C[best]), float(deviation_C[best]))


def measured(runs: Sequence[Run]) -> State:
    """Return the state of a `Paced` that knows the gains of all runs, each row alike.

    A run's own estimate forgets: it has to follow the present. Averages over whole runs have less
    noise.
    """
    estimate = GainEstimate(kept=1.0)
    for run in runs:
        for signals in run.trajectory.signals:
            estimate.add(signals)
    return {"gain": estimate.state_dict()}


def evidence(pace: Pace, default: Pair, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return what a policy file says about the choice, as plain JSON; nothing if none was made."""
    if len(episodes) < _FEWEST:
        return {}
    chosen = f"power {pace.pair[0]:g} and sharpness {pace.pair[1]:g}"
    why = (
        f"{-pace.difference:.3f} ± {pace.deviation:.3f} nats below the default"
        if pace.pair != default
        else "the default, because no other is better beyond the noise"
    )
    return {
        "summary": f"{chosen} after {len(episodes)} proxy runs: {why}",
        "episodes": [[*episode.pair, episode.loss] for episode in episodes],
    }


def _features(pair: Pair) -> FloatArray:
    power, sharpness = pair
    u = power / (power + 1.0)
    return np.array([u, sharpness, u * sharpness])


def _posterior(
    x_NF: FloatArray, losses_N: FloatArray, x_CF: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return mean (C,) and deviation (C,) of x_CF @ b, averaged over r."""
    N = len(losses_N)
    noise, worth = _NOISE
    y_N = losses_N - losses_N.mean()
    logs_R, mean_RC, square_RC = [], [], []
    for ratio in _RATIOS:
        covariance_NN = np.eye(N) + _FLAT + ratio**2 * x_NF @ x_NF.T  # in units of σ²
        inverse_NN = np.linalg.inv(covariance_NN)
        left = worth * (noise * losses_N.mean()) ** 2 + y_N @ inverse_NN @ y_N
        shared_CN = ratio**2 * x_CF @ x_NF.T
        mean_C = shared_CN @ inverse_NN @ y_N
        prior_C = ratio**2 * np.square(x_CF).sum(axis=1)
        own_C = prior_C - np.einsum("cn,nm,cm->c", shared_CN, inverse_NN, shared_CN)
        variance_C = left / (worth + N - 1) * np.maximum(own_C, 0.0)
        logs_R.append(
            -0.5 * np.linalg.slogdet(covariance_NN)[1] - 0.5 * (worth + N - 1) * np.log(left)
        )
        mean_RC.append(mean_C)
        square_RC.append(variance_C + mean_C**2)
    weights_R = np.exp(np.array(logs_R) - max(logs_R))
    weights_R = weights_R / weights_R.sum()
    mean_C = weights_R @ np.stack(mean_RC)
    return mean_C, np.sqrt(np.maximum(weights_R @ np.stack(square_RC) - mean_C**2, 0.0))

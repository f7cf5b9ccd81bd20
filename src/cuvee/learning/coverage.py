"""Coverage: how varied the mixtures of a collection of trajectories are.

A policy can only learn about mixtures that were tried. Trajectories are compared at equal fractions
of their runs, so their numbers of intervals may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import natural_K
from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Trajectory

POINTS = 20
"""Number of points of a run at which mixtures are compared."""


@dataclass(frozen=True)
class Coverage:
    """Statistics of a collection of trajectories.

    - `distance`: mean total variation between two trajectories at the same fraction of the run.
    - `target_distance`: the same for the target share alone.
    - `source_distance`: the same for the source parts, each normalised to sum to 1.
    - `change`: mean total variation between consecutive intervals.
    - `target_share_Q5`: 10, 25, 50, 75 and 90 % quantiles over trajectories of the target share, at
      the start, at each quarter of the run and at the end (5 rows).
    - `emphasised`: fraction of the domains that a trajectory, on average, ever emphasises. A domain
      is emphasised if its weight is twice its natural share, or half way from that share to 1 if
      this is less.
    - `ever_emphasised`: fraction of the domains that any trajectory emphasises.
    - `entropy`: 5 and 95 % quantiles of the entropy divided by ln K.
    """

    trajectories: int
    distance: float
    target_distance: float
    source_distance: float
    change: float
    target_share_Q5: FloatArray
    emphasised: float
    ever_emphasised: float
    entropy: tuple[float, float]


def coverage(trajectories: Sequence[Trajectory]) -> Coverage:
    """Compute the coverage of `trajectories`.

    Raises `ConfigError` for fewer than two, an empty one, or different domains.
    """
    weights_NPK = common_weights(trajectories)
    domains = trajectories[0].domains
    target_K = np.array([domain.is_target for domain in domains])
    share_NP = weights_NPK[:, :, target_K].sum(axis=2)
    source_NPK = weights_NPK[:, :, ~target_K]
    total_NP1 = source_NPK.sum(axis=2, keepdims=True)
    source_NPK = np.where(total_NP1 > 0, source_NPK / np.where(total_NP1 > 0, total_NP1, 1.0), 0.0)
    quarters_Q = np.linspace(0, POINTS - 1, 5).round().astype(int)
    shares_K = natural_K(domains)
    much_K = np.minimum(2 * shares_K, 0.5 * (1 + shares_K))
    emphasised_NK = np.array([(t.weights_TK() > much_K).any(axis=0) for t in trajectories])
    entropy_NP = -(weights_NPK * np.log(np.where(weights_NPK > 0, weights_NPK, 1.0))).sum(axis=2)
    low, high = (
        np.quantile(entropy_NP / np.log(len(domains)), [0.05, 0.95])
        if len(domains) > 1
        else (0.0, 0.0)
    )
    return Coverage(
        trajectories=len(trajectories),
        distance=_mean_distance(weights_NPK),
        target_distance=_mean_distance(np.stack([share_NP, 1 - share_NP], axis=2)),
        source_distance=_mean_distance(source_NPK),
        change=float(np.mean([_changes(t.weights_TK()) for t in trajectories])),
        target_share_Q5=np.quantile(share_NP[:, quarters_Q], [0.1, 0.25, 0.5, 0.75, 0.9], axis=0).T,
        emphasised=float(emphasised_NK.mean()),
        ever_emphasised=float(emphasised_NK.any(axis=0).mean()),
        entropy=(float(low), float(high)),
    )


def common_weights(trajectories: Sequence[Trajectory]) -> FloatArray:
    """Return the mixtures at evenly spaced fractions of each run, (N, `POINTS`, K)."""
    if len(trajectories) < 2 or not all(map(len, trajectories)):
        raise ConfigError("coverage needs at least two trajectories with at least an interval each")
    if any(trajectory.names != trajectories[0].names for trajectory in trajectories):
        raise ConfigError(
            "trajectories with different domains, or domains in another order, cannot be compared"
        )
    at_P = (np.arange(POINTS) + 0.5) / POINTS
    return np.stack([t.weights_TK()[np.floor(at_P * len(t)).astype(int)] for t in trajectories])


def _mean_distance(weights_NPK: FloatArray) -> float:
    """Return the mean total variation over all pairs of trajectories and all points.

    One trajectory is compared with all later ones at a time, to limit memory.
    """
    N = len(weights_NPK)
    total = sum(
        0.5 * np.abs(weights_NPK[n + 1 :] - weights_NPK[n]).sum(axis=2).mean(axis=1).sum()
        for n in range(N - 1)
    )
    return float(total / (N * (N - 1) / 2))


def _changes(weights_TK: FloatArray) -> float:
    return (
        float(0.5 * np.abs(np.diff(weights_TK, axis=0)).sum(axis=1).mean())
        if len(weights_TK) > 1
        else 0.0
    )

"""Rewrites logged runs in coarser domain spaces.

What is learned from them then generalises over the number of domains. Domains of one role are
merged at random. The result of a run does not depend on how its text is divided into domains.
Feedback therefore stays the same, tokens and weights are summed, and a loss is the mean of its
parts. This augmentation is ours: the paper learns in one space of 52 domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.simulation.dynamics_model import domain_change

Groups = Sequence[npt.NDArray[np.int64]]
"""Index arrays. Each holds the domains that are merged into one. A domain is in one group."""


def coarser(trajectories: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """Return up to two coarser versions of each run.

    One has about √n domains for the n domains of each role, merged at random. The other has one
    domain per role. Versions that would not be coarser are omitted, and so are runs whose domains
    changed.
    """
    rng = np.random.default_rng([seed, 13])
    found = []
    for trajectory in trajectories:
        if domain_change(trajectory):
            continue
        target_K = np.array([domain.is_target for domain in trajectory.domains])
        roles = [np.flatnonzero(target_K == role) for role in (False, True)]
        roots = tuple(round(len(members) ** 0.5) for members in roles)
        for counts in dict.fromkeys((roots, tuple(min(1, count) for count in roots))):
            if sum(counts) < len(target_K):
                parts = [
                    _divided(members, count, rng)
                    for members, count in zip(roles, counts, strict=True)
                ]
                found.append(merged(trajectory, [group for part in parts for group in part]))
    return found


def merged(trajectory: Trajectory, groups: Groups) -> Trajectory:
    """Return the same run with the domains of each group merged into one.

    It has the name of the group's first domain. Its loss is the mean of the measured losses,
    weighted by the domains' token counts. Of the probes, only "evaluation" is kept, because it is
    not per domain.
    """

    def signals(one: Signals) -> Signals:
        sizes_K = np.array([float(domain.tokens) for domain in one.domains]) * one.loss.present
        sums_2G = np.stack(
            [_summed(one.loss.filled(0.0) * sizes_K, groups), _summed(sizes_K, groups)]
        )
        return Signals(
            domains=tuple(_united([one.domains[k] for k in group]) for group in groups),
            step=one.step,
            progress=one.progress,
            tokens_K=_summed(one.tokens_K, groups),
            loss=Measured.mean(*sums_2G),
            probes={name: value for name, value in one.probes.items() if name == "evaluation"},
        )

    found = Trajectory.start(signals(trajectory.signals[0]))
    for _, mixture, after in trajectory:
        then = signals(after)
        found = found.append(
            Mixture.normalise(then.names, _summed(mixture.weights_K, groups)), then
        )
    return found


def _divided(members: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> Groups:
    """Divide `members` into `count` random groups. None is empty."""
    of_M = (
        np.concatenate([np.arange(count), rng.integers(count, size=len(members) - count)])
        if count
        else members
    )
    order = rng.permutation(members)
    return [np.sort(order[of_M == group]) for group in range(count)]


def _summed(values_K: npt.NDArray[Any], groups: Groups) -> npt.NDArray[Any]:
    return np.array([values_K[group].sum() for group in groups])


def _united(domains: Sequence[Domain]) -> Domain:
    return Domain(domains[0].name, sum(domain.tokens for domain in domains), domains[0].role)

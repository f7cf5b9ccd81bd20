"""Logged runs as coarser domain spaces would have logged them, so that what is learned holds at other numbers of domains.

Domains of one role are put together at random. What a run came to does not depend on how its text is divided, so feedback is as
it was, tokens and weights add up, and a loss is the mean of its parts'. Ours: the source learns in one space of 52 domains.
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
"""Indices of the domains that become one, each in one group."""


def coarser(trajectories: Sequence[Trajectory], seed: int) -> list[Trajectory]:
    """Of each run two more: with about √n of the n domains of either role, put together at random, and with one of each.

    Fewer where that would be no coarser, none of a run whose domains changed.
    """
    rng, found = np.random.default_rng([seed, 13]), []
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
    """The same run with the domains of each group as one, which has the name of its first. A loss is the mean of those that were
    measured, by the tokens there are of their domains; of the probes the evaluation is kept, which is not by domain."""

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
    """`count` groups, none of them empty."""
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

"""A schedule that the user gives: mixtures at points of progress, linear between them.

Use it for curricula and annealing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Metrics, Policy, Probe, State
from cuvee.core.registry import register_method, register_policy
from cuvee.core.trajectory import Run, Trajectory


@register_method("schedule")
@dataclass(frozen=True)
class Schedule:
    """The method: needs no proxy runs and commits to the schedule.

    `points` are pairs of progress and shares by domain name, for example [[0.0, {web: 3, maths:
    1}], [1.0, {web: 1, maths: 3}]].
    """

    points: Sequence[tuple[float, Mapping[str, float]]]

    def __post_init__(self) -> None:
        Scheduled(self.points)  # raises for bad points here, not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy. Raises `ConfigError` if a point names an unknown domain."""
        names = [domain.name for domain in corpus.domains]
        unknown = sorted({name for _, shares in self.points for name in shares} - set(names))
        if unknown:
            raise ConfigError(
                f"points name {', '.join(unknown)}, but the corpus has {', '.join(names)}"
            )
        return Scheduled(self.points)


@register_policy("schedule")
class Scheduled:
    """The policy of a schedule.

    `points` are (progress from 0 to 1, shares by name), sorted by progress. Between two points, the
    mixture is interpolated linearly. Before the first and after the last, it is constant. Shares
    need not sum to 1. A domain that a point does not name has weight 0 there. Two points at the
    same progress make a jump: the later one applies from that progress on.
    """

    probes: Sequence[Probe] = ()

    def __init__(self, points: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        if not points:
            raise PolicyError(
                "a schedule has no points: give at least one [progress, {domain: share, …}]"
            )
        places = [float(progress) for progress, _ in points]
        # NaN fails the second test, too.
        if places != sorted(places) or not all(0 <= place <= 1 for place in places):
            raise PolicyError(
                f"the points of a schedule are at {places}: they must be sorted, from 0 to 1"
            )
        self._progress = np.array(places)
        self._mixtures = [
            Mixture.normalise(list(shares), list(shares.values())) for _, shares in points
        ]

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the mixture at the run's progress.

        Raises `MixtureError` if the run lacks a domain of the schedule.
        """
        return self.at(so_far.last.progress, so_far.names)

    def at(self, progress: float, names: Sequence[str]) -> Mixture:
        """Return the mixture over `names` at this progress."""
        after = int(np.searchsorted(self._progress, progress, side="right"))
        before = max(after - 1, 0)
        after = min(after, len(self._progress) - 1)
        first, second = (self._mixtures[i].to(names) for i in (before, after))
        width = float(self._progress[after] - self._progress[before])
        share = (
            float(np.clip((progress - self._progress[before]) / width, 0.0, 1.0))
            if width > 0
            else 0.0
        )
        return Mixture.normalise(names, (1.0 - share) * first.weights_K + share * second.weights_K)

    def learn(self, so_far: Trajectory) -> Metrics:
        return {}

    def settings(self) -> dict[str, Any]:
        return {
            "points": [
                [float(place), mixture.as_dict()]
                for place, mixture in zip(self._progress, self._mixtures, strict=True)
            ]
        }

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass

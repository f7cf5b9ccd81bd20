"""A schedule that the user gives: shares by domain at points of progress, linear between them (curricula, annealing)."""

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
    """`points`: [[0.0, {web: 3, maths: 1}], [1.0, {web: 1, maths: 3}]]."""

    points: Sequence[tuple[float, Mapping[str, float]]]

    def __post_init__(self) -> None:
        Scheduled(self.points)  # refuses bad points now and not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        names = [domain.name for domain in corpus.domains]
        unknown = sorted({name for _, shares in self.points for name in shares} - set(names))
        if unknown:
            raise ConfigError(
                f"points name {', '.join(unknown)}, but the corpus has {', '.join(names)}"
            )
        return Scheduled(self.points)


@register_policy("schedule")
class Scheduled:
    """`points` are (progress from 0 to 1, shares by name), in order; between two the mixture is linear, outside constant.

    Shares need not sum to 1, and a domain that a point does not name has none there. Two points at one progress make a jump,
    of which the later one holds from that progress on.
    """

    probes: Sequence[Probe] = ()

    def __init__(self, points: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        if not points:
            raise PolicyError(
                "a schedule has no points: give [progress, {domain: share, …}] at least once"
            )
        places = [float(progress) for progress, _ in points]
        if places != sorted(places) or not all(
            0 <= place <= 1 for place in places
        ):  # false for NaN too
            raise PolicyError(
                f"the points of a schedule are at {places}: they must rise within 0 and 1"
            )
        self._progress = np.array(places)
        self._mixtures = [
            Mixture.normalise(list(shares), list(shares.values())) for _, shares in points
        ]

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Raises `MixtureError` if a domain of the schedule is not in the run."""
        return self.at(so_far.last.progress, so_far.names)

    def at(self, progress: float, names: Sequence[str]) -> Mixture:
        """The mixture over `names` at this progress."""
        after = int(np.searchsorted(self._progress, progress, side="right"))
        before, after = max(after - 1, 0), min(after, len(self._progress) - 1)
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

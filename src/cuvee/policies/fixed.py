"""`Fixed`: one static mixture for the whole run. `Scheduled`: mixtures that only progress decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import PROBES, register_policy
from cuvee.core.trajectory import Trajectory


@register_policy("fixed")
class Fixed:
    """Plays the same mixture in every interval and learns nothing.

    `evidence` is what the method that chose the weights reports about them, as plain JSON. Its
    entry `summary` is one line. It is saved with the policy. `probes` are measured but not used by
    the policy: a method may read their signals from the logged run.
    """

    def __init__(
        self,
        weights: Mixture | Mapping[str, float],
        evidence: Mapping[str, Any] | None = None,
        probes: Sequence[Probe | Mapping[str, Any]] = (),
    ) -> None:
        self._mixture = weights if isinstance(weights, Mixture) else Mixture.of(weights)
        self.evidence = dict(evidence or {})
        self.probes: Sequence[Probe] = [
            _probe(probe) if isinstance(probe, Mapping) else probe for probe in probes
        ]

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the mixture over the run's domains.

        Raises `MixtureError` if the run lacks one of the mixture's own domains.
        """
        return self._mixture.to(so_far.names)

    def learn(self, so_far: Trajectory) -> Metrics:
        return {}

    def settings(self) -> dict[str, Any]:
        return {
            "weights": self._mixture.as_dict(),
            **({"evidence": self.evidence} if self.evidence else {}),
            **({"probes": [_document(probe) for probe in self.probes]} if self.probes else {}),
        }

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


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


def _document(probe: Probe) -> dict[str, Any]:
    """Return kind and settings of a registered probe, the argument of `_probe`."""
    kind: Any = type(probe)
    name = PROBES.name_of(kind)
    if name is None:
        raise PolicyError(
            f"the probe {probe.name!r} cannot be saved: register its class with "
            '@register_probe("name")'
        )
    try:
        settings = {field.name: getattr(probe, field.name) for field in fields(kind) if field.init}
        document: dict[str, Any] = json.loads(json.dumps({"kind": name, "settings": settings}))
    except TypeError as error:
        raise PolicyError(
            f"the probe {probe.name!r} cannot be saved ({error}): its class must be a dataclass "
            "whose fields are JSON"
        ) from error
    return document


def _probe(document: Mapping[str, Any]) -> Probe:
    """Return the probe of `document`, with lists as tuples, which JSON cannot hold."""
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in document["settings"].items()
    }
    probe: Probe = PROBES.get(document["kind"])(**settings)
    return probe

"""`Fixed`: one static mixture for the whole run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

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

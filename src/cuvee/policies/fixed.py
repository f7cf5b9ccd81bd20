"""`Fixed`: one mixture for the whole run, what everybody does today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.trajectory import Trajectory


@register_policy("fixed")
class Fixed:
    probes: Sequence[Probe] = ()

    def __init__(
        self, weights: Mixture | Mapping[str, float], evidence: Mapping[str, Any] | None = None
    ) -> None:
        self._mixture = weights if isinstance(weights, Mixture) else Mixture.of(weights)
        self.evidence = dict(evidence or {})
        """What the method that chose these weights says for them, `summary` in a line: plain JSON, travels with the policy."""

    def mixture(self, so_far: Trajectory) -> Mixture:
        """The mixture over the run's domains. Raises `MixtureError` if one of its own domains is not among them."""
        return self._mixture.to(so_far.names)

    def learn(self, so_far: Trajectory) -> Metrics:
        return {}

    def settings(self) -> dict[str, Any]:
        return {
            "weights": self._mixture.as_dict(),
            **({"evidence": self.evidence} if self.evidence else {}),
        }

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass

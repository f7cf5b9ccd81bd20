"""`ExponentiatedAlignment`: multiplicative weights on gradient alignment, no critic (DoGE, Fan et al. 2023, arXiv 2310.15393).

    α_i ← α_i exp(W̃_i / μ), divided by the sum            W̃ as in `cuvee.policies.rewards`

Deviations: DoGE takes W itself and a learning rate for each run; the cosine W̃ makes one μ fit models of all sizes. `floor` keeps
every domain at floor/K or more, as DoReMi's smoothing does, since a weight of 0 could never grow again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.trajectory import Trajectory
from cuvee.policies.rewards import AlignmentReward, valued_alignment, values_of


@register_policy("exponentiated_alignment")
class ExponentiatedAlignment:
    """Starts uniform. `mu` > 0: the larger, the slower. `values` as in `AlignmentReward`."""

    def __init__(
        self,
        mu: float = 10.0,
        floor: float = 0.01,
        values: Mapping[str, float] | None = None,
        stride: int = 5,
    ) -> None:
        if not mu > 0:
            raise PolicyError(f"mu is {mu}: it must be above 0")
        if not 0.0 <= floor < 1.0:
            raise PolicyError(f"floor is {floor}: it must be at least 0 and below 1")
        self._settings = {"mu": mu, "floor": floor, "values": dict(values or {}), "stride": stride}
        self._mu, self._floor = mu, floor
        self._reward = AlignmentReward(values=values, stride=stride)
        self._values = dict(values or {})
        self._weights: dict[str, float] = {}

    @property
    def probes(self) -> Sequence[Probe]:
        return self._reward.probes

    def mixture(self, so_far: Trajectory) -> Mixture:
        """A domain that joins later starts at uniform."""
        K = len(so_far.names)
        raw_K = np.array([self._weights.get(name, 1.0 / K) for name in so_far.names])
        return Mixture.normalise(
            so_far.names, (1.0 - self._floor) * raw_K / raw_K.sum() + self._floor / K
        )

    def learn(self, so_far: Trajectory) -> Metrics:
        gram, executed = so_far.last.probes.get("alignment"), so_far.last_mixture
        assert executed is not None, "learn is called after an interval"
        if gram is None or not gram.present.any():
            return {"alignment": None}
        alignment = valued_alignment(gram, values_of(so_far, self._values))
        raised_K = (
            np.log(np.maximum(self.mixture(so_far).weights_K, 1e-300)) + alignment.values / self._mu
        )
        weights_K = np.exp(raised_K - raised_K.max())
        self._weights = dict(zip(so_far.names, (weights_K / weights_K.sum()).tolist(), strict=True))
        return {"alignment": dict(zip(so_far.names, alignment.to_json(), strict=True))}

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def state_dict(self) -> State:
        return {"weights": dict(self._weights)}

    def load_state_dict(self, state: State) -> None:
        self._weights = dict(state["weights"])

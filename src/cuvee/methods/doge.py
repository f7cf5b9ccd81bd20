"""DoGE: domain reweighting with generalisation estimation (Fan et al. 2023, arXiv 2310.15393).

    α_i ← α_i exp(W̃_i / μ), divided by the sum            W̃ as in `cuvee.policies.rewards`

DoGE uses the gradient alignment of AC-ODM without a critic, so comparing the two shows what the critic adds. Mode `proxy`
is the paper's: one proxy run learns, and the target trains on the mean of its mixtures. Mode `online` learns on the target.

Deviations: DoGE uses W itself and a learning rate for each run. The cosine W̃ lets one μ fit models of all sizes. `floor`
keeps every domain at floor/K or more, like DoReMi's smoothing, because a weight of 0 can never grow again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Metrics, Policy, Probe, State
from cuvee.core.registry import register_method, register_policy
from cuvee.core.trajectory import Run, Trajectory
from cuvee.policies.fixed import Fixed
from cuvee.policies.rewards import AlignmentReward, valued_alignment, values_of


@register_method("doge")
@dataclass(frozen=True)
class DoGE:
    mode: Literal["online", "proxy"] = "online"
    mu: float = 10.0
    floor: float = 0.01
    stride: int = 5
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("online", "proxy"):
            raise ConfigError(f"mode is {self.mode!r}: use online or proxy")
        self.policy()  # refuses bad settings now and not when the run starts

    def policy(self) -> ExponentiatedAlignment:
        return ExponentiatedAlignment(self.mu, self.floor, self.values, self.stride)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return () if self.mode == "online" or logged else (self.policy(),)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        if self.mode == "online":
            return self.policy()
        if not logged or not len(logged[-1].trajectory):
            raise PolicyError("no proxy run is logged yet: run the proxies first (`cuvee search`)")
        path = logged[-1].trajectory
        return Fixed(Mixture.normalise(path.names, path.weights_TK().mean(axis=0)))


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

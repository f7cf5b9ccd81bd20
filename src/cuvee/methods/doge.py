"""DoGE: domain reweighting with generalisation estimation.

Source: Fan et al. 2023, arXiv 2310.15393.

    α_i ← α_i exp(W̃_i / μ), then divided by the sum

W̃ is the gradient alignment of `cuvee.policies.rewards`. DoGE is AC-ODM without a critic, so a
comparison of the two shows the effect of the critic.

Mode `proxy` is the paper's: one proxy run learns, and the target run trains on the mean of its
mixtures. Mode `online` learns on the target run.

Deviations: DoGE uses the inner product W instead of the cosine W̃, and a learning rate for each
run. With the cosine, one μ fits models of all sizes. `floor` keeps every weight at floor/K or more,
like DoReMi's smoothing, because a weight of 0 can never grow again.
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
from cuvee.policies.objective import objective_K
from cuvee.policies.rewards import AlignmentReward, valued_alignment


@register_method("doge")
@dataclass(frozen=True)
class DoGE:
    """Domain reweighting with generalisation estimation.

    The options other than `mode` are those of `ExponentiatedAlignment`.
    """

    mode: Literal["online", "proxy"] = "online"
    mu: float = 10.0
    floor: float = 0.01
    stride: int = 5
    objective: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("online", "proxy"):
            raise ConfigError(f"mode is {self.mode!r}: use online or proxy")
        self.policy()  # raises for bad settings here, not when the run starts

    def policy(self) -> ExponentiatedAlignment:
        """Return the policy at its start, before it has learned anything."""
        return ExponentiatedAlignment(self.mu, self.floor, self.objective, self.stride)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return () if self.mode == "online" or logged else (self.policy(),)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy for the target run.

        Raises `PolicyError` in mode proxy if no proxy run is logged.
        """
        if self.mode == "online":
            return self.policy()
        if not logged or not len(logged[-1].trajectory):
            raise PolicyError("no proxy run is logged yet: run the proxies first (`cuvee search`)")
        path = logged[-1].trajectory
        return Fixed(Mixture.normalise(path.names, path.weights_TK().mean(axis=0)))


@register_policy("exponentiated_alignment")
class ExponentiatedAlignment:
    """Multiplicative weights with the gradient alignment as reward. Starts uniform.

    - `mu`: μ > 0. A larger μ changes the mixture more slowly.
    - `floor`: every weight is at least floor/K.
    - `objective`: weights by domain name, see `policies.objective`.
    - `stride`: gradients are measured every `stride` steps.
    """

    def __init__(
        self,
        mu: float = 10.0,
        floor: float = 0.01,
        objective: Mapping[str, float] | None = None,
        stride: int = 5,
    ) -> None:
        if not mu > 0:
            raise PolicyError(f"mu is {mu}: it must be above 0")
        if not 0.0 <= floor < 1.0:
            raise PolicyError(f"floor is {floor}: it must be at least 0 and below 1")
        self._settings = {
            "mu": mu,
            "floor": floor,
            "objective": dict(objective or {}),
            "stride": stride,
        }
        self._mu = mu
        self._floor = floor
        self._reward = AlignmentReward(objective=objective, stride=stride)
        self._objective = dict(objective or {})
        self._weights: dict[str, float] = {}

    @property
    def probes(self) -> Sequence[Probe]:
        return self._reward.probes

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the next mixture. A domain that joins later starts at weight 1/K."""
        K = len(so_far.names)
        raw_K = np.array([self._weights.get(name, 1.0 / K) for name in so_far.names])
        return Mixture.normalise(
            so_far.names, (1.0 - self._floor) * raw_K / raw_K.sum() + self._floor / K
        )

    def learn(self, so_far: Trajectory) -> Metrics:
        gram = so_far.last.probes.get("alignment")
        executed = so_far.last_mixture
        assert executed is not None, "learn is called after an interval"
        if gram is None or not gram.present.any():
            return {"alignment": None}
        alignment = valued_alignment(gram, objective_K(so_far, self._objective))
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

"""DoGE: domain reweighting with generalisation estimation (Fan et al. 2023, arXiv 2310.15393).

    α_i ← α_i exp(W̃_i / μ)

the alignment of AC-ODM without a critic: what tells how much the agent adds. The formula is in `policies.exponentiated`. `proxy`,
the paper's: one proxy run learns, and the target trains on the static mean of its path. `online` learns on the target itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.exponentiated import ExponentiatedAlignment
from cuvee.policies.fixed import Fixed


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

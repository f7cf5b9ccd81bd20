"""HDS, Holistic Data Scheduler: SAC with a reward of three parts (arXiv 2606.24133, KDD 2026).

    reward = w_a Σ_i α_i W̃_i + w_q t′ Σ_i α_i q_i + w_s min(1/Σ_l |Δ‖w_l‖|, 5)

influence between domains (as in AC-ODM), quality of the data (lexical diversity unless another score is named), counting more
as training goes on (t′ is progress), and calm of the weight norms. Each term is logged on its own.

The released code cannot be constructed: wrong arguments, a missing `sample`, a softmax on the critic's output. What is here was
built from the paper. Deviations: the quality of a domain is its score over the largest, so within 0 and 1 whatever the score;
the policy is a logistic-normal on the simplex; more where they are made: `policies.rewards`, `policies.encoders`, `agents.sac`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Domains, Policy
from cuvee.core.trajectory import Run
from cuvee.methods.learned import commit_learned
from cuvee.policies.agent_policy import AgentPolicy


@dataclass(frozen=True)
class HDS:
    """`weights` are (w_a, w_q, w_s). `quality` names a score of the corpus's domains, or gives one by name. `agent` overrides
    `SACSettings`."""

    mode: Literal["online", "proxy"] = "online"
    weights: tuple[float, float, float] = (1.0, 10.0, 10.0)
    quality: str | Mapping[str, float] = "mtld"
    warm_up: int = 20
    smoothing: float = 0.9
    stride: int = 5
    values: Mapping[str, float] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("online", "proxy"):
            raise ConfigError(f"mode is {self.mode!r}: use online or proxy")
        if len(self.weights) != 3:
            raise ConfigError(f"weights are {self.weights}: give three, for alignment, quality and stability")
        self.policy()  # refuses bad settings now and not when the run starts

    def policy(self) -> AgentPolicy:
        return AgentPolicy(
            "sac",
            "holistic",
            warm_up=self.warm_up,
            seed=self.seed,
            agent_settings=self.agent,
            reward_settings={
                "weights": list(self.weights),
                "quality": self.quality,
                "smoothing": self.smoothing,
                "stride": self.stride,
                "values": dict(self.values),
            },
        )

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return () if self.mode == "online" or logged else (self.policy(),)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return self.policy() if self.mode == "online" else commit_learned(logged)

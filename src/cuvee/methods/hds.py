"""HDS, Holistic Data Scheduler: SAC with a reward of three parts (arXiv 2606.24133, KDD 2026).

    reward = w_a Σ_i α_i r_i + w_q t′ Σ_i α_i q_i + w_s min(1/Σ_l |Δ‖w_l‖|, 5)          r_i as in AC-ODM

influence between domains (as in AC-ODM), quality of the data (lexical diversity unless another score is named), counting more
as training goes on (t′ is progress), and calm of the weight norms. Each term is logged on its own.

The released code cannot be constructed: wrong arguments, a missing `sample`, a softmax on the critic's output. What is here was
built from the paper. Deviations: the influence is the gain, 1 on average over the domains that count; the quality of a domain is
its score over the largest, so within 0 and 1 whatever the score, and 0 for a domain that does not count; so the weights are
(1, 0.1, 0.1) and not (1, 10, 10), with which the mixture goes to the most diverse domain and nothing else matters; the critic
values each domain, since one number an interval teaches nothing in one run; the policy is a logistic-normal on the simplex;
more where they are made: `policies.rewards`, `policies.encoders`, `agents.sac`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cuvee.core.errors import ConfigError
from cuvee.core.registry import register_method
from cuvee.methods.agent import AgentMethod, AgentPreset

AGENT: Mapping[str, Any] = {
    "updates": 6,
    "tau": 0.02,
    "learning_starts": 4,
    "batch_size": 32,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "std": 0.2,
    "kl_coef": 0.35,
    "ema_rate": 0.005,
    "architecture": {"hidden": 32},
}
"""For the few hundred decisions of one run. The paper's settings (`agents.sac.PAPER`) need tens of thousands."""


@register_method("hds")
@dataclass(frozen=True)
class HDS(AgentPreset):
    """`weights` are (w_a, w_q, w_s). `quality` names a score of the corpus's domains, or gives one by name. `values` is v by
    name: which domains count; by default those that are validated. `agent` overrides `AGENT`, the settings of SAC."""

    mode: Literal["online", "proxy"] = "online"
    critic: Literal["vector", "scalar"] = "vector"
    weights: tuple[float, float, float] = (1.0, 0.1, 0.1)
    quality: str | Mapping[str, float] = "mtld"
    warmup_intervals: int = 4
    smoothing: float = 0.9
    stride: int = 1
    values: Mapping[str, float] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.weights) != 3:
            raise ConfigError(
                f"weights are {self.weights}: give three, for influence, quality and stability"
            )
        self.configured()  # refuses bad settings now and not when the run starts

    def configured(self) -> AgentMethod:
        return AgentMethod(
            agent="sac",
            reward="holistic",
            mode=self.mode,
            critic=self.critic,
            warmup_intervals=self.warmup_intervals,
            seed=self.seed,
            agent_settings={**AGENT, **self.agent},
            reward_settings={
                "weights": list(self.weights),
                "quality": self.quality,
                "smoothing": self.smoothing,
                "stride": self.stride,
                "values": dict(self.values),
            },
        )

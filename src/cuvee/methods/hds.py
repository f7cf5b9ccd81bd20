"""HDS, Holistic Data Scheduler: SAC with a reward of three terms.

Source: arXiv 2606.24133, KDD 2026.

    reward = w_a Σ_i α_i r_i + w_q t′ Σ_i α_i q_i + w_s min(1/Σ_l |Δ‖w_l‖|, 5)

The terms are the influence between domains (r_i as in AC-ODM), the quality q_i of the data, and the
stability of the weight norms. Quality is lexical diversity unless another score is named. It counts
more as training proceeds (t′ is progress). Each term is logged separately.

The released code cannot run: wrong arguments, a missing `sample`, a softmax on the critic's output.
This implementation follows the paper. Deviations:

- The influence is the gain, which is 1 on average over the domains that count.
- The quality of a domain is its score relative to the largest, so it is from 0 to 1 for any score.
  It is 0 for a domain that does not count.
- The weights are (1, 0.1, 0.1). With the paper's (1, 10, 10), the mixture goes to the most diverse
  domain whatever the other terms are.
- The critic has a value for each domain, because one number per interval is too little to learn
  from in one run.
- The policy is a logistic-normal distribution on the simplex.

`policies.rewards`, `policies.encoders` and `agents.sac` list further deviations.
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
"""Settings for the few hundred decisions of one run.

The paper's settings (`agents.sac.PAPER`) need tens of thousands of decisions.
"""


@register_method("hds")
@dataclass(frozen=True)
class HDS(AgentPreset):
    """The preset HDS of `AgentMethod`.

    - `weights`: (w_a, w_q, w_s).
    - `quality`: name of a score of the corpus's domains, or scores by domain name.
    - `smoothing`, `stride`: arguments of the reward.
    - `values`: v by domain name, how much each domain counts. Default: 1 for domains with a
      validation loss.
    - `agent`: overrides `AGENT`, the settings of SAC.

    The other options are those of `AgentMethod`.
    """

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
                f"weights are {self.weights}: give three numbers, for influence, quality and "
                "stability"
            )
        self.configured()  # raises for bad settings here, not when the run starts

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

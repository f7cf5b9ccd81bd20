"""HDS, Holistic Data Scheduler: SAC with a reward of three terms.

Source: arXiv 2606.24133, KDD 2026.

    reward = w_a Σ_i α_i r_i + w_q t′ Σ_i α_i q_i − w_s Σ_i α_i s_i

The terms are the influence on the objective (r_i as in AC-ODM), the quality q_i of the data, and
the stability of training. Quality is lexical diversity unless another score is named. It counts
more as training proceeds (t′ is progress). s_i is the variance of the gains of domain i's rows: how
much its steps disturb the objective. Each term is logged separately (`policies.gain_rewards`).

`preset: paper` has the published settings: alignment over all domains with weights (1, 10, 10), the
stability min(1/Σ_l |Δ‖w_l‖|, 5) of the weight norms, 834 intervals of warm-up in which ODM acts,
and `agents.sac.PAPER`. It needs thousands of decisions.

The released code cannot run: wrong arguments, a missing `sample`, a softmax on the critic's output.
This implementation follows the paper. Deviations of the default:

- The agent starts from the closed form, as in AC-ODM.
- The published stability hardly depends on the mixture of one interval. It was at its limit of 5 in
  every interval of small runs. Here it is a property of each domain.
- Quality and stability have mean 0 over the domains, and the weights are (1, 0.1, 0.1). With the
  paper's (1, 10, 10), the mixture goes to the most diverse domain whatever the other terms are.
- The critic has a value for each domain, because one number per interval is too little to learn
  from in one run.
- The policy is a logistic-normal distribution on the simplex.

`policies.rewards`, `policies.encoders` and `agents.sac` list further deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cuvee.agents.sac import PAPER
from cuvee.core.errors import ConfigError
from cuvee.core.registry import register_method
from cuvee.methods.agent import AgentMethod, AgentPreset

AGENT: Mapping[str, Any] = {
    "updates": 2,
    "tau": 0.02,
    "learning_starts": 8,
    "batch_size": 32,
    "actor_lr": 1e-3,
    "critic_lr": 2e-3,
    "std": 0.1,
    "kl_coef": 1.0,
    "ema_rate": 0.02,
    "architecture": {"hidden": 32, "layers": 1},
}
"""Settings for the few hundred decisions of one run; see `methods.ac_odm.AGENT`."""


@register_method("hds")
@dataclass(frozen=True)
class HDS(AgentPreset):
    """The preset HDS of `AgentMethod`.

    - `weights`: (w_a, w_q, w_s); by default (1, 0.1, 0.1), and (1, 10, 10) with `preset: paper`.
    - `quality`: name of a score of the corpus's domains, or scores by domain name.
    - `agent`: overrides `AGENT`, or the paper's settings, of SAC.

    The other options are those of AC-ODM.
    """

    preset: Literal["default", "paper"] = "default"
    mode: Literal["online", "proxy"] = "online"
    proxies: int = 1
    critic: Literal["vector", "scalar"] = "vector"
    reward: Literal["gain", "random"] = "gain"
    weights: tuple[float, float, float] | None = None
    quality: str | Mapping[str, float] = "mtld"
    objective: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != 3:
            raise ConfigError(
                f"weights are {self.weights}: give three, for influence, quality and stability"
            )
        super().__post_init__()

    def published(self) -> AgentMethod:
        return AgentMethod(
            agent="sac",
            reward="holistic_published",
            mode=self.mode,
            proxies=self.proxies,
            critic=self.critic,
            warmup_intervals=PAPER.learning_starts,
            reference=None,
            seed=self.seed,
            agent_settings={**asdict(PAPER), **self.agent},
            reward_settings=self._terms((1.0, 10.0, 10.0)),
        )

    def around_reference(self) -> AgentMethod:
        reference, reward_settings = self.reference_and_reward()
        return AgentMethod(
            agent="sac",
            reward="holistic",
            mode=self.mode,
            proxies=self.proxies,
            critic=self.critic,
            objective=self.objective,
            reference=reference,
            seed=self.seed,
            agent_settings={**AGENT, **self.agent},
            reward_settings={**reward_settings, **self._terms((1.0, 0.1, 0.1))},
        )

    def _terms(self, weights: tuple[float, float, float]) -> dict[str, Any]:
        return {"weights": list(self.weights or weights), "quality": self.quality}

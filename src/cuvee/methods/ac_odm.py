"""AC-ODM: actor-critic online data mixing with a gradient-alignment reward.

Source: arXiv 2505.23878 v2, ICML 2026.

    state    samples drawn, losses and their changes by domain, weight norms and their changes,
             progress (`policies.encoders`)
    action   the mixture
    reward   the gain r_i of each domain, or Σ_i α_i r_i with a scalar critic
             `reward: alignment` is the paper's: r̂_i ← ξ r̂_i + (1 − ξ) W̃_i / α_i
             (`policies.rewards`)
    agent    DDPG, after a warm-up in which ODM acts (`agents.ddpg`)

Mode `online` is the paper's non-proxy mode: it needs no proxy run and learns on the target run.
Mode `proxy` proposes one run on the proxy model in which the policy learns, and commits to its
frozen actor. The target run then measures no reward.

The released code never updates the actor (it calls the critic's optimizer after the actor's
backward pass), has a fixed number of 22 domains, takes all changes relative to step 1, divides by
zero for a domain that is missing from a batch, and does not save the replay buffer. This
implementation follows the paper. The files named above list their deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cuvee.core.registry import register_method
from cuvee.methods.agent import AgentMethod, AgentPreset

AGENT: Mapping[str, Any] = {
    "updates": 4,
    "tau": 0.02,
    "learning_starts": 4,
    "batch_size": 32,
    "actor_lr": 2e-3,
    "critic_lr": 2e-3,
    "noise": 0.05,
    "kl_coef": 0.35,
    "ema_rate": 0.005,
    "architecture": {"hidden": 32},
}
"""Settings for the few hundred decisions of one run.

The paper's settings (`agents.ddpg.PAPER`) need tens of thousands of decisions.
"""


@register_method("ac_odm")
@dataclass(frozen=True)
class ACODM(AgentPreset):
    """The preset AC-ODM of `AgentMethod`.

    - `reward`: `gain`; `alignment` is the paper's reward; `random` is noise, for ablations.
    - `smoothing`, `stride`: arguments of the reward.
    - `values`: v by domain name, how much each domain counts. Default: 1 for domains with a
      validation loss.
    - `agent`: overrides `AGENT`, the settings of DDPG.

    The other options are those of `AgentMethod`.
    """

    mode: Literal["online", "proxy"] = "online"
    critic: Literal["vector", "scalar"] = "vector"
    reward: str = "gain"
    warmup_intervals: int = 4
    smoothing: float = 0.9
    stride: int = 1
    values: Mapping[str, float] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        self.configured()  # raises for bad settings here, not when the run starts

    def configured(self) -> AgentMethod:
        return AgentMethod(
            agent="ddpg",
            reward=self.reward,
            mode=self.mode,
            critic=self.critic,
            warmup_intervals=self.warmup_intervals,
            seed=self.seed,
            agent_settings={**AGENT, **self.agent},
            reward_settings={
                "smoothing": self.smoothing,
                "stride": self.stride,
                "values": dict(self.values),
            },
        )

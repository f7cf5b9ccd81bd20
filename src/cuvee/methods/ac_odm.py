"""AC-ODM: actor-critic online data mixing with a gradient-alignment reward (arXiv 2505.23878 v2, ICML 2026).

    state    samples drawn, losses and their changes by domain, weight norms and their changes, progress   (`policies.encoders`)
    action   the mixture
    reward   the gain r_i of each domain, or Σ_i α_i r_i with a scalar critic; `reward: alignment` for the paper's
             r̂_i ← ξ r̂_i + (1 − ξ) W̃_i / α_i                                                             (`policies.rewards`)
    agent    DDPG after a warm-up in which ODM acts                                                         (`agents.ddpg`)

`online` (the paper's non-proxy mode) proposes nothing and learns on the target run itself. `proxy` proposes one run on the proxy
model, with the policy learning, and commits to its actor, frozen: the target run measures no reward.

The released code never steps the actor (it calls the critic's optimizer after the actor's backward pass), hard-codes 22 domains,
takes all changes against step 1, divides by zero for a domain missing from a batch and does not save the replay buffer. What is
here was built from the paper; deviations are listed where they are made, in the files named above.
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
"""For the few hundred decisions of one run. The paper's settings (`agents.ddpg.PAPER`) need tens of thousands."""


@register_method("ac_odm")
@dataclass(frozen=True)
class ACODM(AgentPreset):
    """`values` is v by name: which domains count; by default those that are validated. `agent` overrides `AGENT`, the settings of
    DDPG. `reward: alignment` is the paper's, `random` the ablation in which the reward is noise."""

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
        self.configured()  # refuses bad settings now and not when the run starts

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

"""AC-ODM: actor-critic online data mixing with a gradient-alignment reward.

Source: arXiv 2505.23878 v2, ICML 2026.

    state    samples drawn, losses and their changes by domain, weight norms and their changes,
             progress (`policies.encoders`), the closed form and what is left of epoch caps
    action   the mixture, relative to the closed form `policies.paced.Paced`
    reward   what each domain helped more than the closed form expected (`policies.gain_rewards`)
    agent    DDPG (`agents.ddpg`)

`preset: paper` has the published settings: the state without closed form and caps, the reward
r̂_i ← ξ r̂_i + (1 − ξ) W_i / α_i over all domains (`policies.rewards`), 833 intervals of warm-up in
which ODM acts, and `agents.ddpg.PAPER`. It needs thousands of decisions.

Mode `online` is the paper's non-proxy mode: it needs no proxy run and learns on the target run.
In mode `proxy` the policy learns on `proxies` runs of the proxy model, one after another, and its
frozen actor steers the target run, which measures no reward.

The released code never updates the actor (it calls the critic's optimizer after the actor's
backward pass), has a fixed number of 22 domains, takes all changes relative to step 1, divides by
zero for a domain that is missing from a batch, and does not save the replay buffer. This
implementation follows the paper. The files named above list their deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cuvee.agents.ddpg import PAPER
from cuvee.core.registry import register_method
from cuvee.methods.agent import AgentMethod, AgentPreset

AGENT: Mapping[str, Any] = {
    "updates": 2,
    "tau": 0.02,
    "learning_starts": 8,
    "batch_size": 32,
    "actor_lr": 1e-3,
    "critic_lr": 2e-3,
    "noise": 0.05,
    "kl_coef": 1.0,
    "ema_rate": 0.02,
    "architecture": {"hidden": 32, "layers": 1},
}
"""Settings for the few hundred decisions of one run.

With a `kl_coef` of 1 and rewards in units of z, the closed form is the best mixture for rewards
that do not change.
"""


@register_method("ac_odm")
@dataclass(frozen=True)
class ACODM(AgentPreset):
    """The preset AC-ODM of `AgentMethod`.

    - `preset`: `default`, or `paper` for the published settings.
    - `reward`: `gain`, or `random`, in which gains are replaced by noise, for ablations.
    - `objective`: weights by domain name. The key `objective` of the configuration sets it.
    - `reference`: overrides settings of the closed form (`policies.paced.Paced`).
    - `agent`: overrides `AGENT`, or the paper's settings, of DDPG.

    `mode`, `proxies` and `critic` as in `AgentMethod`.
    """

    preset: Literal["default", "paper"] = "default"
    mode: Literal["online", "proxy"] = "online"
    proxies: int = 1
    critic: Literal["vector", "scalar"] = "vector"
    reward: Literal["gain", "random"] = "gain"
    objective: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def published(self) -> AgentMethod:
        return AgentMethod(
            agent="ddpg",
            reward="alignment",
            mode=self.mode,
            proxies=self.proxies,
            critic=self.critic,
            warmup_intervals=PAPER.learning_starts,
            reference=None,
            seed=self.seed,
            agent_settings={**asdict(PAPER), **self.agent},
            reward_settings={"published": True},
        )

    def around_reference(self) -> AgentMethod:
        reference, reward_settings = self.reference_and_reward()
        return AgentMethod(
            agent="ddpg",
            mode=self.mode,
            proxies=self.proxies,
            critic=self.critic,
            objective=self.objective,
            reference=reference,
            seed=self.seed,
            agent_settings={**AGENT, **self.agent},
            reward_settings=reward_settings,
        )

"""Any registered agent with any registered encoder and reward. AC-ODM and HDS are presets of it.

    method: {name: agent, agent: sac, encoder: standard, reward: gain, agent_settings: {updates: 6}}

Mode `online` proposes nothing and learns on the target run. Mode `proxy` proposes one proxy run in which the policy learns, and
commits to its frozen actor: the target run then measures no reward. The policy itself is `policies.agent_policy.AgentPolicy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.files import load_policy


@register_method("agent")
@dataclass(frozen=True)
class AgentMethod:
    """`agent_settings` and `reward_settings` are what the agent's `settings_type` and the reward take.

    `critic: vector` learns a value for each domain, `scalar` one for all. In the first `warmup_intervals` ODM acts.
    """

    agent: str = "ddpg"
    encoder: str = "standard"
    reward: str = "gain"
    mode: Literal["online", "proxy"] = "online"
    critic: Literal["vector", "scalar"] = "vector"
    warmup_intervals: int = 4
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    reward_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for option, allowed in (("mode", ("online", "proxy")), ("critic", ("vector", "scalar"))):
            if getattr(self, option) not in allowed:
                raise ConfigError(
                    f"{option} is {getattr(self, option)!r}: use {' or '.join(allowed)}"
                )
        self.policy()  # refuses bad settings now and not when the run starts

    def policy(self) -> AgentPolicy:
        return AgentPolicy(
            self.agent,
            self.reward,
            encoder=self.encoder,
            vector=self.critic == "vector",
            observe_reward=self.mode == "online",
            warmup_intervals=self.warmup_intervals,
            seed=self.seed,
            agent_settings=self.agent_settings,
            reward_settings=self.reward_settings,
        )

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return () if self.mode == "online" or logged else (self.policy(),)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Raises `PolicyError` if no proxy run has kept its policy."""
        if self.mode == "online":
            return self.policy()
        kept = [run.policy for run in logged if run.policy]
        if not kept:
            raise PolicyError(
                "no proxy run has left a policy yet: run the proxies first (`cuvee search`)"
            )
        policy = load_policy(Path(kept[-1]))
        if not isinstance(policy, AgentPolicy):
            raise PolicyError(
                f"{kept[-1]} holds a {type(policy).__name__}, not a policy with an agent"
            )
        return policy.frozen()


class AgentPreset(ABC):
    """A method that is an `AgentMethod` with options of its own."""

    @abstractmethod
    def configured(self) -> AgentMethod: ...

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return self.configured().propose(corpus, logged)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return self.configured().commit(corpus, logged)

"""The method `agent`: any registered agent with any registered encoder and reward.

    method: {name: agent, agent: sac, encoder: standard, reward: gain, agent_settings: {updates: 6}}

Mode `online` needs no proxy run and learns on the target run. Mode `proxy` proposes one proxy run
in which the policy learns, and commits to its frozen actor. The target run then measures no reward.
The policy is `policies.agent_policy.AgentPolicy`. AC-ODM and HDS are presets of this method.
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
    """Learns a policy with an agent.

    - `agent`, `encoder`, `reward`: names in the registries.
    - `mode`: `online` learns on the target run, `proxy` on one proxy run.
    - `critic`: `vector` learns a value for each domain, `scalar` one for all.
    - `warmup_intervals`: number of first intervals in which ODM acts.
    - `agent_settings`, `reward_settings`: arguments of the agent's `settings_type` and of the
      reward.

    Raises `ConfigError` or `PolicyError` for bad settings.
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
        self.policy()  # raises for bad settings here, not when the run starts

    def policy(self) -> AgentPolicy:
        """Return the policy at its start, before it has learned anything."""
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
        """Return the policy for the target run.

        Raises `PolicyError` in mode proxy if no proxy run has saved its policy.
        """
        if self.mode == "online":
            return self.policy()
        kept = [run.policy for run in logged if run.policy]
        if not kept:
            raise PolicyError(
                "no proxy run has saved a policy yet: run the proxies first (`cuvee search`)"
            )
        policy = load_policy(Path(kept[-1]))
        if not isinstance(policy, AgentPolicy):
            raise PolicyError(
                f"{kept[-1]} holds a {type(policy).__name__}, not a policy with an agent"
            )
        return policy.frozen()


class AgentPreset(ABC):
    """Base class of methods that are an `AgentMethod` with options of their own."""

    @abstractmethod
    def configured(self) -> AgentMethod:
        """Return the method with this preset's options."""
        ...

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return self.configured().propose(corpus, logged)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return self.configured().commit(corpus, logged)

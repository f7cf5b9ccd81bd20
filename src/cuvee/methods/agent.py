"""The method `agent`: any registered agent with any registered encoder and reward.

    method: {name: agent, agent: sac, encoder: standard, reward: gain, agent_settings: {updates: 6}}

Mode `online` needs no proxy run and learns on the target run. In mode `proxy`, the policy learns on
`proxies` runs, one after another, and its frozen actor steers the target run. Each proxy continues
with the networks and the replay buffer of the one before. The target run measures no reward.

The proxies are episodes, too: each has another power and sharpness of the closed form, and the
losses at their ends choose those of the target run (`methods.pace`). Its gains are averages over
all proxies.

The policy is `policies.agent_policy.AgentPolicy`. AC-ODM and HDS are presets of this method.

`REFERENCE` is the closed form from which agents start: the control `gain`.
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
from cuvee.methods.pace import (
    Pair,
    best_pace,
    check_proxies,
    episodes_of,
    evidence,
    measured,
    pairs,
    settings_of,
)
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.files import load_policy
from cuvee.policies.paced import Paced

REFERENCE: Mapping[str, Any] = {"sharpness": 1.0}


@register_method("agent")
@dataclass(frozen=True)
class AgentMethod:
    """Learns a policy with an agent.

    - `agent`, `encoder`, `reward`: names in the registries.
    - `mode`: `online` learns on the target run, `proxy` on proxy runs.
    - `proxies`: number of proxy runs in mode `proxy`, at most 9 with a reference.
    - `critic`: `vector` learns a value for each domain, `scalar` one for all.
    - `observe_reward`: whether the last rewards are features. The target run then measures them.
    - `warmup_intervals`: number of first intervals in which ODM acts.
    - `objective`: weights by domain name. The key `objective` of the configuration sets it.
    - `reference`: settings of `policies.paced.Paced`, from which the agent starts. None: uniform.
    - `agent_settings`, `reward_settings`: arguments of the agent's `settings_type` and of the
      reward.

    Raises `ConfigError` or `PolicyError` for bad settings.
    """

    agent: str = "ddpg"
    encoder: str = "standard"
    reward: str = "gain"
    mode: Literal["online", "proxy"] = "online"
    proxies: int = 1
    critic: Literal["vector", "scalar"] = "vector"
    observe_reward: bool = False
    warmup_intervals: int = 0
    objective: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, Any] | None = field(default_factory=lambda: dict(REFERENCE))
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    reward_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for option, allowed in (("mode", ("online", "proxy")), ("critic", ("vector", "scalar"))):
            if getattr(self, option) not in allowed:
                raise ConfigError(
                    f"{option} is {getattr(self, option)!r}: use {' or '.join(allowed)}"
                )
        if self.proxies < 1:
            raise ConfigError(f"proxies is {self.proxies}: mode proxy needs 1 or more")
        if self.reference is not None:
            check_proxies(self.proxies, self._default)
        self.policy()  # raises for bad settings here, not when the run starts

    def policy(self) -> AgentPolicy:
        """Return the policy at its start, before it has learned anything."""
        return AgentPolicy(
            self.agent,
            self.reward,
            encoder=self.encoder,
            vector=self.critic == "vector",
            observe_reward=self.observe_reward,
            warmup_intervals=self.warmup_intervals,
            objective=self.objective,
            reference=self.reference,
            seed=self.seed,
            agent_settings=self.agent_settings,
            reward_settings=self.reward_settings,
        )

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        if self.mode == "online" or len(logged) >= self.proxies:
            return ()
        policy = _learned(logged) if logged else self.policy()
        if self.reference is not None:
            policy = policy.around(settings_of(pairs(self._default)[len(logged)]))
        return (policy,)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy for the target run.

        Raises `PolicyError` in mode proxy if no proxy run has saved its policy.
        """
        if self.mode == "online":
            return self.policy()
        learned = _learned(logged).frozen()
        if self.reference is None:
            return learned
        episodes = episodes_of(logged, self.objective, within=["reference"])
        pace = best_pace(episodes, self._default)
        chosen = {
            **settings_of(pace.pair),
            "evidence": evidence(pace, self._default, episodes),
        }
        return learned.around(chosen, measured(logged))

    @property
    def _default(self) -> Pair:
        """The power and sharpness of the closed form before anything is learned."""
        settings = Paced(**self.reference or {}).settings()
        return settings["power"], settings["sharpness"]


def _learned(logged: Sequence[Run]) -> AgentPolicy:
    """Return the policy that the last proxy run saved."""
    kept = [run.policy for run in logged if run.policy]
    if not kept:
        raise PolicyError(
            "no proxy run has saved a policy yet: run the proxies first (`cuvee search`)"
        )
    policy = load_policy(Path(kept[-1]))
    if not isinstance(policy, AgentPolicy):
        raise PolicyError(f"{kept[-1]} holds a {type(policy).__name__}, not a policy with an agent")
    return policy


class AgentPreset(ABC):
    """Base class of methods that are an `AgentMethod` with options of their own.

    Subclasses have the options `preset`, `reward`, `reference` and `seed`.
    """

    preset: str
    reward: str
    reference: Mapping[str, Any]
    seed: int

    def __post_init__(self) -> None:
        for option, allowed in (("preset", ("default", "paper")), ("reward", ("gain", "random"))):
            if getattr(self, option) not in allowed:
                raise ConfigError(
                    f"{option} is {getattr(self, option)!r}: use {' or '.join(allowed)}"
                )
        self.configured()  # raises for bad settings here, not when the run starts

    @abstractmethod
    def published(self) -> AgentMethod:
        """Return the method with the published settings."""
        ...

    @abstractmethod
    def around_reference(self) -> AgentMethod:
        """Return the method that starts from the closed form."""
        ...

    def configured(self) -> AgentMethod:
        """Return the method with this preset's options."""
        return self.published() if self.preset == "paper" else self.around_reference()

    def reference_and_reward(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the closed form, and those that the reward shares with it."""
        noise = {"noise": self.seed} if self.reward == "random" else {}
        reference = {**REFERENCE, **self.reference, **noise}
        shared: dict[str, Any] = {
            key: reference[key] for key in ("kept", "probe", "noise") if key in reference
        }
        return reference, shared

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return self.configured().propose(corpus, logged)

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return self.configured().commit(corpus, logged)

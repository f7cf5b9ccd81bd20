"""Methods for scarce domains that need no networks. An agent has to beat them.

    even    a scarce domain gets the same share all along, as much as its cap allows
    late    the same mean share, rising with the fourth power of progress
    gain    late, and the other domains by their gain: ∝ exp(κ z)

A scarce domain is part of the `objective` and has an epoch cap (`guard.epochs`). See
`policies.paced` for the formulas.

In mode `proxy`, `gain` takes its power, its sharpness and its gains from proxy runs
(`methods.pace`), and measures nothing on the target run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from cuvee.policies.paced import Paced
from cuvee.policies.pacing import LATE


@register_method("even")
@dataclass(frozen=True)
class Even:
    """The same share all along.

    `rest` says what the domains that are not scarce get relative to each other. `objective` holds
    weights by name; the key `objective` of the configuration sets it for all methods.
    """

    rest: Literal["uniform", "natural"] = "uniform"
    objective: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy()  # raises for bad settings before a run starts

    def policy(self) -> Paced:
        return Paced(power=0.0, rest=self.rest, objective=self.objective)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return self.policy()


@register_method("late")
@dataclass(frozen=True)
class Late(Even):
    """A share that rises with progress to the power of `power`."""

    power: float = LATE

    def policy(self) -> Paced:
        return Paced(power=self.power, rest=self.rest, objective=self.objective)


@register_method("gain")
@dataclass(frozen=True)
class Gain(Late):
    """A rising share, and the other domains by their gain.

    - `sharpness`: κ.
    - `kept`: weight of an interval's gains after one more interval.
    - `probe`: overrides settings of `probes.target_gain.TargetGain`.
    - `mode`: `online` measures on the target run, `proxy` on `proxies` proxy runs.
    """

    sharpness: float = 1.0
    kept: float = 0.97
    probe: Mapping[str, Any] = field(default_factory=dict)
    mode: Literal["online", "proxy"] = "online"
    proxies: int = 6

    def __post_init__(self) -> None:
        if self.mode not in ("online", "proxy"):
            raise ConfigError(f"mode is {self.mode!r}: use online or proxy")
        check_proxies(self.proxies, self._default)
        super().__post_init__()

    @property
    def _default(self) -> Pair:
        return float(self.power), float(self.sharpness)

    def policy(self, **changes: Any) -> Paced:
        own = {
            "power": self.power,
            "rest": self.rest,
            "objective": self.objective,
            "sharpness": self.sharpness,
            "kept": self.kept,
            "probe": self.probe,
        }
        return Paced(**{**own, **changes})

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        if self.mode == "online":
            return ()
        known = {episode.pair for episode in episodes_of(logged, self.objective)}
        wanted = pairs(self._default)[: self.proxies]
        return [self.policy(**settings_of(pair)) for pair in wanted if pair not in known]

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy for the target run.

        Raises `PolicyError` in mode proxy if no proxy run is logged.
        """
        if self.mode == "online":
            return self.policy()
        episodes = episodes_of(logged, self.objective)
        if not episodes:
            raise PolicyError("no proxy run is logged yet: run the proxies first (`cuvee search`)")
        pace = best_pace(episodes, self._default)
        why = evidence(pace, self._default, episodes)
        policy = self.policy(**settings_of(pace.pair), frozen=True, evidence=why)
        policy.load_state_dict(measured(logged))
        return policy

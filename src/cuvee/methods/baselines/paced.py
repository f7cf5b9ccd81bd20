"""Methods for scarce domains that need no networks. An agent has to beat them.

    even    a scarce domain gets the same share all along, as much as its cap allows
    late    the same mean share, rising with the fourth power of progress
    gain    late, and the other domains by their gain: ∝ exp(κ z)

A scarce domain is part of the `objective` and has an epoch cap (`guard.epochs`). See
`policies.paced` for the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
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

    `sharpness` is κ. `kept` is the weight of an interval's gains after one more interval. `probe`
    overrides settings of `probes.target_gain.TargetGain`.
    """

    sharpness: float = 1.0
    kept: float = 0.97
    probe: Mapping[str, Any] = field(default_factory=dict)

    def policy(self) -> Paced:
        return Paced(
            power=self.power,
            rest=self.rest,
            objective=self.objective,
            sharpness=self.sharpness,
            kept=self.kept,
            probe=self.probe,
        )

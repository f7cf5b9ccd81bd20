"""`Plan`: the stages that a target run trains on.

A recommendation returns a plan, and writers write it for a trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture


@dataclass(frozen=True)
class Stage:
    """A mixture of tokens, from `start` to `end`, which are shares of the token budget."""

    start: float
    end: float
    mixture: Mixture


@dataclass(frozen=True)
class Plan:
    """One to three stages over the same domains, in order. They cover the run from 0 to 1.

    `tokens` is the target run's budget; `available` is tokens by domain. Either may be unknown.
    """

    stages: tuple[Stage, ...]
    tokens: int | None = None
    available: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges = [stage.start for stage in self.stages] + [stage.end for stage in self.stages[-1:]]
        whole = bool(edges) and edges[0] == 0.0 and abs(edges[-1] - 1.0) < 1e-9
        joined = all(abs(one.end - other.start) < 1e-9 for one, other in pairwise(self.stages))
        if not whole or not joined or edges != sorted(edges):
            raise ConfigError(f"the stages of a plan are at {edges}: they must run from 0 to 1")
        if any(stage.mixture.names != self.domains for stage in self.stages):
            raise ConfigError("the stages of a plan must have the same domains in the same order")

    @property
    def domains(self) -> tuple[str, ...]:
        return self.stages[0].mixture.names

    @property
    def mean(self) -> Mixture:
        """Each domain's share of the whole budget."""
        weights_K: FloatArray = np.sum(
            [(stage.end - stage.start) * stage.mixture.weights_K for stage in self.stages], axis=0
        )
        return Mixture.normalise(self.domains, weights_K)

    def epochs(self) -> dict[str, float]:
        """How often each domain is read whose tokens are known; empty without a budget."""
        if self.tokens is None:
            return {}
        return {
            name: share * self.tokens / self.available[name]
            for name, share in self.mean.as_dict().items()
            if self.available.get(name, 0) > 0
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "stages": [
                {"start": stage.start, "end": stage.end, "weights": stage.mixture.as_dict()}
                for stage in self.stages
            ],
            "tokens": self.tokens,
            "available": dict(self.available),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Raises `ConfigError` for what `to_json` has not written."""
        try:
            stages = tuple(
                Stage(one["start"], one["end"], Mixture.of(one["weights"]))
                for one in data["stages"]
            )
            return cls(stages, data["tokens"], data["available"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is no plan of `cuvee recommend`: {error!r}") from error

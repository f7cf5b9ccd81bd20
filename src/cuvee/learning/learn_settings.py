"""`LearnSettings`: the options of `cuvee learn`, from plain JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cuvee.agents.history import PRESETS, HistoryArchitecture
from cuvee.core.errors import ConfigError
from cuvee.core.renamed import unknown_settings
from cuvee.learning.offline import OfflineSettings

LEARNERS = ("cql", "model", "both")


@dataclass(frozen=True)
class LearnSettings(OfflineSettings):
    """Settings of `learn`, in addition to those of `OfflineSettings`.

    - `bc_updates`, `updates`: number of updates of behaviour cloning and of Q-learning.
    - `eval_every`: number of Q-learning updates between evaluations.
    - `held_out`: fraction of the runs of each space that are held out. With 0 nothing is evaluated,
      and the last actor is kept.
    - `imagined`: number of simulated trajectories to learn from in addition (see `imagine`).
    - `initial`: folder of a policy whose actor is the starting point, or `universal`.
    - `learner`: `cql`; `model` trains the actor in worlds that are fitted to the runs instead
      (`learning.model_actor`); `both` does `updates` of each, first of CQL. With `model` and
      `both`, a plan (`learning.planning`) is evaluated beside the actor and played if it is surely
      better than the static mixture and the actor is not.
    - `coarse`: also learn from each run in coarser domain spaces (see `learning.merging`).
    - `architecture`: name of a preset, or its fields.
    """

    bc_updates: int = 300
    updates: int = 1000
    eval_every: int = 100
    held_out: float = 0.25
    imagined: int = 0
    initial: str = ""
    coarse: bool = True
    learner: str = "cql"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise ConfigError(
                f"held_out is {self.held_out}: it is a fraction of the runs, at least 0 and below 1"
            )
        if self.learner not in LEARNERS:
            raise ConfigError(f"learner is {self.learner!r}: use {', '.join(LEARNERS)}")
        if self.eval_every < 1 or min(self.bc_updates, self.updates) < 0:
            raise ConfigError("eval_every must be 1 or more, bc_updates and updates 0 or more")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the settings from plain JSON.

        Raises `ConfigError` that names unknown options, and for values of the wrong type.
        """
        known = [one.name for one in dataclasses.fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise ConfigError(unknown_settings("the agent", unknown, known))
        given = options.get("architecture", "small")
        if isinstance(given, str) and given not in PRESETS:
            raise ConfigError(
                f"architecture is {given!r}: use {' or '.join(PRESETS)}, or its fields"
            )
        try:
            architecture = (
                PRESETS[given] if isinstance(given, str) else HistoryArchitecture(**given)
            )
            return cls(**{**options, "architecture": architecture})
        except TypeError as error:
            raise ConfigError(f"the agent cannot be built from {dict(options)}: {error}") from error

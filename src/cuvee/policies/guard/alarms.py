"""What makes the guard stop a policy. Each alarm looks at one decision at a time and sounds after `patience` bad ones in a row.

collapse           nearly everything goes to one domain, or nearly nothing to the target domains
value_divergence   the agent's critic has lost its footing, or learning is refused again and again
run_divergence     the loss of the model rises far above its best

They are pure functions of what they are told, so their state is a few numbers and resumes exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cuvee.core.domain import natural_K
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, State
from cuvee.core.signals import Signals

_SMOOTHING = (
    0.8  # of losses: one interval's batch is noisy, most of all for domains of which it held little
)


@dataclass(frozen=True)
class AlarmSettings:
    """Where alarms begin; None turns that one off."""

    patience: int = 5
    """Decisions in a row."""
    collapse: float | None = 0.99
    """Share of one domain in what a policy that learns proposes."""
    starved: float | None = 0.01
    """Share of the target domains together in what it proposes, relative to their natural share."""
    value: float | None = 1e4
    """Size of an agent's values, or root of its critic's loss, in units of its reward's deviation."""
    rise: float | None = 1.5
    """Training loss above its best, in nats: the mean over the tokens of an interval, each against the best of its domain."""
    domain_rise: float | None = 4.0
    """The same of any one domain."""

    def __post_init__(self) -> None:
        if self.patience is None or self.patience < 1:
            raise ConfigError(f"alarms.patience is {self.patience}: it must be 1 or more decisions")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(
                    f"alarms.{field.name} is {value}: it must be above 0; null turns this alarm off"
                )


@dataclass(frozen=True)
class Timestep:
    """A decision and what came of it, as alarms are told. `signals` are the believable ones; `refused` says why the policy did
    not learn from them; `learns` is whether it has a state that could go wrong, unlike a mixture that a user wrote down."""

    signals: Signals
    proposed: Mixture | None
    metrics: Metrics
    refused: str | None = None
    learns: bool = True


class Alarm(ABC):
    name: str

    def __init__(self, settings: AlarmSettings) -> None:
        self.settings = settings
        self.bad = 0

    @abstractmethod
    def complaint(self, timestep: Timestep) -> str | None:
        """What is wrong with this one decision."""

    def update(self, timestep: Timestep) -> str | None:
        """The complaint, once there were `patience` in a row."""
        complaint = self.complaint(timestep)
        self.bad = self.bad + 1 if complaint else 0
        return (
            f"{complaint}; {self.bad} decisions in a row"
            if self.bad >= self.settings.patience
            else None
        )

    def state_dict(self) -> State:
        return {"bad": self.bad}

    def load_state_dict(self, state: State) -> None:
        self.bad = int(state["bad"])


class Collapse(Alarm):
    name = "collapse"

    def complaint(self, timestep: Timestep) -> str | None:
        proposed = timestep.proposed
        if proposed is None or len(proposed) < 2 or not timestep.learns:
            return None
        heaviest = int(proposed.weights_K.argmax())
        share = float(proposed.weights_K[heaviest])
        if self.settings.collapse is not None and share >= self.settings.collapse:
            return f"{proposed.names[heaviest]} gets {share:.4f} of the tokens"
        domains, given = timestep.signals.domains, proposed.as_dict()
        targets = [domain.name for domain in domains if domain.is_target]
        if self.settings.starved is None or not targets:
            return None
        due = float(natural_K(domains)[[domain.is_target for domain in domains]].sum())
        got = sum(given.get(name, 0.0) for name in targets)
        if got < self.settings.starved * due:
            return f"the target domains ({', '.join(targets)}) get {got:.2e} of the tokens, of which they hold {due:.2e}"
        return None


class ValueDivergence(Alarm):
    """Reads the agent's own figures, `metrics["agent"]`: NAME_loss (a critic's is squared, an actor's is a value), NAME_value,
    NAME_refused."""

    name = "value_divergence"

    def complaint(self, timestep: Timestep) -> str | None:
        if timestep.refused:
            return f"learning was refused ({timestep.refused})"
        if rejected := timestep.metrics.get("rejected"):
            return f"the agent refused what it was shown ({rejected})"
        figures = timestep.metrics.get("agent")
        if not isinstance(figures, Mapping) or self.settings.value is None:
            return None
        for name, figure in figures.items():
            if not isinstance(figure, (int, float)):
                continue
            if not math.isfinite(figure):
                return f"{name} is {figure}"
            if name.endswith("_refused") and figure > 0:
                return f"{name}: gradients were not finite"
            size = math.sqrt(abs(figure)) if name == "critic_loss" else abs(figure)
            if name.endswith(("_loss", "_value")) and size > self.settings.value:
                return f"{name} is {figure:.3g}"
        return None


class RunDivergence(Alarm):
    """Losses are smoothed by domain, so that neither noise nor another mixture looks like a rise."""

    name = "run_divergence"

    def __init__(self, settings: AlarmSettings) -> None:
        super().__init__(settings)
        self.level: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def complaint(self, timestep: Timestep) -> str | None:
        signals, rises, weighed, tokens = timestep.signals, {}, 0.0, 0
        for k, name in enumerate(signals.names):
            if not signals.loss.present[k]:
                continue
            loss = float(signals.loss.values[k])
            self.level[name] = _SMOOTHING * self.level.get(name, loss) + (1.0 - _SMOOTHING) * loss
            self.best[name] = min(self.best.get(name, math.inf), self.level[name])
            rises[name] = self.level[name] - self.best[name]
            weighed += rises[name] * int(signals.tokens_K[k])
            tokens += int(signals.tokens_K[k])
        mean = weighed / tokens if tokens else 0.0
        if self.settings.rise is not None and mean > self.settings.rise:
            return f"the training loss is {mean:.2f} nats above its best"
        worst = max(rises, key=lambda name: rises[name], default=None)
        if (
            worst
            and self.settings.domain_rise is not None
            and rises[worst] > self.settings.domain_rise
        ):
            return f"the loss of {worst} is {rises[worst]:.2f} nats above its best of {self.best[worst]:.2f}"
        return None

    def state_dict(self) -> State:
        return {**super().state_dict(), "level": dict(self.level), "best": dict(self.best)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.level, self.best = dict(state["level"]), dict(state["best"])


class Alarms:
    """All of them together."""

    def __init__(self, settings: AlarmSettings) -> None:
        self._alarms: Sequence[Alarm] = (
            Collapse(settings),
            ValueDivergence(settings),
            RunDivergence(settings),
        )

    def update(self, timestep: Timestep) -> dict[str, str]:
        """Why each alarm sounds, for those that do."""
        said = {alarm.name: alarm.update(timestep) for alarm in self._alarms}
        return {name: why for name, why in said.items() if why}

    def calm(self) -> None:
        """Begins to count anew, as when a policy is given another chance; what was best stays known."""
        for alarm in self._alarms:
            alarm.bad = 0

    def state_dict(self) -> dict[str, Any]:
        return {alarm.name: alarm.state_dict() for alarm in self._alarms}

    def load_state_dict(self, state: State) -> None:
        for alarm in self._alarms:
            alarm.load_state_dict(state[alarm.name])

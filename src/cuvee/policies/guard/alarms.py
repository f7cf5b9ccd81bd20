"""Alarms: the conditions under which the guard stops a policy.

Each alarm checks one decision at a time. It goes off after `patience` bad decisions in a row.

- `collapse`: nearly all weight is on one domain, or nearly none on the target domains.
- `value_divergence`: the agent's critic diverges, or learning is refused again and again.
- `run_divergence`: the training loss of the model is far above its best.

Alarms depend only on the timesteps they receive. Their state is a few numbers, and a resumed run
continues exactly.
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

# Losses of one interval are noisy, in particular for domains with few tokens.
_SMOOTHING = 0.8


@dataclass(frozen=True)
class AlarmSettings:
    """Thresholds of the alarms. None turns an alarm off."""

    patience: int = 5
    """Number of bad decisions in a row before an alarm goes off."""
    collapse: float | None = 0.99
    """Highest weight of one domain in the proposal of a policy that learns."""
    starved: float | None = 0.01
    """Lowest weight of all target domains together in the proposal, relative to natural."""
    value: float | None = 1e4
    """Largest value, or root of the critic loss, in units of the reward's standard deviation."""
    rise: float | None = 1.5
    """Largest rise of the training loss above its best, in nats.

    Each domain is compared with its own best. The rises are averaged over the interval's tokens.
    """
    domain_rise: float | None = 4.0
    """Largest rise of the loss of a single domain above its best, in nats."""

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
    """A decision and its result, as alarms see it.

    `signals` are the sanitized signals. `refused` is the reason why the policy did not learn from
    them. `learns` is whether the policy has a state that could diverge. A mixture that the user
    wrote down has none.
    """

    signals: Signals
    proposed: Mixture | None
    metrics: Metrics
    refused: str | None = None
    learns: bool = True


class Alarm(ABC):
    """Base class of alarms. Counts the bad decisions in a row."""

    name: str

    def __init__(self, settings: AlarmSettings) -> None:
        self.settings = settings
        self.bad = 0

    @abstractmethod
    def complaint(self, timestep: Timestep) -> str | None:
        """Return what is wrong with this decision, or None."""

    def update(self, timestep: Timestep) -> str | None:
        """Return the complaint if there were at least `patience` in a row, else None."""
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
    """Goes off when a domain gets nearly all weight or the target domains nearly none.

    Policies that do not learn are not checked.
    """

    name = "collapse"

    def complaint(self, timestep: Timestep) -> str | None:
        proposed = timestep.proposed
        if proposed is None or len(proposed) < 2 or not timestep.learns:
            return None
        heaviest = int(proposed.weights_K.argmax())
        share = float(proposed.weights_K[heaviest])
        if self.settings.collapse is not None and share >= self.settings.collapse:
            return f"{proposed.names[heaviest]} gets {share:.4f} of the tokens"
        domains = timestep.signals.domains
        weights = proposed.as_dict()
        targets = [domain.name for domain in domains if domain.is_target]
        if self.settings.starved is None or not targets:
            return None
        natural = float(natural_K(domains)[[domain.is_target for domain in domains]].sum())
        weight = sum(weights.get(name, 0.0) for name in targets)
        if weight < self.settings.starved * natural:
            return (
                f"the target domains ({', '.join(targets)}) get weight {weight:.2e}; "
                f"their natural share is {natural:.2e}"
            )
        return None


class ValueDivergence(Alarm):
    """Goes off when the agent's metrics diverge or its learning is refused.

    Checks `metrics["agent"]`: every entry must be finite. NAME_loss and NAME_value are compared
    with `AlarmSettings.value`; the critic's loss is squared, so its root is used. NAME_refused must
    be 0.
    """

    name = "value_divergence"

    def complaint(self, timestep: Timestep) -> str | None:
        if timestep.refused:
            return f"learning was refused ({timestep.refused})"
        if rejected := timestep.metrics.get("rejected"):
            return f"the agent refused the transition ({rejected})"
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
    """Goes off when the training loss rises far above its best.

    Losses are smoothed and compared per domain. Neither noise nor a change of the mixture then
    looks like a rise.
    """

    name = "run_divergence"

    def __init__(self, settings: AlarmSettings) -> None:
        super().__init__(settings)
        self.level: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def complaint(self, timestep: Timestep) -> str | None:
        signals = timestep.signals
        rises: dict[str, float] = {}
        weighted = 0.0
        tokens = 0
        for k, name in enumerate(signals.names):
            if not signals.loss.present[k]:
                continue
            loss = float(signals.loss.values[k])
            self.level[name] = _SMOOTHING * self.level.get(name, loss) + (1.0 - _SMOOTHING) * loss
            self.best[name] = min(self.best.get(name, math.inf), self.level[name])
            rises[name] = self.level[name] - self.best[name]
            weighted += rises[name] * int(signals.tokens_K[k])
            tokens += int(signals.tokens_K[k])
        mean = weighted / tokens if tokens else 0.0
        if self.settings.rise is not None and mean > self.settings.rise:
            return f"the training loss is {mean:.2f} nats above its best"
        worst = max(rises, key=lambda name: rises[name], default=None)
        if (
            worst
            and self.settings.domain_rise is not None
            and rises[worst] > self.settings.domain_rise
        ):
            return (
                f"the loss of {worst} is {rises[worst]:.2f} nats above its best of "
                f"{self.best[worst]:.2f}"
            )
        return None

    def state_dict(self) -> State:
        return {**super().state_dict(), "level": dict(self.level), "best": dict(self.best)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.level = dict(state["level"])
        self.best = dict(state["best"])


class Alarms:
    """All alarms together."""

    def __init__(self, settings: AlarmSettings) -> None:
        self._alarms: Sequence[Alarm] = (
            Collapse(settings),
            ValueDivergence(settings),
            RunDivergence(settings),
        )

    def update(self, timestep: Timestep) -> dict[str, str]:
        """Return the complaint of each alarm that goes off, by name of the alarm."""
        complaints = {alarm.name: alarm.update(timestep) for alarm in self._alarms}
        return {name: complaint for name, complaint in complaints.items() if complaint}

    def reset(self) -> None:
        """Set all counts to 0, for example when a policy gets another chance.

        The best losses are kept.
        """
        for alarm in self._alarms:
            alarm.bad = 0

    def state_dict(self) -> dict[str, Any]:
        return {alarm.name: alarm.state_dict() for alarm in self._alarms}

    def load_state_dict(self, state: State) -> None:
        for alarm in self._alarms:
            alarm.load_state_dict(state[alarm.name])

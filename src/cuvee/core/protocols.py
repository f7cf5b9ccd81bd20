"""The interfaces that everything else implements: `Policy`, `Method`, `Trainer`, and what a run and a search lean on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Run, Trajectory

State = Mapping[str, Any]
"""Nested dictionaries with string keys whose leaves are numpy arrays or JSON scalars and lists. `cuvee.core.state` saves it."""

Metrics = Mapping[str, Any]
"""What a policy says of one decision: JSON-able figures by name, logged with the interval and never read back."""


@runtime_checkable
class Probe(Protocol):
    """Names something to be measured on a model. What it is and how it is measured belongs to the trainer's side."""

    @property
    def name(self) -> str: ...


class Domains(Protocol):
    """The part of a corpus that a method needs: what the domains are, not the text in them."""

    @property
    def domains(self) -> tuple[Domain, ...]: ...


class Policy(Protocol):
    """History → next mixture; may learn on the way; never touches model or data."""

    @property
    def probes(self) -> Sequence[Probe]:
        """What it wants measured; nothing else is measured."""
        ...

    def mixture(self, so_far: Trajectory) -> Mixture: ...

    def learn(self, so_far: Trajectory) -> Metrics:
        """Called once after each interval; a no-op when frozen."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Method(Protocol):
    """Ask / tell over proxy runs."""

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Policies to try on proxies next, given what was logged; () means that there is enough."""
        ...

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """The policy for the target run."""
        ...


class Trainer(Protocol):
    """Something that trains under a mixture and reports signals: a real model, a simulator, somebody else's loop."""

    @property
    def done(self) -> bool: ...

    def start(self, probes: Sequence[Probe]) -> Signals:
        """Attaches the probes and measures before the first step."""
        ...

    def advance(self, mixture: Mixture) -> Signals:
        """Trains one interval."""
        ...


class Journal(Protocol):
    """Where a run is written down, so that it can go on after anything."""

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        """Restores trainer and policy to the last record and returns the history, or None if there is none."""
        ...

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None: ...


class Fleet(Protocol):
    """Runs proxies and keeps what they did."""

    def load(self) -> list[Run]: ...

    def run(self, policies: Sequence[Policy]) -> list[Run]: ...

"""The interfaces between packages: `Policy`, `Method`, `Trainer`, `Journal`, `Fleet`.

`cuvee.loop` is written against these interfaces only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Cost, Run, Trajectory

State = Mapping[str, Any]
"""Nested dictionaries with string keys. Leaves are numpy arrays, JSON scalars or lists.

`cuvee.core.state` writes it to disk."""

Metrics = Mapping[str, Any]
"""JSON-compatible metrics of one decision, by name. They are logged with the interval."""


@runtime_checkable
class Probe(Protocol):
    """A named request to measure something on the model during training.

    The trainer decides which names it supports and how it measures them.
    """

    @property
    def name(self) -> str: ...


class Domains(Protocol):
    """The part of a corpus that a method needs: the list of domains, without their text."""

    @property
    def domains(self) -> tuple[Domain, ...]: ...


class Policy(Protocol):
    """Chooses the next mixture from the history of a run.

    It may learn from the run. It never sees the model or the data.
    """

    @property
    def probes(self) -> Sequence[Probe]:
        """The probes that this policy needs. Nothing else is measured."""
        ...

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the mixture for the next interval."""
        ...

    def learn(self, so_far: Trajectory) -> Metrics:
        """Learn from the last interval. Called once after each interval; does nothing if frozen."""
        ...

    def state_dict(self) -> State:
        """Return everything needed to resume this policy."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        ...


class Method(Protocol):
    """Turns logged proxy runs into a policy for the target run (an ask/tell interface).

    A method may have a class attribute `grows`: the names of the options that only ask for more
    runs, such as `("proxies",)`. A search continues if these change: its finished runs are kept. A
    change of any other option is another search, with a policy of its own.
    """

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Return the policies to try next on proxies, given the runs so far.

        An empty sequence means that no more proxy runs are needed.
        """
        ...

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy for the target run."""
        ...


@dataclass(frozen=True)
class Lesson:
    """A policy and its provenance, the JSON record of what it was learned from.

    `provenance` has at least `runs`, the ids of the runs, and `learning` with its `seconds`.
    """

    policy: Policy
    provenance: Mapping[str, Any]


@runtime_checkable
class ResumableMethod(Method, Protocol):
    """A method whose learning takes so long that it must be resumable."""

    def learn(
        self,
        corpus: Domains,
        logged: Sequence[Run],
        folder: Path | None = None,
        observer: Callable[[Any], None] | None = None,
    ) -> Lesson:
        """Return the policy that `commit` would return, with its provenance.

        Keeps its state in `folder` and resumes from it. `observer` is called with the progress.
        """
        ...


class Trainer(Protocol):
    """Trains under a mixture and reports signals: a real model, a simulator or an external loop.

    `cuvee.testing.trainer.TrainerSuite` tests this contract.
    """

    @property
    def done(self) -> bool:
        """Whether the token budget is used up."""
        ...

    @property
    def cost(self) -> Cost:
        """The cost of the run since its first step, including the time before a restart."""
        ...

    def start(self, probes: Sequence[Probe]) -> Signals:
        """Attach the probes and measure once before the first step."""
        ...

    def advance(self, mixture: Mixture) -> Signals:
        """Train one interval under `mixture` and return its signals."""
        ...

    def state_dict(self) -> State:
        """Return a copy of everything that the rest of the run depends on.

        Called between intervals.
        """
        ...

    def restore(self, state: State, probes: Sequence[Probe]) -> None:
        """Attach the probes and continue from `state`. Replaces `start`.

        Raises `CheckpointError` for the state of another run.
        """
        ...

    def export(self, folder: Path) -> None:
        """Write the trained model to `folder`. A trainer without a model writes nothing."""
        ...


@runtime_checkable
class TakesDomains(Protocol):
    """A training loop to which an operator can add a domain while it runs."""

    @property
    def vocabulary(self) -> str:
        """The vocabulary that the corpus of an added domain must have."""
        ...

    def add_domain(self, name: str, folder: Path, fingerprint: str) -> Domain:
        """Add a domain of the corpus in `folder`, with weight 0 until a mixture gives it weight.

        Called between intervals. Raises `CuveeError`, and then nothing has changed.
        """
        ...


class Journal(Protocol):
    """The durable record of a run, from which it can be resumed."""

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        """Restore trainer and policy to the last record and return the trajectory up to it.

        Returns None if nothing has been recorded yet.
        """
        ...

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None:
        """Record the last interval of `so_far`, with the states of trainer and policy."""
        ...


class Fleet(Protocol):
    """Runs proxies and keeps their logged runs."""

    def load(self) -> list[Run]:
        """Return the proxy runs that are already finished."""
        ...

    def run(self, policies: Sequence[Policy]) -> list[Run]:
        """Run one proxy for each policy and return the runs in the same order."""
        ...

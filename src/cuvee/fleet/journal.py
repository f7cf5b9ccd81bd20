"""`RunJournal`: the record of a run, from which it can be resumed exactly after any interruption.

    journal = RunJournal(store, claim, checkpoints, every=10)
    with journal.attempt(trainer):  # holds the lease; an error or Ctrl-C ends the attempt
        run(trainer, policy, journal)
        journal.finish(trainer)

Each interval is one durable row, written before the next interval begins. Trainer and policy are
saved every `every` intervals and at the end. A resumed run starts from the newest complete
checkpoint and trains the later intervals again. Their rows exist already: the store accepts an
identical row and rejects a different one, so a run that is not deterministic is detected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from cuvee.core.errors import CheckpointError, CuveeError, StoreError
from cuvee.core.protocols import Metrics, Policy, State, Trainer
from cuvee.core.trajectory import Cost, Trajectory
from cuvee.fleet.store.claim import Claim, ClaimLost
from cuvee.fleet.store.store import Store

OnRecord = Callable[[Trajectory, Trainer, Metrics], None]


class CheckpointFolder(Protocol):
    """The part of `cuvee.training.checkpoint.Checkpoints` that a journal needs."""

    @property
    def folder(self) -> Path: ...

    def save(self, step: int, state: State) -> object: ...

    def latest(self) -> tuple[int, State] | None:
        """Return the newest complete checkpoint, or None."""
        ...


class RunJournal:
    """Implements `cuvee.core.protocols.Journal` for one claim.

    Without `checkpoints`, an interrupted run starts from the beginning. Checkpoints are numbered by
    interval. `on_record` is called when an interval is durable, for a live view.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        checkpoints: CheckpointFolder | None = None,
        every: int = 1,
        on_record: OnRecord | None = None,
    ) -> None:
        if every < 1:
            raise StoreError(f"a checkpoint every {every} intervals is not possible: use 1 or more")
        self._store = store
        self._claim = claim
        self._checkpoints = checkpoints
        self._every = every
        self._on_record = on_record
        self._before = Cost()
        self._located = False

    @property
    def _run_id(self) -> str:
        return self._claim.run.id

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        """Restore both from the newest complete checkpoint and return the history up to it.

        Returns None if there is no checkpoint. Raises `CheckpointError` if the checkpoint belongs
        to another run or does not fit, and `StoreError` if the store lacks its history.
        """
        latest = self._checkpoints.latest() if self._checkpoints else None
        if latest is None:
            return None
        assert self._checkpoints is not None
        folder = self._checkpoints.folder
        number, state = latest
        if state.get("run") != self._run_id:
            raise CheckpointError(
                f"{folder} holds checkpoints of run {state.get('run')!r}, not of {self._run_id}: "
                "use another folder"
            )
        recorded = self._store.summary(self._run_id).intervals
        if recorded < number:
            raise StoreError(
                f"{folder} is at interval {number} but the store has only {recorded} of run "
                f"{self._run_id}: "
                "give the store that belongs to it, or remove the folder to start from "
                "the beginning"
            )
        try:
            trainer.restore(state["trainer"], policy.probes)
            policy.load_state_dict(state["policy"])
        except CuveeError:
            raise
        except Exception as error:  # an untrusted state can be wrong in any way
            raise CheckpointError(
                f"the checkpoint of interval {number} in {folder} does not fit this run "
                f"({type(error).__name__}: {error}): remove the folder to start from the beginning"
            ) from error
        self._before = trainer.cost
        return self._store.trajectory(self._run_id, last=number)

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None:
        """Record the last interval; save trainer and policy if a checkpoint is due."""
        number = len(so_far)
        if number == 1:
            self._claim.append(0, None, so_far.at(0))
        self._claim.append(number, so_far.last_mixture, so_far.last, metrics, self.cost(trainer))
        if trainer.done or number % self._every == 0:
            self.save(number, trainer, policy)
        if self._on_record:
            self._on_record(so_far, trainer, metrics)

    def save(self, number: int, trainer: Trainer, policy: Policy) -> None:
        """Write the checkpoint of interval `number` now."""
        if self._checkpoints:
            state = {"trainer": trainer.state_dict(), "policy": policy.state_dict()}
            self._checkpoints.save(number, {"run": self._run_id, **state})
            if not self._located:
                self._claim.has_checkpoints(str(self._checkpoints.folder))
                self._located = True

    def cost(self, trainer: Trainer) -> Cost:
        """Return the cost of this attempt: the trainer's cost since it was restored."""
        now = trainer.cost
        before = self._before
        return Cost(
            now.tokens - before.tokens,
            now.flops - before.flops,
            max(0.0, now.seconds - before.seconds),
        )

    def finish(
        self, trainer: Trainer, *, policy: str | None = None, model: str | None = None
    ) -> None:
        """Mark the run as done. `policy` and `model` are folders of a saved policy and model."""
        folder = str(self._checkpoints.folder) if self._checkpoints else None
        self._claim.finish(self.cost(trainer), checkpoint=folder, policy=policy, model=model)

    @contextmanager
    def attempt(self, trainer: Trainer) -> Iterator[None]:
        """Keep the lease alive during the block.

        An interrupt releases the run. An error ends the attempt, with the error as reason.
        """
        with self._claim.kept_alive():
            try:
                yield
            except ClaimLost:
                raise
            except Exception as error:
                # The error itself is raised below, and the lease expires by itself.
                with suppress(StoreError):
                    self._claim.fail(f"{type(error).__name__}: {error}", self.cost(trainer))
                raise
            except BaseException:
                with suppress(StoreError):
                    self._claim.release(self.cost(trainer))
                raise

"""`RunJournal`: what `loop.run` writes down, so that a run goes on after anything and ends as if nothing had happened.

    journal = RunJournal(store, claim, checkpoints, every=10)
    with journal.attempt(trainer):                 # holds the lease; an error or Ctrl-C ends the attempt in the store
        run(trainer, policy, journal)
        journal.finish(trainer)

Each interval is one durable row before the next begins; every `every` intervals, and at the end, trainer and policy are saved.
A resumed run starts from the newest complete checkpoint and trains the intervals after it again. Their rows are there already,
and the store takes the same row twice but not another one, so a run that does not repeat itself exactly is found out.
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
    """What a journal needs of `cuvee.training.checkpoint.Checkpoints`."""

    @property
    def folder(self) -> Path: ...

    def save(self, step: int, state: State) -> object: ...

    def latest(self) -> tuple[int, State] | None:
        """The newest complete checkpoint, or None."""
        ...


class RunJournal:
    """Implements `cuvee.core.protocols.Journal` for one claim.

    Without `checkpoints`, a run that stopped starts again from its beginning. Checkpoints are numbered by intervals.
    `on_record` is called after each interval is durable, for a live view.
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
        self._store, self._claim, self._checkpoints = store, claim, checkpoints
        self._every, self._on_record = every, on_record
        self._before = Cost()

    @property
    def _run_id(self) -> str:
        return self._claim.run.id

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        """Restores both from the newest complete checkpoint and returns the history up to it; None if there is none.

        Raises `CheckpointError` for a checkpoint of another run and `StoreError` if the store lacks the history.
        """
        latest = self._checkpoints.latest() if self._checkpoints else None
        if latest is None:
            return None
        assert self._checkpoints is not None
        folder, (number, state) = self._checkpoints.folder, latest
        if state.get("run") != self._run_id:
            raise CheckpointError(
                f"{folder} holds checkpoints of run {state.get('run')!r}, not of {self._run_id}: use another folder"
            )
        recorded = self._store.summary(self._run_id).intervals
        if recorded < number:
            raise StoreError(
                f"{folder} is at interval {number} but the store has {recorded} of run {self._run_id}: "
                "give the store that belongs to it, or remove the folder to start from the beginning"
            )
        try:
            trainer.restore(state["trainer"], policy.probes)
            policy.load_state_dict(state["policy"])
        except CuveeError:
            raise
        except Exception as error:  # a state of another program can be wrong in any way
            raise CheckpointError(
                f"the checkpoint of interval {number} in {folder} does not fit this run "
                f"({type(error).__name__}: {error}): remove the folder to start from the beginning"
            ) from error
        self._before = trainer.cost
        return self._store.trajectory(self._run_id, last=number)

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None:
        number = len(so_far)
        if number == 1:
            self._claim.append(0, None, so_far.signals[0])
        self._claim.append(number, so_far.last_mixture, so_far.last, metrics, self.cost(trainer))
        if trainer.done or number % self._every == 0:
            self.save(number, trainer, policy)
        if self._on_record:
            self._on_record(so_far, trainer, metrics)

    def save(self, number: int, trainer: Trainer, policy: Policy) -> None:
        """Writes the checkpoint of interval `number` now, whatever `every` says."""
        if self._checkpoints:
            state = {"trainer": trainer.state_dict(), "policy": policy.state_dict()}
            self._checkpoints.save(number, {"run": self._run_id, **state})

    def cost(self, trainer: Trainer) -> Cost:
        """What this attempt has spent: the trainer's count less what it had when it was restored."""
        now, before = trainer.cost, self._before
        return Cost(
            now.tokens - before.tokens,
            now.flops - before.flops,
            max(0.0, now.seconds - before.seconds),
        )

    def finish(
        self, trainer: Trainer, *, policy: str | None = None, model: str | None = None
    ) -> None:
        """Ends the run: done. `policy` and `model` are the folders of a saved policy and an exported model."""
        folder = str(self._checkpoints.folder) if self._checkpoints else None
        self._claim.finish(self.cost(trainer), checkpoint=folder, policy=policy, model=model)

    @contextmanager
    def attempt(self, trainer: Trainer) -> Iterator[None]:
        """Keeps the lease while the block runs. An interrupt gives the run back, an error is its attempt's reason to fail."""
        with self._claim.kept_alive():
            try:
                yield
            except ClaimLost:
                raise
            except Exception as error:
                with suppress(
                    StoreError
                ):  # the error itself matters more, and the lease runs out by itself
                    self._claim.fail(f"{type(error).__name__}: {error}", self.cost(trainer))
                raise
            except BaseException:
                with suppress(StoreError):
                    self._claim.release(self.cost(trainer))
                raise

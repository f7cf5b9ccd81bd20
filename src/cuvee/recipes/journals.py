"""Journals for `train`: one reports and can stop a run, one is for ranks that do not write."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from cuvee.core.epochs import TokensRead
from cuvee.core.protocols import Journal, Metrics, Policy, Trainer
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.journal import OnRecord
from cuvee.fleet.store.store import Store
from cuvee.integrations.trackers import Tracker, figures
from cuvee.recipes.progress.stopping import Stop, Stopped
from cuvee.recipes.progress.watch import (
    TREND,
    Observer,
    Progress,
    domain_progress,
    training_loss,
    valid_loss,
)
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.distributed import Ranks


class SavingJournal(Journal, Protocol):
    def save(self, number: int, trainer: Trainer, policy: Policy) -> None: ...


class WatchedJournal:
    """Reports each interval to an observer. Ends the run with a checkpoint on a stop request."""

    def __init__(
        self, inner: SavingJournal, run_id: str, ranks: Ranks, stop: Stop, observer: Observer
    ) -> None:
        self._inner = inner
        self._run_id = run_id
        self._ranks = ranks
        self._stop = stop
        self._observer = observer
        self._began_at = 0.0
        self._tokens = 0
        self._read = TokensRead()
        self._valid_loss: float | None = None
        self._clock = time.perf_counter()

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        so_far = self._inner.resume(trainer, policy)
        if so_far is None:
            self._observer.begin(self._run_id, "begins")
        else:
            self._began_at = so_far.last.progress
            self._read = so_far.tokens_read()
            measured = (valid_loss(signals) for signals in reversed(so_far.signals))
            self._valid_loss = next((loss for loss in measured if loss is not None), None)
            self._observer.begin(
                self._run_id, f"continues after step {so_far.last.step:,} ({self._began_at:.0%})"
            )
        self._clock = time.perf_counter()
        return so_far

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None:
        self._inner.record(so_far, trainer, policy, metrics)
        self._observer.interval(self._progress(so_far))
        asked = self._asked()
        if asked and not trainer.done:
            self._inner.save(len(so_far), trainer, policy)
            last = so_far.last
            raise Stopped(
                f"{self._run_id} stopped after step {last.step:,} ({last.progress:.0%}); "
                "everything is saved",
                asked,
            )

    def _progress(self, so_far: Trajectory) -> Progress:
        last = so_far.last
        mixture = so_far.last_mixture
        assert mixture is not None, "an interval has its mixture"
        self._tokens += int(last.tokens_K.sum())
        self._read.add(last)
        before = so_far.mixtures[-min(len(so_far), TREND + 1)]
        measured = valid_loss(last)
        self._valid_loss = self._valid_loss if measured is None else measured
        return Progress(
            run_id=self._run_id,
            step=last.step,
            progress=last.progress,
            began=self._began_at,
            seconds=time.perf_counter() - self._clock,
            tokens=self._tokens,
            loss=training_loss(last),
            valid_loss=self._valid_loss,
            domains=domain_progress(last, mixture, before, self._read),
        )

    def _asked(self) -> int | None:
        """Return the signal of a stop request, or None.

        All ranks see the request after the same interval, whichever of them received it.
        """
        asked = torch.tensor([self._stop.signal is not None], dtype=torch.float64)
        self._ranks.sum(asked, "the question whether to stop")
        return (self._stop.signal or signal.SIGTERM) if asked.item() else None


class FollowingJournal:
    """For ranks above 0: resumes from the same checkpoint as rank 0 and writes nothing."""

    def __init__(self, store: Store, run_id: str, checkpoints: Checkpoints) -> None:
        self._store = store
        self._run_id = run_id
        self._checkpoints = checkpoints

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        latest = self._checkpoints.latest()
        if latest is None:
            return None
        number, state = latest
        trainer.restore(state["trainer"], policy.probes)
        return self._store.trajectory(self._run_id, last=number)

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None: ...

    def save(self, number: int, trainer: Trainer, policy: Policy) -> None: ...


def log_to(trackers: Sequence[Tracker]) -> OnRecord:
    """Return a function that logs each recorded interval, and before the first one the start."""

    def log(so_far: Trajectory, trainer: Trainer, metrics: Metrics) -> None:
        for tracker in trackers:
            if len(so_far) == 1:
                tracker.log(so_far.signals[0].step, figures(None, so_far.signals[0], {}))
            tracker.log(so_far.last.step, figures(so_far.last_mixture, so_far.last, metrics))

    return log

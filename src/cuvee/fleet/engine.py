"""`StoreFleet`: the driver that all engines share. An engine only decides where workers run.

    fleet = RayFleet(store, make_trainer, proxy, group="regmix", workers=64)
    policy = search(method, corpus, fleet)

`LocalFleet` and `SlurmFleet` are used in the same way. Any number of drivers, on any hosts and with
any engines, can work on one group of one store. The store alone records what to run and what is
done, so running the same command again resumes the search.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Required, TypedDict

from cuvee.core.errors import TrainingError
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Cost, Run
from cuvee.fleet.store.rows import RunSummary, Tally, run_key
from cuvee.fleet.store.store import Store
from cuvee.fleet.task import MakeTrainer, task_of
from cuvee.fleet.worker import Orders

OnChange = Callable[[Tally], None]

_POLL_SECONDS = 1.0  # time between two queries of the store
_MAX_BROKEN_WORKERS = 3  # workers in a row that may end before they take a run


class FleetError(TrainingError):
    """More runs than allowed failed at every attempt. All other runs are done and in the store."""


class Worker(Protocol):
    """A worker process, wherever it runs (see `cuvee.fleet.worker`)."""

    def alive(self) -> bool:
        """Return whether the worker runs or is queued to start."""
        ...

    def trouble(self) -> str | None:
        """Return why the worker ended, or None if it ended normally."""
        ...

    def leave(self) -> None:
        """Ask the worker to finish the current interval, save, release its run and exit."""
        ...

    def close(self) -> None:
        """Stop the worker immediately if it is alive, and free its resources."""
        ...


class FleetOptions(TypedDict, total=False):
    """The options of every fleet; see `StoreFleet`."""

    group: Required[str]
    seed: int
    workers: int
    checkpoints: Path | None
    every: int
    max_attempts: int
    max_failed_ratio: float
    lease_seconds: float
    threads: int
    together: int
    plugins: tuple[str, ...]
    on_change: OnChange | None


@dataclass
class _ActiveWorker:
    """A started worker and its slot."""

    worker: Worker
    slot: int
    attempts: int  # attempts in the group when the worker was started


class StoreFleet(ABC):
    """Implements `core.protocols.Fleet` for the runs of one group.

    - `make_trainer(proxy, seed)` builds a fresh trainer. Worker processes must be able to import
      it.
    - `workers`: the largest number of workers at a time.
    - `checkpoints`: a folder for checkpoints, written every `every` intervals. None for no
      checkpoints.
    - `max_attempts`: attempts per run before it counts as failed.
    - `max_failed_ratio`: the share of runs that may fail.
    - `lease_seconds`: the time after which the run of a silent worker is given to another.
    - `threads`: CPU threads per worker. Two tiny proxies on one thread each are much faster than
      one proxy on two threads.
    - `together`: the largest number of runs that a worker trains as one program. It does so only if
      a trial shows that this is faster and gives the same numbers (see
      `cuvee.training.together.together`).
    - `plugins`: modules that workers import, because they register methods, policies or other
      parts.
    - `on_change` is called with a `Tally` about once per second.
    """

    def __init__(
        self,
        store: Store,
        make_trainer: MakeTrainer,
        proxy: Mapping[str, Any],
        *,
        group: str,
        seed: int = 0,
        workers: int = 1,
        checkpoints: Path | None = None,
        every: int = 10,
        max_attempts: int = 3,
        max_failed_ratio: float = 0.0,
        lease_seconds: float = 60.0,
        threads: int = 1,
        together: int = 1,
        plugins: tuple[str, ...] = (),
        on_change: OnChange | None = None,
    ) -> None:
        if workers < 1:
            raise TrainingError(f"workers is {workers}: at least 1 is needed")
        if together < 1:
            raise TrainingError(f"together is {together}: at least 1 is needed")
        self._store = store
        self._proxy = dict(proxy)
        self._group = group
        self._seed = seed
        self._workers = workers
        self._max_attempts = max_attempts
        self._on_change = on_change
        self._max_failed_ratio = max_failed_ratio
        self._orders = Orders(
            store.address,
            group,
            make_trainer,
            checkpoints,
            every,
            lease_seconds,
            threads,
            together,
            workers,
            plugins,
        )
        self._active: list[_ActiveWorker] = []
        self._interrupts = self._broken_workers = 0

    @abstractmethod
    def _start(self, slot: int) -> Worker:
        """Start a worker. `slot` counts from 0 and is not used by another live worker."""

    def _pause(self, workers: Sequence[Worker], seconds: float) -> bool:
        """Wait `seconds`. Return True early if the engine can tell that a worker ended."""
        time.sleep(seconds)
        return False

    def _connected(self) -> AbstractContextManager[object]:
        """Return a context that surrounds the time in which workers exist."""
        return nullcontext()

    def load(self) -> list[Run]:
        """Return the finished runs of the group with this seed and proxy configuration."""
        return [self._store.load(run.id) for run in self._planned() if run.status == "done"]

    def failed(self) -> list[Run]:
        """Return what is recorded of the runs that failed, if they finished an interval."""
        ended = [run.id for run in self._planned() if run.status == "failed" and run.intervals]
        return [self._store.load(run_id) for run_id in ended]

    def spent(self) -> Cost:
        """Return the cost of all runs with this seed and proxy configuration, even failed ones."""
        return sum((run.cost for run in self._planned()), Cost())

    def _planned(self) -> list[RunSummary]:
        runs = self._store.runs(self._group)
        return [
            run for run in runs if run.seed == self._seed and run.config.get("proxy") == self._proxy
        ]

    def run(self, policies: Sequence[Policy]) -> list[Run]:
        """Return the finished run of each policy, in order, and start those that do not exist yet.

        A run that failed at all its attempts is left out. Raises `FleetError` after all other runs
        are done, if more than a share `max_failed_ratio` of the planned runs failed. Ctrl-C lets
        current intervals finish, saves them and raises `KeyboardInterrupt`; a second Ctrl-C stops
        immediately.
        """
        ids = [self.plan(policy) for policy in policies]
        self.work_off()
        failed = [run for run in self._store.runs(self._group, "failed") if run.id in ids]
        if len(failed) > self._max_failed_ratio * len(self._planned()):
            reasons = "; ".join(f"{run.id} ({run.reason})" for run in failed[:3])
            raise FleetError(
                f"{len(failed)} of {len(ids)} runs of {self._group} failed after "
                f"{self._max_attempts} attempts each: {reasons}. "
                "The others are done. Fix the cause, reopen these runs and run the same command "
                "again"
            )
        lost = {run.id for run in failed}
        return [self._store.load(run_id) for run_id in ids if run_id not in lost]

    def plan(self, policy: Policy) -> str:
        """Add the policy's run to the store, unless it exists, and return its id."""
        task = task_of(self._proxy, policy)
        name = f"{self._group}/{task['policy']['kind']}"
        run_id = run_key(task, self._seed)
        known = self._store.find(run_id)
        if known is not None and known.group != self._group:  # equal settings under another name
            run_id = run_key({**task, "group": self._group}, self._seed)
        return self._store.create(
            name,
            self._seed,
            task,
            group=self._group,
            run_id=run_id,
            max_attempts=self._max_attempts,
        )

    def work_off(self) -> None:
        """Run workers until no run of the group is waiting or running, whoever planned it."""
        tally = self._poll()
        if not tally.open:
            return
        self._interrupts = self._broken_workers = 0
        with self._connected(), self._interruptible():
            try:
                while tally.open and not self._interrupts:
                    self._remove_ended(tally)
                    while len(self._active) < min(self._workers, tally.open):
                        slot = min(
                            set(range(self._workers)) - {active.slot for active in self._active}
                        )
                        self._active.append(_ActiveWorker(self._start(slot), slot, tally.attempts))
                    self._wait()
                    tally = self._poll()
                self._drain()
            finally:
                for active in self._active:
                    active.worker.close()
                self._active.clear()
        left = self._poll().open
        if self._interrupts:
            raise KeyboardInterrupt(
                f"stopped: {left} runs of {self._group} are left; run the same command again to "
                "resume"
            )

    def _poll(self) -> Tally:
        tally = self._store.tally(self._group)
        if self._on_change:
            self._on_change(tally)
        return tally

    def _wait(self) -> None:
        """Wait until the next query of the store, less if a worker ended or after an interrupt."""
        until = time.monotonic() + _POLL_SECONDS
        workers = [active.worker for active in self._active]
        while time.monotonic() < until and not self._interrupts and not self._pause(workers, 0.05):
            pass

    def _remove_ended(self, tally: Tally) -> None:
        """Remove workers that ended.

        Raises `TrainingError` if several in a row ended before they took a run.
        """
        for active in [active for active in self._active if not active.worker.alive()]:
            self._active.remove(active)
            trouble = active.worker.trouble()
            active.worker.close()
            self._broken_workers = (
                self._broken_workers + 1 if trouble and tally.attempts == active.attempts else 0
            )
            if self._broken_workers >= _MAX_BROKEN_WORKERS:
                raise TrainingError(
                    f"{self._broken_workers} workers ended before they took a run ({trouble}): "
                    "make_trainer must be a function "
                    "that another process can import, and cuvee must be installed where workers run"
                )

    def _drain(self) -> None:
        """Ask every worker to leave and wait for them; a second interrupt ends the waiting."""
        if self._interrupts and self._active:
            warnings.warn(
                "stopping: the current intervals end and are saved first; Ctrl-C again stops at "
                "once without them",
                stacklevel=2,
            )
        for active in self._active:
            active.worker.leave()
        while self._interrupts < 2 and any(active.worker.alive() for active in self._active):
            time.sleep(0.05)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only it receives signals
            yield
            return
        before = {
            number: signal.signal(number, self._interrupted)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""`StoreFleet`: what every engine does the same way. An engine decides where its workers live, and nothing else.

    fleet = RayFleet(store, make_trainer, proxy, group="regmix", workers=64)   # or LocalFleet, SlurmFleet
    policy = search(method, corpus, fleet)

Any number of drivers, on any number of hosts and with any engines, may work on one group of one store: what to run and what is
done is in the store alone, so that running the same again goes on where it stopped.
"""

from __future__ import annotations

import signal
import threading
import time
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
from cuvee.fleet.store.rows import RunSummary, Tally
from cuvee.fleet.store.store import Store
from cuvee.fleet.task import MakeTrainer, task_of
from cuvee.fleet.worker import Orders

OnChange = Callable[[Tally], None]

_LOOK_EVERY = 1.0  # seconds between two looks into the store
_FRUITLESS = 3  # so many workers in a row that break before they take a run are no accident


class FleetError(TrainingError):
    """More runs than are put up with failed at every attempt. All others are done and in the store."""


class Worker(Protocol):
    """A process that works runs off, wherever it lives (see `cuvee.fleet.worker`)."""

    def alive(self) -> bool:
        """Whether it works, or waits for its turn to be started."""
        ...

    def trouble(self) -> str | None:
        """Why it is not alive, or None if it left in good order."""
        ...

    def leave(self) -> None:
        """Asks it to end the interval under way, save, give its run back, and leave."""
        ...

    def close(self) -> None:
        """Ends it at once if it is alive, and frees what was held for it."""
        ...


class FleetOptions(TypedDict, total=False):
    """What every fleet may be told; see `StoreFleet`."""

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
class _Post:
    worker: Worker
    slot: int
    attempts: int  # of the group, when the worker was started


class StoreFleet(ABC):
    """Implements `core.protocols.Fleet` for the runs of one group, with up to `workers` workers at a time.

    `make_trainer(proxy, seed)` builds a fresh trainer in a worker's process and must be importable there. Each worker computes
    with `threads` threads (two tiny proxies side by side are much faster than one on two threads). Checkpoints, if a folder is
    given, every `every` intervals. A share `max_failed_ratio` of the runs may come to nothing. A worker trains up to `together` runs
    as one program where a trial shows that to be faster and the numbers to stay the same (see `cuvee.training.together.together`).
    `on_change` is called with a `Tally` about once a second.
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
            raise TrainingError(f"together is {together}: at least 1 run is trained at a time")
        self._store, self._proxy, self._group, self._seed = store, dict(proxy), group, seed
        self._count, self._max_attempts, self._on_change = workers, max_attempts, on_change
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
        self._posts: list[_Post] = []
        self._interrupts = self._fruitless = 0

    @abstractmethod
    def _start(self, slot: int) -> Worker:
        """A new worker; `slot` counts from 0 and is taken by no other."""

    def _pause(self, workers: Sequence[Worker], seconds: float) -> bool:
        """Waits so many seconds; or less, and True, if a worker ended and the engine can tell at no cost."""
        time.sleep(seconds)
        return False

    def _connected(self) -> AbstractContextManager[object]:
        """Around the time in which there are workers."""
        return nullcontext()

    def load(self) -> list[Run]:
        """The finished runs of the group that were planned for this seed and proxy configuration, and for no other."""
        return [self._store.load(run.id) for run in self._planned() if run.status == "done"]

    def spent(self) -> Cost:
        """On all that was planned for this seed and proxy configuration, runs that came to nothing included."""
        return sum((run.cost for run in self._planned()), Cost())

    def _planned(self) -> list[RunSummary]:
        runs = self._store.runs(self._group)
        return [
            run for run in runs if run.seed == self._seed and run.config.get("proxy") == self._proxy
        ]

    def run(self, policies: Sequence[Policy]) -> list[Run]:
        """The finished run of each policy, in this order; a policy that has its run already is not run again.

        A run that failed at each of its attempts is left out. Raises `FleetError` when all the others are done, if those are more
        than `max_failed_ratio` of what was planned. Ctrl-C lets the intervals under way end, saves them and raises
        `KeyboardInterrupt`; a second one stops at once.
        """
        ids = [self.plan(policy) for policy in policies]
        self.work_off()
        failed = [run for run in self._store.runs(self._group, "failed") if run.id in ids]
        if len(failed) > self._max_failed_ratio * len(self._planned()):
            reasons = "; ".join(f"{run.id} ({run.reason})" for run in failed[:3])
            raise FleetError(
                f"{len(failed)} of {len(ids)} runs of {self._group} failed after {self._max_attempts} attempts each: {reasons}. "
                "The others are done. Mend the cause, reopen these runs, and run the same again"
            )
        lost = {run.id for run in failed}
        return [self._store.load(run_id) for run_id in ids if run_id not in lost]

    def plan(self, policy: Policy) -> str:
        """Puts the policy's run into the store, if it is not there, and returns its id."""
        task = task_of(self._proxy, policy)
        name = f"{self._group}/{task['policy']['kind']}"
        return self._store.create(
            name, self._seed, task, group=self._group, max_attempts=self._max_attempts
        )

    def work_off(self) -> None:
        """Works until no run of the group waits or runs, whoever planned it."""
        tally = self._look()
        if not tally.open:
            return
        self._interrupts = self._fruitless = 0
        with self._connected(), self._interruptible():
            try:
                while tally.open and not self._interrupts:
                    self._bury(tally)
                    while len(self._posts) < min(self._count, tally.open):
                        slot = min(set(range(self._count)) - {post.slot for post in self._posts})
                        self._posts.append(_Post(self._start(slot), slot, tally.attempts))
                    self._wait()
                    tally = self._look()
                self._drain()
            finally:
                for post in self._posts:
                    post.worker.close()
                self._posts.clear()
        left = self._look().open
        if self._interrupts:
            raise KeyboardInterrupt(
                f"stopped: {left} runs of {self._group} are left; run the same again to go on"
            )

    def _look(self) -> Tally:
        tally = self._store.tally(self._group)
        if self._on_change:
            self._on_change(tally)
        return tally

    def _wait(self) -> None:
        """Until the next look into the store: sooner if a worker ended, and at once after an interrupt."""
        until, workers = time.monotonic() + _LOOK_EVERY, [post.worker for post in self._posts]
        while time.monotonic() < until and not self._interrupts and not self._pause(workers, 0.05):
            pass

    def _bury(self, tally: Tally) -> None:
        """Forgets the workers that ended. Raises `TrainingError` if they keep breaking before they take a run."""
        for post in [post for post in self._posts if not post.worker.alive()]:
            self._posts.remove(post)
            trouble = post.worker.trouble()
            post.worker.close()
            self._fruitless = (
                self._fruitless + 1 if trouble and tally.attempts == post.attempts else 0
            )
            if self._fruitless >= _FRUITLESS:
                raise TrainingError(
                    f"{self._fruitless} workers ended before they took a run ({trouble}): make_trainer must be a function "
                    "that another process can import, and cuvee be installed where the workers are"
                )

    def _drain(self) -> None:
        """Asks every worker to leave and waits for them; a second interrupt ends the waiting."""
        for post in self._posts:
            post.worker.leave()
        while self._interrupts < 2 and any(post.worker.alive() for post in self._posts):
            time.sleep(0.05)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # where Python has no signals
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

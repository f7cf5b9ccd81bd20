"""`LocalFleet`: proxies in processes of this host, each run once, whatever dies.

    fleet = LocalFleet(store, make_trainer, proxy, group="regmix", workers=2)
    policy = search(method, corpus, fleet)

Any number of drivers, on any number of hosts, may work on one group of one store: what to run and what is done is in the store
alone, so that running the same again goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from cuvee.core.errors import TrainingError
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Run
from cuvee.fleet.rows import Tally
from cuvee.fleet.store import Store
from cuvee.fleet.task import MakeTrainer, task_of
from cuvee.fleet.worker import Orders, work

OnChange = Callable[[Tally], None]

_LOOK_EVERY = 1.0  # seconds between two looks into the store
_FRUITLESS = 3  # so many processes in a row that end before they take a run are no accident


class FleetError(TrainingError):
    """Some runs failed at every attempt. All others are done and in the store."""


@dataclass
class _Worker:
    process: Any
    line: Connection
    slot: int
    claimed: bool = False


class LocalFleet:
    """Implements `core.protocols.Fleet` for the runs of one group.

    `make_trainer(proxy, seed)` builds a fresh trainer in a worker process and must be importable there. Each worker computes
    with `threads` threads (two tiny proxies side by side are much faster than one on two threads); with `devices`, worker i
    sees only CUDA device `devices[i % len(devices)]`. Checkpoints, if a folder is given, every `every` intervals.
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
        lease_seconds: float = 60.0,
        threads: int = 1,
        devices: Sequence[str] = (),
        on_change: OnChange | None = None,
    ) -> None:
        if workers < 1:
            raise TrainingError(f"workers is {workers}: at least 1 is needed")
        self._store, self._proxy, self._group, self._seed = store, dict(proxy), group, seed
        self._count, self._max_attempts, self._on_change = workers, max_attempts, on_change
        self._devices = tuple(devices)
        self._orders = Orders(store.address, group, make_trainer, checkpoints, every, lease_seconds, threads)
        self._workers: list[_Worker] = []
        self._interrupts = 0

    def load(self) -> list[Run]:
        """The finished runs of the group."""
        return [self._store.load(summary.id) for summary in self._store.runs(self._group, "done")]

    def run(self, policies: Sequence[Policy]) -> list[Run]:
        """One finished run for each policy, in this order; a policy that has its run already is not run again.

        Raises `FleetError` when all the others are done, if a run failed at each of its attempts. Ctrl-C lets the
        intervals under way end, saves them and raises `KeyboardInterrupt`; a second one stops at once.
        """
        ids = [self.plan(policy) for policy in policies]
        self.work_off()
        failed = [run for run in self._store.runs(self._group, "failed") if run.id in ids]
        if failed:
            reasons = "; ".join(f"{run.id} ({run.reason})" for run in failed[:3])
            raise FleetError(
                f"{len(failed)} of {len(ids)} runs of {self._group} failed after {self._max_attempts} attempts each: {reasons}. "
                "The others are done. Mend the cause, reopen these runs, and run the same again"
            )
        return [self._store.load(run_id) for run_id in ids]

    def plan(self, policy: Policy) -> str:
        """Puts the policy's run into the store, if it is not there, and returns its id."""
        task = task_of(self._proxy, policy)
        name = f"{self._group}/{task['policy']['kind']}"
        return self._store.create(name, self._seed, task, group=self._group, max_attempts=self._max_attempts)

    def work_off(self) -> None:
        """Works until no run of the group waits or runs, whoever planned it."""
        if not self._store.tally(self._group).open:
            return
        self._interrupts, fruitless = 0, 0
        with self._interruptible():
            try:
                while (tally := self._store.tally(self._group)).open and not self._interrupts:
                    if self._on_change:
                        self._on_change(tally)
                    fruitless = self._bury(fruitless)
                    while len(self._workers) < min(self._count, tally.open):
                        self._start()
                    self._listen(_LOOK_EVERY)
                self._drain()
            finally:
                self._stop()
        if self._on_change:
            self._on_change(self._store.tally(self._group))
        if self._interrupts:
            raise KeyboardInterrupt(
                f"stopped: {tally.open} runs of {self._group} are left; run the same again to go on"
            )

    def _start(self) -> None:
        taken = {worker.slot for worker in self._workers}
        slot = next(number for number in range(self._count) if number not in taken)
        settings = {"OMP_NUM_THREADS": str(self._orders.threads)}  # read when torch is loaded, before our code runs
        if self._devices:
            settings["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(self._orders, theirs), name=f"cuvee-worker-{slot}")
        with _environment(settings), _interrupts_ignored():
            process.start()
        theirs.close()  # so that the pipe ends with the worker
        self._workers.append(_Worker(process, ours, slot))

    def _listen(self, seconds: float) -> None:
        """Takes in what the workers tell, until one has ended, something is asked of us, or the time is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._interrupts:
            heard = wait([worker.line for worker in self._workers], timeout=left)
            for worker in [worker for worker in self._workers if worker.line in heard]:
                try:
                    message = json.loads(worker.line.recv_bytes())
                except (EOFError, OSError):
                    worker.process.join(timeout=1.0)
                    return
                worker.claimed |= message["what"] == "claimed"
                if message["what"] in ("done", "failed"):
                    return

    def _bury(self, fruitless: int) -> int:
        """Forgets the workers that ended. Raises `TrainingError` if they keep ending before they take a run."""
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            self._workers.remove(worker)
            worker.line.close()
            fruitless = 0 if worker.claimed else fruitless + 1
            if fruitless >= _FRUITLESS:
                raise TrainingError(
                    f"{fruitless} workers ended before they took a run (exit code {worker.process.exitcode}): their "
                    "output above says why; make_trainer must be a function that another process can import"
                )
        return fruitless

    def _drain(self) -> None:
        """Asks every worker to leave and waits for them; a second interrupt ends the waiting."""
        for worker in self._workers:
            with suppress(OSError):
                worker.line.send_bytes(b"leave")
        while self._interrupts < 2 and any(worker.process.is_alive() for worker in self._workers):
            for worker in self._workers:
                worker.process.join(timeout=0.05)
                with suppress(EOFError, OSError):
                    while worker.line.poll(0):
                        worker.line.recv_bytes()  # a full pipe would hold the worker up

    def _stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.line.close()
        self._workers.clear()

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # where Python has no signals
            yield
            return
        before = {number: signal.signal(number, self._interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """For the processes started within."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started within ignores Ctrl-C from its first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

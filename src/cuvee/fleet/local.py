"""`LocalFleet`: worker processes on this host.

Example:

    fleet = LocalFleet(store, make_trainer, proxy, group="regmix", workers=2)
    policy = search(method, corpus, fleet)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Unpack

from cuvee.fleet.engine import FleetError, FleetOptions, StoreFleet, Worker
from cuvee.fleet.store.store import Store
from cuvee.fleet.task import MakeTrainer
from cuvee.fleet.worker import work

__all__ = ["FleetError", "LocalFleet"]


class LocalFleet(StoreFleet):
    """Runs workers as processes on this host. See `StoreFleet` for the options.

    With `devices`, worker i sees only CUDA device `devices[i % len(devices)]`. If the driver is
    killed, its workers save, release their runs and exit.
    """

    def __init__(
        self,
        store: Store,
        make_trainer: MakeTrainer,
        proxy: Mapping[str, Any],
        *,
        devices: Sequence[str] = (),
        **options: Unpack[FleetOptions],
    ) -> None:
        super().__init__(store, make_trainer, proxy, **options)
        self._devices = tuple(devices)

    def _start(self, slot: int) -> Worker:
        # OMP_NUM_THREADS is read when torch is imported, before any code of the worker runs.
        settings = {"OMP_NUM_THREADS": str(self._orders.threads)}
        if self._devices:
            settings["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(self._orders, theirs), name=f"cuvee-worker-{slot}"
        )
        with _environment(settings), _interrupts_ignored():
            process.start()
        theirs.close()  # closes the pipe when the worker ends
        return _Process(process, ours)

    def _pause(self, workers: Sequence[Worker], seconds: float) -> bool:
        return bool(
            wait(
                [worker.process.sentinel for worker in workers if isinstance(worker, _Process)],
                seconds,
            )
        )


class _Process:
    """A worker process and the pipe to it."""

    def __init__(self, process: Any, line: Connection) -> None:
        self.process = process
        self._line = line

    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def trouble(self) -> str | None:
        code = self.process.exitcode
        return f"exit code {code}; its output above says why" if code else None

    def leave(self) -> None:
        with suppress(OSError):
            self._line.send_bytes(b"leave")

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._line.close()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started in the block."""
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
    """Make processes that are started in the block ignore Ctrl-C from their first instruction."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

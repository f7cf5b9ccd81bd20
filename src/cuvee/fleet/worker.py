"""A worker: a process that takes one run after the other from the store and trains it, until asked to leave or all are done.

Whoever started it may ask it to end the interval under way, save, give the run back, and leave: a process of this host through
a pipe (whose end, if the driver was killed, says the same), a process of a cluster by a signal.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from cuvee.core.protocols import Metrics, Trainer
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.address import Address
from cuvee.fleet.attempts import AttemptCheckpoints
from cuvee.fleet.claim import Claim, ClaimLost
from cuvee.fleet.database import Database
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store import Store
from cuvee.fleet.task import MakeTrainer, build_task
from cuvee.fleet.worker_name import worker_name
from cuvee.loop import run
from cuvee.policies.files import save_policy

Asked = Callable[[float], bool]
"""Waits so many seconds, or less if it is asked to leave; whether it is."""


@dataclass(frozen=True)
class Orders:
    """What a worker is started with."""

    address: Address
    group: str
    make_trainer: MakeTrainer
    checkpoints: Path | None
    every: int
    lease_seconds: float
    threads: int
    idle_seconds: float = 0.5


class Drained(BaseException):
    """The worker was asked to leave, and the run under way is saved."""


def work(orders: Orders, line: Connection) -> None:
    """The main function of a process of this host. Whatever comes through `line`, its end included, asks it to leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver decides what it means
    _work(orders, line.poll)


def work_until_signalled(orders: Orders) -> None:
    """The main function of a process of a cluster, which SIGINT, SIGTERM and SIGUSR2 ask to leave: these are what schedulers
    send to a job that is cancelled, runs out of time, or loses its node."""
    _work(orders, _Signalled())


class _Signalled:
    def __init__(self) -> None:
        self._signalled = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def __call__(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._signalled and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return self._signalled


def _work(orders: Orders, asked: Asked) -> None:
    """Ends after a failed attempt too, which may have left memory or a device in a bad state."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(orders.threads)
    name = worker_name()
    with Store(Database(orders.address)) as store:
        while not asked(0.0):
            claim = store.claim(name, orders.lease_seconds, orders.group)
            if claim is not None:
                if not _attempt(store, claim, orders, asked):
                    return
            elif store.tally(orders.group).open:
                asked(orders.idle_seconds)  # another worker's run may come back
            else:
                return


def _attempt(store: Store, claim: Claim, orders: Orders, asked: Asked) -> bool:
    """Whether the process is fit for another run."""
    run_id = claim.run.id
    try:
        with claim.kept_alive():
            trainer, policy = build_task(claim.run.config, claim.run.seed, orders.make_trainer)
    except ClaimLost:
        return True
    except Exception as error:
        with suppress(ClaimLost):
            claim.fail(f"{type(error).__name__}: {error}")
        return False
    folder = orders.checkpoints / run_id if orders.checkpoints else None
    checkpoints = AttemptCheckpoints(folder, claim.attempt) if folder else None

    def watch(so_far: Trajectory, trainer: Trainer, metrics: Metrics) -> None:
        if asked(0.0) and not trainer.done:
            journal.save(len(so_far), trainer, policy)
            raise Drained

    journal = RunJournal(store, claim, checkpoints, orders.every, watch)
    try:
        with journal.attempt(trainer):
            run(trainer, policy, journal)
            learned = folder / "policy" if folder else None
            if learned:
                save_policy(learned, policy, {"run": run_id, "seed": claim.run.seed})
            journal.finish(trainer, policy=str(learned) if learned else None)
    except (ClaimLost, Drained):
        return True
    except Exception:  # why is in the store: the journal has ended the attempt with it
        return False
    return True

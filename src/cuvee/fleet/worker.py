"""A worker: a process that takes one run after the other from the store, trains it, and tells its driver how it goes.

Driver and worker share one pipe. Whatever comes from the driver, the pipe's end included, means: end the interval under way,
save, give the run back, and leave. A worker whose driver was killed therefore stops by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
    """The driver asked for the end, and the run under way is saved."""


def work(orders: Orders, line: Connection) -> None:
    """The process's main function. Ends after a failed attempt, which may have left memory or a device in a bad state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver decides what it means
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(orders.threads)
    name = worker_name()
    with Store(Database(orders.address)) as store:
        _tell(line, "ready", worker=name)
        while not line.poll(0):
            claim = store.claim(name, orders.lease_seconds, orders.group)
            if claim is None:
                line.poll(orders.idle_seconds)  # until there is work again: another worker's run may come back
            elif not _attempt(store, claim, orders, line):
                return


def _attempt(store: Store, claim: Claim, orders: Orders, line: Connection) -> bool:
    """Whether the process is fit for another run."""
    run_id = claim.run.id
    _tell(line, "claimed", run=run_id, attempt=claim.attempt)
    try:
        with claim.kept_alive():
            trainer, policy = build_task(claim.run.config, claim.run.seed, orders.make_trainer)
    except ClaimLost:
        return True
    except Exception as error:
        with suppress(ClaimLost):
            claim.fail(f"{type(error).__name__}: {error}")
        _tell(line, "failed", run=run_id, reason=f"{type(error).__name__}: {error}")
        return False
    folder = orders.checkpoints / run_id if orders.checkpoints else None
    checkpoints = AttemptCheckpoints(folder, claim.attempt) if folder else None

    def watch(so_far: Trajectory, trainer: Trainer, metrics: Metrics) -> None:
        _tell(line, "interval", run=run_id, progress=so_far.last.progress, tokens=int(so_far.last.tokens_K.sum()))
        if line.poll(0) and not trainer.done:
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
    except Exception as error:
        _tell(line, "failed", run=run_id, reason=f"{type(error).__name__}: {error}")
        return False
    _tell(line, "done", run=run_id)
    return True


def _tell(line: Connection, what: str, **facts: Any) -> None:
    with suppress(OSError):  # the driver is gone, which the next poll shows
        line.send_bytes(json.dumps({"what": what, "pid": os.getpid(), **facts}).encode())

"""A worker: a process that takes one run after the other from the store and trains it, until asked to leave or all are done.

Whoever started it may ask it to end the interval under way, save, give the run back, and leave: a process of this host through
a pipe (whose end, if the driver was killed, says the same), a process of a cluster by a signal.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from cuvee.core.protocols import Metrics, Policy, Trainer
from cuvee.core.registry import import_plugins
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.attempts import AttemptCheckpoints
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.address import Address
from cuvee.fleet.store.claim import Claim, ClaimLost
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.store import Store
from cuvee.fleet.store.worker_name import worker_name
from cuvee.fleet.task import MakeTrainer, build_task
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
    together: int = 1
    """The most runs that it may train as one program, if a trial shows that to be faster."""
    workers: int = 1
    """How many its driver has."""
    plugins: tuple[str, ...] = ()
    """Modules of the driver's configuration that register parts; imported before any task is rebuilt. No task names a module."""
    idle_seconds: float = 0.5


class Drained(BaseException):
    """The worker was asked to leave, and the run under way is saved."""


def work(orders: Orders, line: Connection) -> None:
    """The main function of a process of this host. Whatever comes through `line`, its end included, asks it to leave."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole terminal; the driver decides what it means
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
    import_plugins(orders.plugins)
    name, most = worker_name(), orders.together
    with Store(Database(orders.address)) as store:
        while not asked(0.0):
            claims = _claims(store, name, orders, most)
            if len(claims) > 1:
                fit, shared = _attempt_together(store, claims, orders, asked)
                most = most if shared else 1
                if not fit:
                    return
            elif claims:
                if not _attempt(store, claims[0], orders, asked):
                    return
            elif store.tally(orders.group).open:
                asked(orders.idle_seconds)  # another worker's run may come back
            else:
                return


def _claims(store: Store, name: str, orders: Orders, most: int) -> list[Claim]:
    """Up to `most` runs, but no more than leaves as many to each other worker. A run that was tried before is taken alone: it may
    be what ended a process, and with it all runs that were trained there."""
    share = (
        min(most, math.ceil(store.tally(orders.group).waiting / orders.workers)) if most > 1 else 1
    )
    claims: list[Claim] = []
    while claim := store.claim(name, orders.lease_seconds, orders.group):
        if claims and claim.attempt > 1:
            claim.release()
            break
        claims.append(claim)
        if claim.attempt > 1 or len(claims) >= share:
            break
    return claims


def _attempt(store: Store, claim: Claim, orders: Orders, asked: Asked) -> bool:
    """Whether the process is fit for another run."""
    try:
        with claim.kept_alive():
            trainer, policy = _build(claim, orders)
    except ClaimLost:
        return True
    except Exception:
        return False
    return _train(store, claim, trainer, policy, orders, asked)


def _attempt_together(
    store: Store, claims: Sequence[Claim], orders: Orders, asked: Asked
) -> tuple[bool, bool]:
    """Whether the process is fit for other runs, and whether these were trained together; if not, all but one are given back."""
    from cuvee.training.together.together import together

    built: list[tuple[Claim, Trainer, Policy]] = []
    with ExitStack() as leases:
        for claim in claims:
            leases.enter_context(claim.kept_alive())
        for claim in claims:
            with suppress(Exception):  # why is in the store
                built.append((claim, *_build(claim, orders)))
        group = together([trainer for _, trainer, _ in built])
        if group is None:
            for claim, *_ in built[1:]:
                with suppress(ClaimLost):
                    claim.release()
            fits = [_train(store, *each, orders, asked) for each in built[:1]]
        else:
            with ThreadPoolExecutor(len(built)) as pool:
                places = (group.place(trainer) for _, trainer, _ in built)
                fits = list(
                    pool.map(
                        lambda place, each: _placed(place, store, *each, orders, asked),
                        places,
                        built,
                    )
                )
    return all(fits) and len(built) == len(claims), group is not None


def _placed(place: AbstractContextManager[None], *run: Any) -> bool:
    with place:
        return _train(*run)


def _build(claim: Claim, orders: Orders) -> tuple[Trainer, Policy]:
    """If it fails, so has the attempt."""
    try:
        return build_task(claim.run.config, claim.run.seed, orders.make_trainer)
    except Exception as error:
        with suppress(ClaimLost):
            claim.fail(f"{type(error).__name__}: {error}")
        raise


def _train(
    store: Store, claim: Claim, trainer: Trainer, policy: Policy, orders: Orders, asked: Asked
) -> bool:
    """Whether the process is fit for another run."""
    run_id = claim.run.id
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

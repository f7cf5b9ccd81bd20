"""A worker: a process that takes one run after another from the store and trains it.

It ends when all runs are done or when it is asked to leave. Then it finishes the current interval,
saves, releases its run and exits. A process on this host is asked through a pipe, which also ends
if the driver is killed. A process on a cluster is asked by a signal.
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
from cuvee.fleet.task import MakeTrainer, build_task
from cuvee.fleet.worker_name import worker_name
from cuvee.loop import run
from cuvee.policies.files import save_policy

Asked = Callable[[float], bool]
"""Wait the given seconds, or less if the worker is asked to leave; return whether it is."""


@dataclass(frozen=True)
class Orders:
    """The settings that a worker is started with."""

    address: Address
    group: str
    make_trainer: MakeTrainer
    checkpoints: Path | None
    every: int
    lease_seconds: float
    threads: int
    together: int = 1
    """The largest number of runs to train as one program, if a trial shows that to be faster."""
    workers: int = 1
    """The number of workers of its driver."""
    plugins: tuple[str, ...] = ()
    """Modules from the driver's configuration to import before any task is rebuilt.

They register methods, policies and other parts. A task itself never names a module."""
    idle_seconds: float = 0.5


class Drained(BaseException):
    """Raised after the current run is saved because the worker was asked to leave."""


def work(orders: Orders, line: Connection) -> None:
    """Run a worker as a process on this host.

    Any message on `line`, or its end, asks the worker to leave.
    """
    # Ctrl-C reaches every process of the terminal; the driver decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work(orders, line.poll)


def work_until_signalled(orders: Orders) -> None:
    """Run a worker as a process on a cluster.

    SIGINT, SIGTERM or SIGUSR2 ask it to leave. Schedulers send these to a job that is cancelled,
    runs out of time or loses its node.
    """
    _work(orders, _Signalled())


class _Signalled:
    """Whether the process has received a signal to leave."""

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
    """Take and train runs until none is open or the worker is asked to leave.

    It also returns after a failed attempt, which may have left memory or a device in a bad state.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(orders.threads)
    import_plugins(orders.plugins)
    name = worker_name()
    most = orders.together
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
                asked(orders.idle_seconds)  # another worker may release its run
            else:
                return


def _claims(store: Store, name: str, orders: Orders, most: int) -> list[Claim]:
    """Claim up to `most` runs, but leave as many for each other worker.

    A run with an earlier attempt is taken alone: it may have crashed its process, and would crash
    all runs trained with it.
    """
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
    """Train one run. Return whether the process can train another."""
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
    """Train several runs as one program, if that is faster.

    Return whether the process can train other runs, and whether these were trained together. If
    not, only the first is trained and the others are released.
    """
    from cuvee.training.together.together import together

    built: list[tuple[Claim, Trainer, Policy]] = []
    with ExitStack() as leases:
        for claim in claims:
            leases.enter_context(claim.kept_alive())
        for claim in claims:
            with suppress(Exception):  # `_build` has recorded the reason
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
    """Build trainer and policy. An error ends the attempt and is raised again."""
    try:
        return build_task(claim.run.config, claim.run.seed, orders.make_trainer)
    except Exception as error:
        with suppress(ClaimLost):
            claim.fail(f"{type(error).__name__}: {error}")
        raise


def _train(
    store: Store, claim: Claim, trainer: Trainer, policy: Policy, orders: Orders, asked: Asked
) -> bool:
    """Train one run to its end. Return whether the process can train another."""
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
                claim.heartbeat()  # raises if another worker has the run
                save_policy(learned, policy, {"run": run_id, "seed": claim.run.seed})
            journal.finish(trainer, policy=str(learned) if learned else None)
    except (ClaimLost, Drained):
        return True
    except Exception:  # the journal has recorded the error and ended the attempt
        return False
    return True

"""`Claim`: one worker's exclusive right to write to one run."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Cost
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.requests import take_requests
from cuvee.fleet.store.rows import Interval, RunSummary, fingerprint_of
from cuvee.fleet.store.schema import attempts, intervals, runs, spaces
from cuvee.fleet.worker_name import is_alive, readable
from cuvee.policies.guard.operator import Request

Outcome = Literal["done", "failed", "lost", "released"]

BAD = attempts.c.outcome.in_(["failed", "lost"])
"""The attempts that count towards a run's `max_attempts`."""


class ClaimLost(StoreError):
    """The run has ended or another worker has claimed it, so this worker may not write to it."""


class Claim:
    """The exclusive right to write to a run, created by `Store.claim`.

    Each write checks that this attempt is the newest one of the run, renews the lease, and is
    durable when it returns. `cost` is always the cost of this attempt so far; a run's cost is the
    sum over its attempts.
    """

    def __init__(
        self, database: Database, run: RunSummary, attempt: int, worker: str, lease_seconds: float
    ) -> None:
        self._database = database
        self.run = run
        self.attempt = attempt
        self.worker = worker
        self.lease_seconds = lease_seconds

    def __repr__(self) -> str:
        return f"Claim(run={self.run.id}, attempt={self.attempt}, worker={self.worker})"

    def heartbeat(self) -> None:
        """Renew the lease. Raises `ClaimLost`."""
        self._database.write(self._renew)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Renew the lease from a thread during the block, so that intervals can take any time."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.lease_seconds / 4):
                try:
                    self.heartbeat()
                except ClaimLost:
                    return  # the worker's next write raises the same error
                except StoreError:
                    continue  # the server is unreachable; the worker's own writes raise this

        thread = threading.Thread(target=beat, name=f"lease of {self.run.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def append(
        self,
        number: int,
        mixture: Mixture | None,
        signals: Signals,
        metrics: Metrics | None = None,
        cost: Cost | None = None,
    ) -> None:
        """Record interval `number`.

        Number 0 holds the signals before the first step and has no mixture; then follow 1, 2, …
        Recording the same interval again changes nothing. Raises `StoreError` if a different
        interval has this number already or if the previous interval is missing, and `ClaimLost`.
        """
        if (mixture is None) != (number == 0):
            raise StoreError(
                f"interval {number}: number 0 has no mixture, and every later one has its mixture"
            )
        interval = Interval(number, mixture, signals, metrics or {})
        run = fingerprint_of(self.run.config, self.run.seed)
        row = interval.row(run)

        def work(connection: sa.Connection) -> None:
            self._renew(connection, cost, number, signals.progress)
            recorded = self._digests(connection, number)
            if number in recorded:
                if not interval.is_recorded_as(recorded[number], run):
                    raise StoreError(
                        f"run {self.run.id} recorded another interval {number} before: repeating "
                        "it gave other numbers, so the run is not deterministic on this machine. "
                        "Start it again under another run id, or resume it with the software "
                        "and hardware that it started with"
                    )
                return
            if number > 0 and number - 1 not in recorded:
                raise StoreError(
                    f"run {self.run.id} has no interval {number - 1} yet: record intervals in order"
                )
            space = {"digest": row["space"], "domains": interval.space_json()}
            connection.execute(self._database.insert_missing(spaces).values(**space))
            connection.execute(
                sa.insert(intervals).values(run_id=self.run.id, attempt=self.attempt, **row)
            )

        self._database.write(work)

    def requests(self, number: int) -> list[Request]:
        """Return the operators' requests that take effect at interval `number`.

        Those that wait are assigned to it unless it is recorded already.
        """

        def work(connection: sa.Connection) -> list[Request]:
            self._renew(connection)
            return take_requests(connection, self.run.id, number)

        return self._database.write(work)

    def has_checkpoints(self, folder: str) -> None:
        """Record where the run's checkpoints are, while it is not done. Raises `ClaimLost`."""

        def work(connection: sa.Connection) -> None:
            self._renew(connection)
            mine = runs.c.id == self.run.id
            connection.execute(sa.update(runs).where(mine).values(checkpoint=folder))

        self._database.write(work)

    def finish(
        self,
        cost: Cost,
        *,
        checkpoint: str | None = None,
        policy: str | None = None,
        model: str | None = None,
    ) -> None:
        """Mark the run as done.

        The paths are the folders of its checkpoint, policy and model, if they are kept.
        """
        self._end("done", None, cost, {"checkpoint": checkpoint, "policy": policy, "model": model})

    def fail(self, reason: str, cost: Cost | None = None) -> str:
        """End this attempt as failed and return the run's new status.

        The status is `waiting` if the run may be tried again, or `failed` after its last attempt.
        """
        return self._end("failed", reason, cost, {})

    def release(self, cost: Cost | None = None) -> None:
        """Return the run to the queue. The attempt does not count towards `max_attempts`."""
        self._end("released", None, cost, {})

    def _end(
        self, outcome: Outcome, reason: str | None, cost: Cost | None, paths: dict[str, Any]
    ) -> str:
        def work(connection: sa.Connection) -> str:
            mine = (attempts.c.run_id == self.run.id) & (attempts.c.number == self.attempt)
            query = sa.select(attempts.c.outcome).where(mine)
            if connection.execute(query).scalar_one() == outcome:
                # An earlier call of this function committed, but its reply was lost.
                query = sa.select(runs.c.status).where(runs.c.id == self.run.id)
                return str(connection.execute(query).scalar_one())
            self._renew(connection, cost)
            if paths:
                connection.execute(sa.update(runs).where(runs.c.id == self.run.id).values(**paths))
            return end_attempt(
                connection,
                self.run.id,
                self.attempt,
                outcome,
                reason,
                self._database.now(connection),
            )

        return self._database.write(work)

    def _renew(
        self,
        connection: sa.Connection,
        cost: Cost | None = None,
        number: int = 0,
        progress: float = 0.0,
    ) -> None:
        """Lock the run's row and renew the lease.

        Raises `ClaimLost` unless this attempt holds the run.
        """
        now = self._database.now(connection)
        held = (
            (runs.c.id == self.run.id)
            & (runs.c.attempt == self.attempt)
            & (runs.c.status == "running")
        )
        # Intervals that are repeated after a resume do not lower the run's count.
        ahead = runs.c.intervals < number
        values = {
            "lease_expires": now + self.lease_seconds,
            "updated": now,
            "intervals": sa.case((ahead, number), else_=runs.c.intervals),
            "progress": sa.case((ahead, progress), else_=runs.c.progress),
        }
        if connection.execute(sa.update(runs).where(held).values(**values)).rowcount != 1:
            raise ClaimLost(
                f"attempt {self.attempt} of run {self.run.id} is over: another worker has it, "
                "or it has ended"
            )
        spent = (
            {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds} if cost else {}
        )
        mine = (attempts.c.run_id == self.run.id) & (attempts.c.number == self.attempt)
        connection.execute(sa.update(attempts).where(mine).values(heartbeat=now, **spent))

    def _digests(self, connection: sa.Connection, number: int) -> dict[int, str]:
        """Return the recorded digests of this interval and the previous one, by number."""
        query = sa.select(intervals.c.number, intervals.c.digest).where(
            intervals.c.run_id == self.run.id
        )
        rows = connection.execute(query.where(intervals.c.number.in_([number - 1, number]))).all()
        return {int(row.number): str(row.digest) for row in rows}


def end_attempt(
    connection: sa.Connection,
    run_id: str,
    attempt: int,
    outcome: Outcome,
    reason: str | None,
    now: float,
) -> str:
    """End an attempt and return the run's new status. The caller holds the run's row lock."""
    mine = (attempts.c.run_id == run_id) & (attempts.c.number == attempt)
    connection.execute(
        sa.update(attempts).where(mine).values(outcome=outcome, reason=reason, ended=now)
    )
    status = "done" if outcome == "done" else "waiting"
    if outcome in ("failed", "lost"):
        bad = sa.select(sa.func.count()).select_from(attempts)
        bad = bad.where(attempts.c.run_id == run_id, BAD)
        limit = connection.execute(
            sa.select(runs.c.max_attempts).where(runs.c.id == run_id)
        ).scalar_one()
        status = "failed" if connection.execute(bad).scalar_one() >= limit else "waiting"
    values = {"status": status, "reason": reason, "lease_expires": None, "updated": now}
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(**values))
    return status


def take_run(
    database: Database,
    worker: str,
    lease_seconds: float,
    which: sa.ColumnElement[bool],
    takeable: set[str],
    *,
    skip_locked: bool,
) -> tuple[str, int] | None:
    """Give the oldest run that fulfils `which` to a worker. Return its id and the attempt, or None.

    `takeable` are the statuses that it may have. Before, runs are taken from workers that are gone.
    """
    if not lease_seconds > 0:
        raise StoreError(f"the lease is {lease_seconds} s: it must be above 0")
    # Created before the write, so that a repeated write finds the claim of the first.
    key = uuid.uuid4().hex

    def work(connection: sa.Connection) -> tuple[str, int] | None:
        given = connection.execute(
            sa.select(attempts.c.run_id, attempts.c.number).where(attempts.c.key == key)
        ).first()
        if given is not None:
            return str(given.run_id), int(given.number)
        now = database.now(connection)
        _reclaim(connection, which, now, skip_locked)
        query = sa.select(runs.c.id, runs.c.attempt).where(which, runs.c.status.in_(takeable))
        query = (
            query.order_by(runs.c.created, runs.c.id)
            .limit(1)
            .with_for_update(skip_locked=skip_locked)
        )
        found = connection.execute(query).first()
        if found is None:
            return None
        number = found.attempt + 1
        lease = {
            "status": "running",
            "attempt": number,
            "lease_expires": now + lease_seconds,
            "updated": now,
        }
        connection.execute(sa.update(runs).where(runs.c.id == found.id).values(**lease))
        new = {
            "run_id": found.id,
            "number": number,
            "key": key,
            "worker": worker,
            "outcome": "running",
        }
        nothing = {"tokens": 0, "flops": 0.0, "seconds": 0.0}
        connection.execute(sa.insert(attempts).values(**new, **nothing, started=now, heartbeat=now))
        return str(found.id), number

    return database.write(work)


def _reclaim(
    connection: sa.Connection,
    which: sa.ColumnElement[bool],
    now: float,
    skip_locked: bool,
) -> None:
    """End attempts with an expired lease, and those of processes on this host that ended."""
    held = sa.select(runs.c.id, runs.c.attempt, runs.c.lease_expires, attempts.c.worker)
    held = held.join(
        attempts, (attempts.c.run_id == runs.c.id) & (attempts.c.number == runs.c.attempt)
    )
    held = held.where(which, runs.c.status == "running").with_for_update(
        skip_locked=skip_locked, of=runs
    )
    for row in connection.execute(held).all():
        if is_dead(row.lease_expires, now, row.worker):
            alive = is_alive(row.worker)
            event = "died" if alive is False else "was silent for longer than its lease"
            why = f"{readable(row.worker)} {event}"
            # A process that lives was stopped, or the clock was set: that is no failure.
            outcome: Outcome = "released" if alive else "lost"
            end_attempt(connection, row.id, row.attempt, outcome, why, now)


def is_dead(lease_expires: float, now: float, worker: str | None) -> bool:
    """Whether nobody trains a run whose status is `running`.

    Its lease has expired, or its worker was a process of this host that has ended.
    """
    return lease_expires < now or is_alive(worker or "") is False

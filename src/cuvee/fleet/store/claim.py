"""`Claim`: one worker's hold on one run, and the only way to write to it."""

from __future__ import annotations

import threading
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
from cuvee.fleet.store.rows import Interval, RunSummary
from cuvee.fleet.store.schema import attempts, intervals, runs, spaces

Outcome = Literal["done", "failed", "lost", "released"]

BAD = attempts.c.outcome.in_(["failed", "lost"])
"""The attempts that count against a run."""


class ClaimLost(StoreError):
    """The run belongs to another worker by now, or has ended: nothing more may be written to it by this one."""


class Claim:
    """Made by `Store.claim`. Each write proves that this attempt still is the run's newest, renews the lease, and is durable
    when it returns. `cost` is always what this attempt has spent so far; a run's cost is the sum over its attempts.
    """

    def __init__(
        self, database: Database, run: RunSummary, attempt: int, worker: str, lease_seconds: float
    ) -> None:
        self._database, self.run, self.attempt = database, run, attempt
        self.worker, self.lease_seconds = worker, lease_seconds

    def __repr__(self) -> str:
        return f"Claim(run={self.run.id}, attempt={self.attempt}, worker={self.worker})"

    def heartbeat(self) -> None:
        """Renews the lease. Raises `ClaimLost`."""
        self._database.write(self._renew)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Renews the lease from a thread for as long as the block runs, however long a single interval takes."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.lease_seconds / 4):
                try:
                    self.heartbeat()
                except ClaimLost:
                    return  # the next write of the worker itself is refused and says so
                except StoreError:
                    continue  # the server is away for longer than our patience: the worker's own writes will tell

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
        """Records interval `number`: 0 for what was measured before the first step, without a mixture; then 1, 2, ….

        The same interval again is no change. Raises `StoreError` if another one is recorded under this number already or
        the one before it is missing, and `ClaimLost`.
        """
        if (mixture is None) != (number == 0):
            raise StoreError(
                f"interval {number}: number 0 has no mixture, and every later one has its mixture"
            )
        interval = Interval(number, mixture, signals, metrics or {})
        row = interval.row()

        def work(connection: sa.Connection) -> None:
            self._renew(connection, cost, number, signals.progress)
            recorded = self._digests(connection, number)
            if number in recorded:
                if recorded[number] != row["digest"]:
                    raise StoreError(
                        f"run {self.run.id} recorded another interval {number} before: repeating it gave other numbers, so "
                        "the run is not deterministic on this machine. Start it anew under another run id, or resume it "
                        "with the software and the hardware that it began with"
                    )
                return
            if number > 0 and number - 1 not in recorded:
                raise StoreError(
                    f"run {self.run.id} has no interval {number - 1} yet: intervals are recorded in order"
                )
            space = {"digest": row["space"], "domains": interval.space_json()}
            connection.execute(self._database.insert_missing(spaces).values(**space))
            connection.execute(
                sa.insert(intervals).values(run_id=self.run.id, attempt=self.attempt, **row)
            )

        self._database.write(work)

    def finish(
        self,
        cost: Cost,
        *,
        checkpoint: str | None = None,
        policy: str | None = None,
        model: str | None = None,
    ) -> None:
        """Ends the run: done. The paths are those of its checkpoint, policy and model folders, if kept."""
        self._end("done", None, cost, {"checkpoint": checkpoint, "policy": policy, "model": model})

    def fail(self, reason: str, cost: Cost | None = None) -> str:
        """Ends this attempt. Returns what the run is now: `waiting` to be tried again, or `failed` after its last attempt."""
        return self._end("failed", reason, cost, {})

    def release(self, cost: Cost | None = None) -> None:
        """Gives the run back to be gone on with by anybody; does not count against its attempts."""
        self._end("released", None, cost, {})

    def _end(
        self, outcome: Outcome, reason: str | None, cost: Cost | None, paths: dict[str, Any]
    ) -> str:
        def work(connection: sa.Connection) -> str:
            mine = (attempts.c.run_id == self.run.id) & (attempts.c.number == self.attempt)
            if (
                connection.execute(sa.select(attempts.c.outcome).where(mine)).scalar_one()
                == outcome
            ):
                query = sa.select(runs.c.status).where(runs.c.id == self.run.id)
                return str(
                    connection.execute(query).scalar_one()
                )  # the answer to this very write was lost on the way
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
        """The fence: locks the run's row, and raises `ClaimLost` unless this attempt is the one that holds it."""
        now = self._database.now(connection)
        held = (
            (runs.c.id == self.run.id)
            & (runs.c.attempt == self.attempt)
            & (runs.c.status == "running")
        )
        ahead = (
            runs.c.intervals < number
        )  # intervals that are repeated after a resume do not set a run back
        values = {
            "lease_expires": now + self.lease_seconds,
            "updated": now,
            "intervals": sa.case((ahead, number), else_=runs.c.intervals),
            "progress": sa.case((ahead, progress), else_=runs.c.progress),
        }
        if connection.execute(sa.update(runs).where(held).values(**values)).rowcount != 1:
            raise ClaimLost(
                f"attempt {self.attempt} of run {self.run.id} is over: another worker has it, or it has ended"
            )
        spent = (
            {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds} if cost else {}
        )
        mine = (attempts.c.run_id == self.run.id) & (attempts.c.number == self.attempt)
        connection.execute(sa.update(attempts).where(mine).values(heartbeat=now, **spent))

    def _digests(self, connection: sa.Connection, number: int) -> dict[int, str]:
        """The digests of this interval and the one before, where they are recorded."""
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
    """Ends an attempt whose run's row this transaction has locked. Returns the run's new status."""
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

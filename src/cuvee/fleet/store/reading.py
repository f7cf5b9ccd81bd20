"""Reads runs, attempts and intervals. A damaged run does not hide the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Cost
from cuvee.fleet.store.claim import BAD, is_dead
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.rows import Interval, RunSummary, Space, Tally, digest_of
from cuvee.fleet.store.schema import STATUSES, attempts, intervals, runs, spaces

_TEXTS = ("id", "name", "status")
_OPTIONAL_TEXTS = ("reason", "checkpoint", "policy", "model", "worker")


@dataclass(frozen=True)
class Listing:
    """The runs that can be read, in the order of planning; `damaged` says why others cannot."""

    runs: tuple[RunSummary, ...]
    damaged: Mapping[str, str]
    """Messages by id. Each names the run."""


@dataclass(frozen=True)
class Worker:
    """A process that has claimed runs, and what became of its attempts at them."""

    name: str
    done: int
    bad: int
    """Attempts that failed or were lost."""
    tokens: int
    silent: float
    """Seconds since it last wrote."""
    holds: Mapping[str, float]
    """Seconds that are left of its lease, by id of a run that it trains; below 0 if it expired."""
    dead: bool = False
    """Whether it holds a run, and its lease has expired or it has ended."""


@dataclass(frozen=True)
class BadAttempt:
    """An attempt that failed or was lost. Its tokens are part of the cost of its run."""

    run: str
    number: int
    worker: str
    outcome: str
    reason: str
    ago: float
    """Seconds since it ended."""
    tokens: int


def read_listing(database: Database, which: Sequence[sa.ColumnElement[bool]]) -> Listing:
    """Read the runs that fulfil all of `which`, with one query unless a row is damaged."""
    query = _summaries(database).where(*which)
    try:
        rows = database.read(lambda connection: connection.execute(query).mappings().all())
        return Listing(tuple(read_summary(row) for row in rows), {})
    except StoreError:
        return _one_by_one(database, which)


def _one_by_one(database: Database, which: Sequence[sa.ColumnElement[bool]]) -> Listing:
    """A value that cannot be decoded makes a whole query fail, so each row has its own here."""
    query = sa.select(runs.c.id).where(*which).order_by(runs.c.created, runs.c.id)
    found: list[RunSummary] = []
    damaged: dict[str, str] = {}
    for run_id in database.read(lambda connection: connection.execute(query).scalars().all()):
        try:
            run = read_run(database, run_id)
        except StoreError as error:
            damaged[str(run_id)] = str(error)
        else:
            found += [run] if run is not None else []
    return Listing(tuple(found), damaged)


def read_run(database: Database, run_id: str) -> RunSummary | None:
    """Return one run, or None. Raises `StoreError`, naming the run, if its row is damaged."""
    query = _summaries(database, attempts.c.run_id == run_id).where(runs.c.id == run_id)
    try:
        row = database.read(lambda connection: connection.execute(query).mappings().first())
    except StoreError as error:
        raise StoreError(f"run {run_id} cannot be read: {error}") from None
    return None if row is None else read_summary(row)


def _summaries(
    database: Database, spent_by: sa.ColumnElement[bool] | None = None
) -> sa.Select[Any]:
    """Return a query for runs in the order of planning, with their cost and their last worker.

    `spent_by` limits the attempts that are summed: one run needs no sums over the whole store.
    """
    total = (sa.func.sum(attempts.c[name]).label(name) for name in ("tokens", "flops", "seconds"))
    sums = sa.select(attempts.c.run_id, *total).group_by(attempts.c.run_id)
    spent = (sums if spent_by is None else sums.where(spent_by)).subquery()
    holds = (attempts.c.run_id == runs.c.id) & (attempts.c.number == runs.c.attempt)
    query = sa.select(runs, attempts.c.worker, spent.c.tokens, spent.c.flops, spent.c.seconds)
    query = query.add_columns(database.clock.label("now"))
    query = query.outerjoin(spent, spent.c.run_id == runs.c.id).outerjoin(attempts, holds)
    return query.order_by(runs.c.created, runs.c.id)


def read_summary(row: sa.RowMapping) -> RunSummary:
    """Return a row of the table of runs. Raises `StoreError`, naming the run, if it was altered."""
    try:
        intact = digest_of({"config": row["config"], "seed": row["seed"]}) == row["fingerprint"]
        intact = intact and row["status"] in STATUSES and isinstance(row["config"], dict)
        intact = intact and all(isinstance(row[name], str) for name in _TEXTS)
        intact = intact and all(isinstance(row[name], str | None) for name in _OPTIONAL_TEXTS)
        if intact:
            return _summary(row)
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    raise StoreError(
        f"run {row['id']} was altered after it was planned: status, configuration, seed or a "
        "number do not match its fingerprint; restore the store from a copy"
    )


def _summary(row: sa.RowMapping) -> RunSummary:
    same = ("id", "name", "seed", "config", "status", *_OPTIONAL_TEXTS)
    return RunSummary(
        **{name: row[name] for name in same},
        group=row["cohort"],
        dead=row["status"] == "running"
        and is_dead(float(row["lease_expires"]), float(row["now"]), row["worker"]),
        attempts=int(row["attempt"]),
        intervals=int(row["intervals"]),
        progress=float(row["progress"]),
        created=float(row["created"]),
        updated=float(row["updated"]),
        cost=Cost(
            int(row["tokens"] or 0), float(row["flops"] or 0.0), float(row["seconds"] or 0.0)
        ),
    )


def read_tally(database: Database, which: Sequence[sa.ColumnElement[bool]]) -> Tally:
    """Count the runs that fulfil all of `which` by status, and add up their cost."""
    count = sa.select(
        runs.c.status,
        sa.func.count().label("runs"),
        sa.func.sum(runs.c.progress).label("progress"),
    )
    totals = (
        sa.func.coalesce(sa.func.sum(attempts.c[name]), 0).label(name)
        for name in ("tokens", "flops", "seconds")
    )
    bad = sa.func.coalesce(sa.func.sum(sa.case((BAD, 1), else_=0)), 0).label("bad")
    spend = sa.select(sa.func.count().label("attempts"), bad, *totals).join(
        runs, attempts.c.run_id == runs.c.id
    )

    def work(connection: sa.Connection) -> Tally:
        by_status = {
            row.status: row
            for row in connection.execute(count.where(*which).group_by(runs.c.status))
        }
        spent = connection.execute(spend.where(*which)).one()
        return Tally(
            **{
                status: int(by_status[status].runs) if status in by_status else 0
                for status in STATUSES
            },
            progress=sum(float(row.progress) for row in by_status.values()),
            attempts=int(spent.attempts),
            lost_attempts=int(spent.bad),
            cost=Cost(int(spent.tokens), float(spent.flops), float(spent.seconds)),
        )

    return database.read(work)


def read_workers(database: Database, which: Sequence[sa.ColumnElement[bool]]) -> list[Worker]:
    """Read who has claimed the runs that fulfil all of `which`; the last to write comes first."""
    at = attempts.c
    query = sa.select(
        at.worker,
        sa.func.sum(sa.case((at.outcome == "done", 1), else_=0)).label("done"),
        sa.func.sum(sa.case((BAD, 1), else_=0)).label("bad"),
        sa.func.sum(at.tokens).label("tokens"),
        (database.clock - sa.func.max(at.heartbeat)).label("silent"),
    )
    query = query.join(runs, at.run_id == runs.c.id).where(*which).group_by(at.worker)
    held = sa.select(at.worker, runs.c.id, (runs.c.lease_expires - database.clock).label("left"))
    held = held.join(runs, (at.run_id == runs.c.id) & (at.number == runs.c.attempt))
    held = held.where(*which, runs.c.status == "running")

    def work(connection: sa.Connection) -> list[Worker]:
        found = {
            row.worker: Worker(
                row.worker, int(row.done), int(row.bad), int(row.tokens), max(0.0, row.silent), {}
            )
            for row in connection.execute(query)
        }
        for row in connection.execute(held):
            worker = found.get(row.worker)
            if worker is None:  # it has claimed its first run since the other query
                continue
            holds = {**worker.holds, row.id: float(row.left)}
            dead = worker.dead or is_dead(row.left, 0.0, row.worker)
            found[row.worker] = replace(worker, holds=holds, dead=dead)
        return sorted(found.values(), key=lambda worker: worker.silent)

    return database.read(work)


def read_bad_attempts(
    database: Database, which: Sequence[sa.ColumnElement[bool]], most: int
) -> list[BadAttempt]:
    """Read the newest attempts that failed or were lost, of the runs that fulfil all of `which`."""
    at = attempts.c
    ago = database.clock - sa.func.coalesce(at.ended, at.heartbeat)
    query = sa.select(at.run_id, at.number, at.worker, at.outcome, at.reason, ago, at.tokens)
    query = query.join(runs, at.run_id == runs.c.id).where(BAD, *which)
    query = query.order_by(at.ended.desc(), at.run_id, at.number).limit(most)
    return [
        BadAttempt(run, number, worker, outcome, reason or "", max(0.0, past), int(tokens))
        for run, number, worker, outcome, reason, past, tokens in database.read(
            lambda connection: connection.execute(query).all()
        )
    ]


def read_intervals(
    database: Database, run_id: str, first: int = 0, last: int | None = None
) -> list[Interval]:
    """Read the intervals from `first` to `last`, both included; see `Store.intervals`."""
    query = sa.select(intervals).where(intervals.c.run_id == run_id)
    used = sa.select(intervals.c.space).where(intervals.c.run_id == run_id)
    lists = sa.select(spaces).where(spaces.c.digest.in_(used))
    query = query.where(intervals.c.number >= first).order_by(intervals.c.number)
    query = query.where(intervals.c.number <= last) if last is not None else query
    of = (runs.c.intervals, runs.c.fingerprint, runs.c.status)
    count = sa.select(*of).where(runs.c.id == run_id)

    def work(connection: sa.Connection) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        of_run = connection.execute(count).one_or_none() or (0, "", "")
        rows = connection.execute(query).mappings().all()
        return of_run, rows, connection.execute(lists).all()

    (recorded, run, status), rows, used_lists = database.read(work)
    domains = {row.digest: Space.read(row.digest, row.domains, run_id) for row in used_lists}
    found = [Interval.read(dict(row), domains.get(row["space"]), run_id, run) for row in rows]
    newest = recorded if last is None else min(recorded, last)
    if newest >= max(first, 1) and (not found or found[-1].number < newest):
        raise StoreError(
            f"run {run_id} has recorded {recorded} intervals, but the last of them are missing: rows were deleted or the "
            "store is damaged; restore it from a copy, or train the run again under another name"
        )
    if status == "done" and last is None and found and found[-1].number > recorded:
        raise StoreError(
            f"run {run_id} is done and has {found[-1].number} intervals, but recorded {recorded}: "
            "the store was altered; restore it from a copy"
        )
    if [interval.number for interval in found] != list(range(first, first + len(found))):
        raise StoreError(
            f"run {run_id} lacks intervals between {first} and {found[-1].number}: rows were "
            "deleted"
        )
    if any(after.signals.step < one.signals.step for one, after in pairwise(found)):
        raise StoreError(
            f"run {run_id} has intervals in another order than they were recorded in: rows were "
            "altered; restore the store from a copy"
        )
    return found

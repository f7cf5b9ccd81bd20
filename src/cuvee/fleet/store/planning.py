"""Plans, adds, reopens, removes and renames runs: what a worker with a claim does not do."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.core.protocols import Metrics
from cuvee.core.trajectory import Run
from cuvee.fleet.store.claim import BAD, is_dead
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.rows import Interval, fingerprint_of, plain_json, run_key
from cuvee.fleet.store.schema import attempts, evaluations, intervals, requests, runs, spaces
from cuvee.fleet.worker_name import is_alive, readable, worker_name

_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,64}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,200}")  # one line without terminal escapes
_TICK = 1e-4  # seconds between two runs planned one after the other


def plan_run(
    database: Database,
    name: str,
    seed: int,
    config: Mapping[str, Any],
    *,
    group: str | None,
    run_id: str | None,
    max_attempts: int,
) -> str:
    """Plan a run and return its id; see `Store.create`."""
    plain = plain_json(config, "config")
    run_id = run_key(config, seed) if run_id is None else run_id
    check_run_id(run_id)
    for what, label in (("name", name), ("group", group)):
        if label is not None:
            _check(_LABEL, label, what, "one line of 1 to 200 printable characters")
    if max_attempts < 1:
        raise StoreError(f"max_attempts is {max_attempts}: it must be at least 1")
    fingerprint = fingerprint_of(config, seed)

    def work(connection: sa.Connection) -> str:
        last = connection.execute(sa.select(sa.func.max(runs.c.created))).scalar_one() or 0.0
        # SQLite's clock has a resolution of one millisecond.
        now = max(database.now(connection), last + _TICK)
        row = {
            "id": run_id,
            "name": name,
            "cohort": group,
            "seed": seed,
            "config": plain,
            "fingerprint": fingerprint,
        }
        start = {
            "status": "waiting",
            "attempt": 0,
            "intervals": 0,
            "progress": 0.0,
            "max_attempts": max_attempts,
        }
        connection.execute(
            database.insert_missing(runs).values(**row, **start, created=now, updated=now)
        )
        return str(
            connection.execute(
                sa.select(runs.c.fingerprint).where(runs.c.id == run_id)
            ).scalar_one()
        )

    if database.write(work) != fingerprint:
        raise StoreError(
            f"run {run_id} exists with another configuration or seed: give this one an id "
            "of its own"
        )
    return run_id


def reopen_run(database: Database, run_id: str, attempts_more: int) -> None:
    """Allow a failed run `attempts_more` more attempts."""
    bad = sa.select(sa.func.count()).select_from(attempts).where(attempts.c.run_id == run_id, BAD)
    change = sa.update(runs).where(runs.c.id == run_id, runs.c.status == "failed")
    change = change.values(status="waiting", max_attempts=bad.scalar_subquery() + attempts_more)
    database.write(lambda connection: connection.execute(change))


def add_run(database: Database, run_id: str, run: Run, metrics: Sequence[Metrics]) -> None:
    """Record all of a planned run that was trained elsewhere; see `Store.add`."""
    mixtures = [None, *run.trajectory.mixtures]
    all_metrics = [{}, *metrics, *({} for _ in mixtures[len(metrics) + 1 :])]
    found = [
        Interval(*row)
        for row in zip(count(), mixtures, run.trajectory.signals, all_metrics, strict=False)
    ]
    fingerprint = fingerprint_of(run.config, run.seed)
    rows = [interval.row(fingerprint) for interval in found]
    paths = {"checkpoint": run.checkpoint, "policy": run.policy}
    ended = {
        "status": "done",
        "attempt": 1,
        "intervals": len(rows) - 1,
        "progress": run.trajectory.last.progress,
    }

    def work(connection: sa.Connection) -> None:
        now = database.now(connection)
        unstarted = (runs.c.id == run_id) & (runs.c.attempt == 0)
        if (
            connection.execute(
                sa.update(runs).where(unstarted).values(**ended, **paths, updated=now)
            ).rowcount
            == 0
        ):
            query = sa.select(intervals.c.digest).join(runs, runs.c.id == intervals.c.run_id)
            query = query.where(runs.c.id == run_id, runs.c.status == "done").order_by(
                intervals.c.number
            )
            recorded = list(connection.execute(query).scalars())
            if len(recorded) != len(found) or not all(
                one.is_recorded_as(digest, fingerprint)
                for one, digest in zip(found, recorded, strict=True)
            ):
                raise StoreError(
                    f"run {run_id} is in the store {database.address.shown} already with other measurements"
                )
            return
        attempt = {
            "run_id": run_id,
            "number": 1,
            "key": uuid.uuid4().hex,
            "worker": worker_name(),
            "outcome": "done",
        }
        times = {"started": now, "heartbeat": now, "ended": now}
        connection.execute(sa.insert(attempts).values(**attempt, **times, **asdict(run.cost)))
        domains = {
            row["space"]: interval.space_json() for row, interval in zip(rows, found, strict=True)
        }
        missing = database.insert_missing(spaces)
        connection.execute(
            missing, [{"digest": key, "domains": space} for key, space in domains.items()]
        )
        connection.execute(
            sa.insert(intervals), [{"run_id": run_id, "attempt": 1, **row} for row in rows]
        )

    database.write(work)


def remove_run(database: Database, run_id: str, attempts_seen: int | None = None) -> None:
    """Remove a run with its attempts, intervals, requests and evaluations, in one transaction.

    Lists of domains stay, because a writer of another run may be about to refer to one.

    Raises `StoreError` if a worker holds the run, or if it has not `attempts_seen` attempts.
    """

    def work(connection: sa.Connection) -> None:
        query = sa.select(runs.c.status, runs.c.attempt, runs.c.lease_expires, attempts.c.worker)
        query = query.outerjoin(
            attempts, (attempts.c.run_id == runs.c.id) & (attempts.c.number == runs.c.attempt)
        )
        query = query.where(runs.c.id == run_id).with_for_update(of=runs)
        found = connection.execute(query).first()
        now = database.now(connection)
        held = found if found is not None and found.status == "running" else None
        # A process of this host that is suspended lets its lease expire, and may go on.
        if held and (
            is_alive(held.worker or "") or not is_dead(held.lease_expires, now, held.worker)
        ):
            raise StoreError(
                f"run {run_id} is being trained by {readable(held.worker)}: stop that process first"
            )
        if found is not None and attempts_seen not in (None, found.attempt):
            raise StoreError(
                f"run {run_id} was trained again since it was listed: look at it "
                "(`cuvee runs list`) before you remove it"
            )
        for column in (intervals.c.run_id, requests.c.run_id, attempts.c.run_id):
            connection.execute(sa.delete(column.table).where(column == run_id))
        connection.execute(sa.delete(evaluations).where(evaluations.c.model == run_id))
        connection.execute(sa.delete(runs).where(runs.c.id == run_id))

    database.write(work)


def rename_run(database: Database, run_id: str, new: str, paths: dict[str, str | None]) -> None:
    """Give a finished run the id `new` and its folders the `paths`, in one transaction.

    Raises `StoreError` if the run is not done or if `new` is taken.
    """

    def work(connection: sa.Connection) -> None:
        if connection.execute(sa.select(runs.c.id).where(runs.c.id == new)).first():
            raise StoreError(f"there is a run {new} already: give another name")
        query = sa.select(runs).where(runs.c.id == run_id).with_for_update()
        row = connection.execute(query).mappings().one()
        if row["status"] != "done":
            raise StoreError(
                f"run {run_id} is {row['status']}: only a finished run can be renamed, because "
                "the others resume under the id that their configuration gives them"
            )
        connection.execute(sa.insert(runs).values({**row, "id": new, **paths}))
        query = sa.select(attempts).where(attempts.c.run_id == run_id)
        for attempt in connection.execute(query).mappings().all():
            key = uuid.uuid4().hex  # unique, and only asked for while the run is claimed
            connection.execute(sa.insert(attempts).values({**attempt, "run_id": new, "key": key}))
        for column in (intervals.c.run_id, requests.c.run_id):
            change = sa.update(column.table).where(column == run_id)
            connection.execute(change.values(run_id=new))
        connection.execute(
            sa.update(evaluations).where(evaluations.c.model == run_id).values(model=new)
        )
        connection.execute(sa.delete(attempts).where(attempts.c.run_id == run_id))
        connection.execute(sa.delete(runs).where(runs.c.id == run_id))

    database.write(work)


def _check(pattern: re.Pattern[str], value: str, what: str, allowed: str) -> None:
    if not pattern.fullmatch(value):
        raise StoreError(f"{what} {value!r} is not allowed: use {allowed}")


def check_run_id(run_id: str) -> None:
    """Raise `StoreError` if a run cannot have this id. Its folder is called after it."""
    allowed = "1 to 64 letters, digits, dots, underscores or hyphens, and not dots alone"
    _check(_ID, run_id, "run id", allowed)

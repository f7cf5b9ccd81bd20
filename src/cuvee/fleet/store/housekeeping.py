"""Removes and renames runs that no worker holds."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.schema import attempts, evaluations, intervals, requests, runs
from cuvee.fleet.worker_name import is_alive, readable


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


def is_dead(lease_expires: float, now: float, worker: str | None) -> bool:
    """Whether nobody trains a run whose status is `running`.

    Its lease has expired, or its worker was a process of this host that has ended.
    """
    return lease_expires < now or is_alive(worker or "") is False

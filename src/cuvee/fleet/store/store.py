"""`Store`: all runs, in a SQLite file or a PostgreSQL database.

    store = Store.open("runs/store.sqlite")
    run_id = store.create("odm", seed=0, config=config, group="first")  # returns an existing run
    claim = store.claim(worker_name(), group="first")  # or store.claim_run(run_id, worker_name())
    claim.append(0, None, signals)  # `cuvee.fleet.journal` does this
    claim.finish(cost)
    run = store.load(run_id)

A write is durable when the call returns, and repeating it changes nothing. A worker holds a run by
a lease, which is timed by the database's clock. Every write contains the number of the attempt: if
another worker has claimed the run since, the write raises `ClaimLost`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cuvee.core.errors import DivergedError, StoreError
from cuvee.core.protocols import Metrics
from cuvee.core.trajectory import Run, Trajectory
from cuvee.evaluation.items import TaskScore
from cuvee.fleet.store.address import Address, find_address
from cuvee.fleet.store.claim import Claim, take_run
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.evaluations import read_evaluations, save_evaluations
from cuvee.fleet.store.migrations.migrate import migrate
from cuvee.fleet.store.planning import (
    add_run,
    check_run_id,
    plan_run,
    remove_run,
    rename_run,
    reopen_run,
)
from cuvee.fleet.store.reading import (
    BadAttempt,
    Listing,
    Worker,
    read_bad_attempts,
    read_intervals,
    read_listing,
    read_run,
    read_tally,
    read_workers,
)
from cuvee.fleet.store.requests import add_request, check_action, read_requests
from cuvee.fleet.store.rows import Interval, RunSummary, Tally, run_key
from cuvee.fleet.store.schema import STATUSES, runs
from cuvee.fleet.worker_name import readable, worker_name
from cuvee.policies.guard.operator import Request

__all__ = ["Store", "run_key", "worker_name"]


class Store:
    """A store of runs. Threads may share it; each process opens its own with `Store.open`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(
        cls,
        url_or_path: str | Path | None = None,
        patience: float = 60.0,
        first_patience: float | None = None,
    ) -> Store:
        """Open a store and create the file and the tables if they do not exist.

        `url_or_path` is a path, `sqlite:///…`, `postgresql://…`, or `@FILE` that holds one of
        these. None means the environment variable CUVEE_STORE. `patience` is the time in seconds to
        wait for a lock or an unreachable server. `first_patience` replaces it for the first
        connection to a server, for commands that somebody waits for. Raises `StoreError`.
        """
        database = Database(find_address(url_or_path), patience)
        if first_patience is not None and not database.address.is_sqlite:
            database.patience = first_patience
        try:
            migrate(database)
            database.patience = patience
        except BaseException:
            database.engine.dispose()
            raise
        return cls(database)

    @property
    def address(self) -> Address:
        """The address, with which another process can open the store. Its repr shows no secrets."""
        return self._database.address

    def close(self) -> None:
        """Close all connections."""
        self._database.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self._database.address.shown})"

    # Planning

    def create(
        self,
        name: str,
        seed: int,
        config: Mapping[str, Any],
        *,
        group: str | None = None,
        run_id: str | None = None,
        max_attempts: int = 3,
    ) -> str:
        """Plan a run and return its id, by default `run_key(config, seed)`.

        An existing run stays unchanged. After `max_attempts` failed or lost attempts, a run is not
        handed out again. Raises `StoreError` if the id belongs to a run with another configuration
        or seed.
        """
        return plan_run(
            self._database,
            name,
            seed,
            config,
            group=group,
            run_id=run_id,
            max_attempts=max_attempts,
        )

    def reopen(self, run_id: str, attempts_more: int = 3) -> None:
        """Allow a failed run `attempts_more` more attempts. Other runs stay unchanged."""
        reopen_run(self._database, run_id, attempts_more)

    def add(
        self, name: str, run: Run, *, group: str | None = None, metrics: Sequence[Metrics] = ()
    ) -> str:
        """Record a finished run from elsewhere, in one transaction.

        Adding the same run again changes nothing. Raises `StoreError` if the id belongs to a run
        with other content or to one that is not done.
        """
        run_id = self.create(name, run.seed, run.config, group=group, run_id=run.id)
        add_run(self._database, run_id, run, metrics)
        return run_id

    # Requests of operators

    def request(self, run_id: str, action: Mapping[str, Any], author: str) -> Request:
        """Ask the worker of a run for `action` (see `Request`) from its next interval on.

        Raises `StoreError` for a run that is over, has not begun or runs without a guard, and for
        an action that does not fit its domains.
        """
        summary = self.summary(run_id)
        if summary.status in ("done", "failed"):
            raise StoreError(f"run {run_id} is {summary.status}: it takes no requests")
        if summary.intervals == 0:
            raise StoreError(f"run {run_id} has no interval yet: ask again when it has begun")
        last = self.intervals(run_id, first=summary.intervals)[-1]
        if "guard" not in last.metrics:
            raise StoreError(f"run {run_id} runs without a guard, which would apply requests")
        check_action(action, last.signals.names, last.metrics["guard"])
        return add_request(self._database, run_id, action, author)

    def requests(self, run_id: str | None = None, group: str | None = None) -> list[Request]:
        """Return the requests to a run, to the runs of a group, or all, oldest first."""
        return self._database.read(lambda connection: read_requests(connection, run_id, group))

    # Evaluations

    def add_evaluations(self, model: str, scores: Sequence[TaskScore]) -> None:
        """Record results of `model`, a run's id or "sha256:" and the digest of a model folder.

        An earlier result of this model on the same questions is replaced.
        """
        save_evaluations(self._database, model, scores)

    def evaluations(self, model: str) -> list[TaskScore]:
        """Return the recorded results of `model`, oldest first."""
        return read_evaluations(self._database, model)

    # Housekeeping

    def remove(self, run_id: str, attempts: int | None = None) -> None:
        """Remove a run and all that is recorded of it. Its folder stays.

        Raises `StoreError` if a worker holds the run, or if it no longer has so many `attempts`.
        """
        remove_run(self._database, run_id, attempts)

    def rename(self, run_id: str, new: str, paths: Mapping[str, str | None]) -> None:
        """Give a finished run the id `new`.

        `paths` are its `checkpoint`, `policy` and `model` folders from now on. Raises `StoreError`
        if the run is not done, or if `new` is taken or no id.
        """
        check_run_id(new)
        rename_run(self._database, run_id, new, dict(paths))

    # Claiming

    def claim(
        self, worker: str, lease_seconds: float = 60.0, group: str | None = None
    ) -> Claim | None:
        """Claim the oldest run that is waiting or whose worker is gone, or return None.

        `worker` is a `worker_name()`.
        """
        which = runs.c.cohort == group if group is not None else sa.true()
        return self._claim(worker, lease_seconds, which, {"waiting"}, skip_locked=True)

    def claim_run(self, run_id: str, worker: str, lease_seconds: float = 60.0) -> Claim:
        """Claim this run, even if it failed. Raises `StoreError` if it is done or running."""
        claim = self._claim(
            worker, lease_seconds, runs.c.id == run_id, {"waiting", "failed"}, skip_locked=False
        )
        if claim is None:
            summary = self.summary(run_id)
            if summary.status == "running":
                raise StoreError(
                    f"run {run_id} is being worked on by {readable(summary.worker)}: wait for it, or stop "
                    "that process"
                )
            raise StoreError(f"run {run_id} is {summary.status}: there is nothing left to do")
        return claim

    def _claim(
        self,
        worker: str,
        lease_seconds: float,
        which: sa.ColumnElement[bool],
        takeable: set[str],
        *,
        skip_locked: bool,
    ) -> Claim | None:
        taken = take_run(
            self._database, worker, lease_seconds, which, takeable, skip_locked=skip_locked
        )
        if taken is None:
            return None
        run_id, attempt = taken
        return Claim(self._database, self.summary(run_id), attempt, worker, lease_seconds)

    # Reading

    def runs(self, group: str | None = None, status: str | None = None) -> list[RunSummary]:
        """Return the runs of a group, or all runs, in the order in which they were planned.

        Raises `StoreError` if one of them is damaged; `listing` returns the others.
        """
        listing = self.listing(group, status)
        if listing.damaged:
            raise StoreError(next(iter(listing.damaged.values())))
        return list(listing.runs)

    def listing(
        self, group: str | None = None, status: str | None = None, beginning: str = ""
    ) -> Listing:
        """Return the runs that can be read and, by id, why others cannot.

        `beginning` is that of the ids. Raises `StoreError` for an unknown status.
        """
        if status is not None and status not in STATUSES:
            raise StoreError(f"{status!r} is no status of a run: use one of {', '.join(STATUSES)}")
        which = [runs.c.id.startswith(beginning, autoescape=True)] if beginning else []
        which += _of(group)
        which += [runs.c.status == status] if status is not None else []
        return read_listing(self._database, which)

    def groups(self) -> list[str]:
        """Return the names of all groups, sorted."""
        query = sa.select(runs.c.cohort).where(runs.c.cohort.is_not(None)).distinct()
        found = self._database.read(lambda connection: connection.execute(query).scalars().all())
        return sorted(name for name in found if isinstance(name, str))  # `listing` names others

    def tally(self, group: str | None = None) -> Tally:
        """Return the number of runs by status and their cost, with two small queries."""
        return read_tally(self._database, _of(group))

    def workers(self, group: str | None = None) -> list[Worker]:
        """Return who has claimed runs of a group, or any; the last to write comes first."""
        return read_workers(self._database, _of(group))

    def bad_attempts(self, group: str | None = None, most: int = 30) -> list[BadAttempt]:
        """Return the newest attempts that failed or were lost."""
        return read_bad_attempts(self._database, _of(group), most)

    def find(self, run_id: str) -> RunSummary | None:
        """The run with this id, or None."""
        return read_run(self._database, run_id)

    def summary(self, run_id: str) -> RunSummary:
        """Return the status of one run. Raises `StoreError` if it does not exist."""
        found = self.find(run_id)
        if found is None:
            raise StoreError(
                f"there is no run {run_id!r} in the store {self.address.shown}: `cuvee runs list` shows what there is"
            )
        return found

    def intervals(self, run_id: str, first: int = 0, last: int | None = None) -> list[Interval]:
        """Return the recorded intervals from `first` to `last`, both included.

        Raises `StoreError` if a row is damaged or missing.
        """
        return read_intervals(self._database, run_id, first, last)

    def trajectory(self, run_id: str, last: int | None = None) -> Trajectory:
        """Return the trajectory up to interval `last`, or all of it.

        Raises `StoreError` if nothing is recorded.
        """
        return _trajectory_of(self._begun(run_id, last))

    def _begun(self, run_id: str, last: int | None = None) -> list[Interval]:
        found = self.intervals(run_id, last=last)
        if not found:
            self.summary(run_id)  # raises if the run does not exist
            raise StoreError(f"run {run_id} has recorded nothing yet")
        return found

    def metrics(self, run_id: str) -> list[Metrics]:
        """Return the policy's metrics of each interval, as long as the list of mixtures."""
        return [interval.metrics for interval in self.intervals(run_id, first=1)]

    def load(self, run_id: str) -> Run:
        """Return the run as far as it is recorded. Raises `StoreError` if nothing is."""
        return self.load_with_metrics(run_id)[0]

    def load_with_metrics(self, run_id: str) -> tuple[Run, list[Metrics]]:
        """Return what `load` and `metrics` return, and read the intervals once."""
        summary = self.summary(run_id)
        found = self._begun(run_id)
        run = Run(
            run_id,
            summary.seed,
            summary.config,
            _trajectory_of(found),
            summary.cost,
            summary.checkpoint,
            summary.policy,
            diverged=(summary.reason or "").startswith(f"{DivergedError.__name__}:"),
        )
        return run, [interval.metrics for interval in found if interval.number]


def _of(group: str | None) -> list[sa.ColumnElement[bool]]:
    """Return the condition that a run is of the group; none if the group is None."""
    return [] if group is None else [runs.c.cohort == group]


def _trajectory_of(found: Sequence[Interval]) -> Trajectory:
    mixtures = [interval.mixture for interval in found if interval.mixture is not None]
    return Trajectory([interval.signals for interval in found], mixtures)

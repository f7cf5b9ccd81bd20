"""Database transactions that wait for locks, server restarts and lost connections.

A unit of work is a function of a connection that runs in one transaction. It may be called again
when the outcome of its transaction is unknown, because the connection broke after COMMIT was sent.
It must therefore detect what an earlier call wrote.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cuvee.core.errors import StoreError, pip_install
from cuvee.fleet.store.address import Address

T = TypeVar("T")

_BUSY_MS = 30_000
_HOPELESS = re.compile(
    r"authentication failed|does not exist|pg_hba|translate host name|SSL|not permitted|no password"
)


class Database:
    """One SQLite or PostgreSQL database.

    `patience` is the time in seconds to wait for a lock, a restarting server or a broken connection
    before `StoreError` is raised.
    """

    def __init__(self, address: Address, patience: float = 60.0) -> None:
        self.address = address
        self.patience = patience
        self.engine = _sqlite_engine(address) if address.is_sqlite else _postgresql_engine(address)
        now = (
            "(julianday('now') - 2440587.5) * 86400.0"
            if address.is_sqlite
            else "extract(epoch FROM clock_timestamp())"
        )
        self.clock = sa.cast(sa.literal_column(now), sa.Double)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one read-only transaction; it may run more than once."""
        return self._transact(work, write=False)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one transaction, durable on return; `work` may run more than once."""
        return self._transact(work, write=True)

    def now(self, connection: sa.Connection) -> float:
        """Return the database's time in seconds since 1970. Leases use no other clock."""
        return float(connection.execute(sa.select(self.clock)).scalar_one())

    def insert_missing(self, table: sa.Table) -> Any:
        """Return an INSERT that does nothing if the row exists."""
        if self.address.is_sqlite:
            return sqlite.insert(table).on_conflict_do_nothing()
        from sqlalchemy.dialects import postgresql  # costs a tenth of a second

        return postgresql.insert(table).on_conflict_do_nothing()

    def _transact(self, work: Callable[[sa.Connection], T], write: bool) -> T:
        deadline = time.monotonic() + self.patience
        pause = 0.01
        while True:
            try:
                with self._turn(write, deadline), self.engine.connect() as connection:
                    connection.execution_options(cuvee_write=write)
                    with connection.begin():
                        return work(connection)
            except UnicodeDecodeError:  # the message of SQLite's own error, or a text in the file
                raise StoreError(
                    f"the store {self.address.shown} is damaged: it holds text that is not UTF-8; "
                    "restore it from a copy"
                ) from None
            except (SQLAlchemyError, sqlite3.Error, OSError) as error:
                if not _is_transient(error) or time.monotonic() > deadline:
                    raise StoreError(
                        self._explain(error)
                    ) from None  # a chained error could show a URL
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 2.0)

    @contextmanager
    def _turn(self, write: bool, deadline: float) -> Iterator[None]:
        """Make writers to one SQLite file queue.

        SQLite's own lock would keep them apart, but a waiting writer sleeps longer and longer while
        others overtake it. Of eight writers, one then waits for seconds.
        """
        if not write or not self.address.is_sqlite:
            yield
            return
        with open(f"{self.address.url.database}-queue", "ab") as file:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(random.uniform(0.0002, 0.001))
            yield  # closing the file releases the lock, even if the process is killed

    def _explain(self, error: Exception) -> str:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        text = re.sub(
            r'user "[^"]*"', "this user", self.address.scrub(" ".join(str(cause).split()))
        )
        if _is_transient(error):
            return f"the store {self.address.shown} did not answer for {self.patience:g} s: {text}"
        hint = "; give a file that cuvee wrote, or a new name" if "not a database" in text else ""
        return f"the store {self.address.shown} refused: {text}{hint}"


def _sqlite_engine(address: Address) -> sa.Engine:
    assert address.url.database is not None
    try:
        Path(address.url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the folder of the store {address.shown} cannot be made: {error.strerror}"
        ) from error
    # The event below sends BEGIN.
    engine = sa.create_engine(
        address.url,
        connect_args={"isolation_level": None, "timeout": _BUSY_MS / 1000},
        hide_parameters=True,
        json_serializer=to_json,
        json_deserializer=_from_json,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A deferred transaction that starts to write fails at once if another writer was faster.
        write = connection.get_execution_options()["cuvee_write"]
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql_engine(address: Address) -> sa.Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise StoreError(f"a PostgreSQL store needs psycopg 3: {pip_install('postgres')}")
    timeout_ms = 30_000  # for a connection that drops packets
    # No prepared statements: behind a pooler the next query may reach a server that has not
    # prepared them.
    defaults = {
        "prepare_threshold": None,
        "connect_timeout": 10,
        "tcp_user_timeout": timeout_ms,
        "application_name": "cuvee",
    }
    return sa.create_engine(
        address.url,
        connect_args={**defaults, **address.secrets},
        hide_parameters=True,
        json_serializer=to_json,
        json_deserializer=_from_json,
    )


def to_json(value: Any) -> str:
    """Return compact JSON with exact floats. Raises `ValueError` for NaN and infinity."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _from_json(text: Any) -> Any:
    """Return the value in a JSON column. Raises `StoreError` for a damaged one."""
    if not isinstance(text, (str, bytes)):  # SQLite stores a number as a number
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"a column of the store does not hold JSON ({error}): it is damaged; restore the store from a copy"
        ) from error


def _is_transient(error: Exception) -> bool:
    """Whether a retry may succeed."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, sqlite3.OperationalError) and (
            "locked" in str(cause) or "busy" in str(cause)
        )
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = getattr(cause, "sqlstate", None)
    # Serialization failure, deadlock, shutdown, lost connection, too many connections.
    if state is not None:
        return state in ("40001", "40P01", "53300") or state[:2] in ("08", "57")
    return type(cause).__name__ == "OperationalError" and not _HOPELESS.search(str(cause))

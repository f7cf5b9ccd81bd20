"""The store's part of `fleet_faults.py`: power loss, many writers, restarts, lost answers.

Run as a program it writes rows and says so after each: store_faults.py STORE ROWS PLANTED.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Cost
from cuvee.fleet.store import schema
from cuvee.fleet.store.claim import Claim
from cuvee.fleet.store.store import Store
from cuvee.testing.postgres import LossyLink, PostgresServer
from cuvee.testing.store import example_interval, expected, record


def duplicates() -> Any:
    """How many rows say the same of the same interval."""
    rows = sa.select(schema.intervals.c.run_id, schema.intervals.c.number)
    total = sa.select(sa.func.count()).select_from(rows.subquery()).scalar_subquery()
    return sa.select(
        total - sa.select(sa.func.count()).select_from(rows.distinct().subquery()).scalar_subquery()
    )


def power_loss(full: bool, planted: str | None = None) -> Counter[str]:
    """[10] In a trace of system calls, a sync of the row's log precedes every acknowledgement."""
    if not shutil.which("strace"):
        return Counter({"no strace": 1})
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "store.sqlite"
        Store.open(path).close()
        command = [
            "strace",
            "-f",
            "-y",
            "-e",
            "trace=fsync,fdatasync,pwrite64,write",
            "-o",
            f"{name}/trace",
        ]
        script = [sys.executable, __file__, str(path), "200" if full else "20", planted or ""]
        subprocess.run([*command, *script], check=True, stdout=subprocess.DEVNULL)
        found, dirty = Counter[str](), False
        for line in (Path(name) / "trace").read_text().splitlines():
            if "pwrite64(" in line and "-wal>" in line:
                dirty = True
            elif re.search(r"\b(fsync|fdatasync)\(", line) and "-wal>" in line:
                dirty = False
            elif '"ack' in line:
                found["acknowledged"] += 1
                found["lost"] += dirty
        return found


def _acknowledge(path: str, rows: int, planted: str) -> None:
    with Store.open(path) as store:
        claim = store.claim_run(store.create("a", 0, {}), "worker")
        if planted:
            store._database.engine.dispose()
            sa.event.listen(
                store._database.engine,
                "connect",
                lambda c, _: c.execute("PRAGMA synchronous = OFF"),
            )
        for number in range(rows):
            claim.append(number, *example_interval(number))
            os.write(1, f"ack {number}\n".encode())


def _write(url: str, planted: bool, line: Any) -> None:
    """One writer process: works runs off until there are none and reports what it saw."""
    milliseconds, errors = [], 0
    if planted:
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", _defer, retval=True)
    store = Store.open(url, patience=60.0 if not planted else 0.0)
    while True:
        try:
            claim = store.claim(f"writer {os.getpid()}")
            if claim is None:
                break
            for number in range(claim.run.config["rows"]):
                began = time.perf_counter()
                claim.append(number, *example_interval(number))
                milliseconds.append(1000 * (time.perf_counter() - began))
            claim.finish(Cost(1))
        except StoreError:
            errors += 1
            if errors > 20:
                break
    line.send_bytes(json.dumps({"ms": milliseconds, "errors": errors}).encode())


def _defer(
    connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any
) -> tuple[str, Any]:
    return ("BEGIN" if statement == "BEGIN IMMEDIATE" else statement), parameters


def _read(url: str, stop: Any) -> None:
    with Store.open(url) as store:
        while not stop.is_set():
            for summary in store.runs():
                if summary.intervals:
                    store.trajectory(summary.id)


def writers(
    full: bool, planted: str | None = None, server: PostgresServer | None = None
) -> dict[str, Any]:
    """[11] Eight writers and four readers on one store. A server is restarted meanwhile."""
    runs, rows, context = (
        (80, 1000, multiprocessing.get_context("spawn"))
        if full
        else (40, 50, multiprocessing.get_context("spawn"))
    )
    found: dict[str, Any] = {"restarts": 0}
    with (
        tempfile.TemporaryDirectory() as name,
        _database(server, name) as url,
        Store.open(url) as store,
    ):
        for seed in range(runs):
            store.create("a", seed, {"rows": rows})
        stop, lines, processes = context.Event(), [], []
        for _ in range(8):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_write, args=(url, bool(planted), theirs)))
            lines.append(ours)
        readers = [
            context.Process(target=_read, args=(url, stop)) for _ in range(0 if planted else 4)
        ]
        began = time.perf_counter()
        for process in [*processes, *readers]:
            process.start()
        restarts = (10 if full else 5) if server else 0
        for number in range(restarts):  # spread over the work
            while any(process.is_alive() for process in processes) and _rows(
                store
            ) < runs * rows * (number + 1) / (restarts + 1):
                time.sleep(0.05)
            assert server
            server.stop("immediate" if number % 2 else "fast")
            server.start()
            found["restarts"] += any(process.is_alive() for process in processes)
        told = [json.loads(line.recv_bytes()) for line in lines]
        seconds = time.perf_counter() - began
        stop.set()
        for process in [*processes, *readers]:
            process.join()
        whole = [
            store.trajectory(summary.id) for summary in store.runs() if summary.status == "done"
        ]
        found["unfinished"] = runs - len(whole)
        found["torn"] = sum(trajectory != expected(rows) for trajectory in whole)
        found["duplicated"] = store._database.read(
            lambda connection: connection.execute(duplicates()).scalar_one()
        )
    found["errors"] = sum(one["errors"] for one in told)
    ms = sorted(value for one in told for value in one["ms"])
    found |= {"rows": len(ms), "rows_per_s": round(len(ms) / seconds)}
    if ms:
        found |= {"p50_ms": round(ms[len(ms) // 2], 2), "p99_ms": round(ms[len(ms) * 99 // 100], 2)}
    return found


def _rows(store: Store) -> int:
    query = sa.select(sa.func.count()).select_from(schema.intervals)
    return int(store._database.read(lambda connection: connection.execute(query).scalar_one()))


@contextlib.contextmanager
def _database(server: PostgresServer | None, folder: str) -> Iterator[str]:
    """An empty one: a file, or a schema of its own in the server."""
    if server is None:
        yield f"{folder}/store.sqlite"
        return
    name = f"s{time.time_ns()}"
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    engine.dispose()
    yield f"{server.url}?options=-csearch_path%3D{name}"


def lost_answers(full: bool, server: PostgresServer, planted: str | None = None) -> Counter[str]:
    """[12] The link breaks after the server has committed and before the client hears of it."""
    runs, rows, found = (120, 20, Counter[str]()) if full else (10, 12, Counter[str]())
    link = LossyLink(server.port, lose_every=3)
    with _database(server, "") as url, Store.open(url) as direct:
        if planted:
            drop = sa.text("ALTER TABLE intervals DROP CONSTRAINT intervals_pkey")
            direct._database.write(lambda connection: connection.execute(drop))
        forgetful = mock.patch.object(
            Claim, "_digests", lambda self, connection, number: {number - 1: ""}
        )
        with (
            forgetful if planted else contextlib.nullcontext(),
            Store.open(url.replace(f":{server.port}/", f":{link.port}/")) as store,
        ):
            for seed in range(runs):
                store.create("a", seed, {})
            while claim := store.claim("worker"):
                record(claim, rows)
                claim.finish(Cost(1))
        found["lost answers"] = link.lost
        link.close()
        found["duplicated"] = direct._database.read(
            lambda connection: connection.execute(duplicates()).scalar_one()
        )
        if not planted:
            found["lost"] = sum(
                direct.trajectory(summary.id) != expected(rows) for summary in direct.runs()
            )
            found["unfinished"] = sum(summary.status != "done" for summary in direct.runs())
            found["claims forgotten"] = direct.tally().attempts - runs
        return +found


if __name__ == "__main__":
    _acknowledge(sys.argv[1], int(sys.argv[2]), sys.argv[3])

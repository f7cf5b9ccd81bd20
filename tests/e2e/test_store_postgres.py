"""The same promises on a real PostgreSQL server, which this module starts."""

import io
import os
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Cost
from cuvee.fleet.store.address import Address
from cuvee.fleet.store.database import _postgresql_engine
from cuvee.fleet.store.store import Store
from cuvee.testing.postgres import LossyLink, PostgresServer, find_binaries, postgres_server
from cuvee.testing.store import StoreSuite, expected, record


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if find_binaries() is None and os.environ.get("CI") != "true":
        pytest.skip("no PostgreSQL server is installed")
    with postgres_server() as server:
        yield server


@pytest.fixture
def store_url(server: PostgresServer) -> str:
    """A schema of its own in the server's database."""
    name = f"s{uuid.uuid4().hex}"
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    engine.dispose()
    return f"{server.url}?options=-csearch_path%3D{name}"


class TestPostgreSQL(StoreSuite):
    @pytest.fixture
    def store_url(self, store_url: str) -> str:
        return store_url


class TestBehindAPooler(StoreSuite):
    """A transaction pooler gives each transaction a session that knows nothing of the last one."""

    @pytest.fixture
    def store_url(self, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        forgotten: list[int] = []

        def forget(session: Any, _: object) -> None:
            session.autocommit = True
            prepared = session.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
            forgotten.append(prepared[0])
            session.execute("DISCARD ALL")
            session.autocommit = False

        def pooled(address: Address) -> sa.Engine:
            engine = _postgresql_engine(address)
            event.listen(engine, "checkin", forget)
            return engine

        monkeypatch.setattr("cuvee.fleet.store.database._postgresql_engine", pooled)
        yield store_url
        assert forgotten
        assert not any(forgotten)


def work_through(url: str, intervals: int, failures: list[BaseException]) -> None:
    """What a worker does, with made-up measurements."""
    try:
        with Store.open(url) as store:
            while claim := store.claim("worker"):
                record(claim, intervals)
                claim.finish(Cost(1))
    except BaseException as error:
        failures.append(error)


def assert_whole(url: str, runs: int, intervals: int) -> None:
    with Store.open(url) as store:
        assert [run.status for run in store.runs()] == ["done"] * runs
        assert all(store.trajectory(run.id) == expected(intervals) for run in store.runs())
        assert store.tally().lost_attempts == 0


def test_a_server_that_restarts_under_writers_is_waited_for(
    server: PostgresServer, store_url: str
) -> None:
    runs, intervals, failures = 30, 12, list[BaseException]()
    with Store.open(store_url) as store:
        for seed in range(runs):
            store.create("a", seed, {})
    writers = [
        threading.Thread(target=work_through, args=(store_url, intervals, failures))
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    restarts = 0
    while any(writer.is_alive() for writer in writers) and restarts < 3:
        server.stop("immediate" if restarts % 2 else "fast")
        server.start()
        restarts += 1
        time.sleep(0.3)
    for writer in writers:
        writer.join()
    assert restarts > 0
    assert failures == []
    assert_whole(store_url, runs, intervals)


def test_an_answer_lost_after_the_commit_makes_no_row_twice(
    server: PostgresServer, store_url: str
) -> None:
    runs, intervals, failures = 6, 8, list[BaseException]()
    link = LossyLink(server.port, lose_every=3)
    with Store.open(store_url.replace(f":{server.port}/", f":{link.port}/")) as store:
        for seed in range(runs):
            store.create("a", seed, {})
    work_through(store_url.replace(f":{server.port}/", f":{link.port}/"), intervals, failures)
    link.close()
    assert link.lost > 10
    assert failures == []
    assert_whole(store_url, runs, intervals)
    with Store.open(store_url) as store:
        assert store.tally().attempts == runs  # no claim was handed out and forgotten
        assert sum(run.cost.tokens for run in store.runs()) == runs


def test_no_secret_is_shown_when_the_server_refuses(
    server: PostgresServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for url in (
        server.url.replace(server.password, "CANARY1"),
        server.url.replace("cuvee:", "CANARY-USER:"),
        server.url.replace(f"{server.port}/cuvee", f"{server.port}/missing") + "?password=CANARY2",
    ):
        with pytest.raises(StoreError) as caught:
            Store.open(url, patience=0.5)
        told = io.StringIO()
        traceback.print_exception(caught.value, file=told)
        text = "\n".join([told.getvalue(), *capfd.readouterr()])
        assert not any(secret in text for secret in ("CANARY", server.password)), text


def test_the_first_connection_has_a_patience_of_its_own(server: PostgresServer) -> None:
    nobody = server.url.replace(f":{server.port}/", ":1/")
    with pytest.raises(StoreError, match=r"did not answer for 0\.2 s"):
        Store.open(nobody, patience=600.0, first_patience=0.2)
    with Store.open(server.url, first_patience=5.0) as store:
        server.stop("fast")
        back = threading.Timer(6.0, server.start)
        back.start()
        assert store.runs() == []  # waits longer than that for a server that restarts
        back.join()

"""The run store on SQLite, valid store addresses, and that no password of a URL is ever shown."""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Cost
from cuvee.fleet.store.address import ENVIRONMENT, INSECURE, file_system_of, find_address
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.reading import read_summary
from cuvee.fleet.store.rows import digest_of
from cuvee.fleet.store.schema import HEAD
from cuvee.fleet.store.store import Store
from cuvee.fleet.worker_name import is_alive, worker_name
from cuvee.recipes.stores import find_runs, open_store
from cuvee.testing.runs import example_run
from cuvee.testing.store import StoreSuite

CANARIES = ("CANARY-USER", "CANARY1", "CANARY2")
SECRET_URL = "postgresql://CANARY-USER:CANARY1@{host}/db?password=CANARY2"


class TestSQLite(StoreSuite):
    @pytest.fixture
    def store_url(self, tmp_path: Path) -> str:
        return str(tmp_path / "new" / "store.sqlite")

    def test_the_file_is_durable_and_consistent(self, store: Store) -> None:
        wanted = {
            "PRAGMA journal_mode": "wal",
            "PRAGMA synchronous": 2,
            "PRAGMA foreign_keys": 1,
            "PRAGMA integrity_check": "ok",
        }
        found = store._database.read(
            lambda connection: {
                query: connection.exec_driver_sql(query).scalar_one() for query in wanted
            }
        )
        assert found == wanted


def test_a_path_and_a_url_name_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.sqlite"
    (tmp_path / "url").write_text(f"sqlite:///{path}\nsecond line\n")
    monkeypatch.setenv(ENVIRONMENT, f"@{tmp_path / 'url'}")
    monkeypatch.chdir(tmp_path)
    for given in (
        path,
        str(path),
        f"sqlite:///{path}",
        f"@{tmp_path / 'url'}",
        "store.sqlite",
        None,
    ):
        assert find_address(given).url.database == str(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mysql://u:CANARY1@host/db", "no driver for a store"),
        ("postgresql+psycopg2://host/db", "no driver for a store"),
        ("sqlite://", "plain file"),
        ("sqlite:///:memory:", "plain file"),
        ("sqlite:///a?mode=CANARY2", "plain file"),
        ("://CANARY1", "cannot be read"),
        ("postgresql://u:CANARY1@host:port/db", "cannot be read"),
        ("@/does/not/exist", "first line"),
        ("/", "is a folder"),
    ],
)
def test_what_is_no_store_is_refused_without_repeating_a_secret(given: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        find_address(given)
    assert not any(canary in str(caught.value) for canary in CANARIES)


def test_no_store_at_all_is_an_error_that_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(StoreError, match=ENVIRONMENT):
        find_address(None)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, " * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(tmp_path / "text")


def test_a_place_where_no_file_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(tmp_path / "file" / "folder" / "store.sqlite")
    with pytest.raises(StoreError, match="refused"):
        Store.open("/proc/store.sqlite")


def test_postgresql_without_its_driver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match="psycopg"):
        Store.open("postgresql://localhost/x")


@pytest.mark.parametrize("content", [b"1", b"[1]", b"postgres", b"x" * 5000])
def test_a_file_of_something_else_is_not_written_over(tmp_path: Path, content: bytes) -> None:
    """SQLite takes a file that is shorter than its header for an empty database."""
    place = tmp_path / "notes.txt"
    place.write_bytes(content)
    with pytest.raises(StoreError, match="is not a database"):
        Store.open(place)
    assert place.read_bytes() == content


@pytest.mark.parametrize("given", ["{}/typo.db", "sqlite:///{}/typo.db", "@{}/address"])
def test_a_command_that_reads_makes_no_store(tmp_path: Path, given: str) -> None:
    (tmp_path / "address").write_text(f"{tmp_path}/typo.db\n")
    with pytest.raises(StoreError, match="there is no store"):
        open_store(given.format(tmp_path), must_exist=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["address"]


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "theirs") as connection:
        connection.execute("CREATE TABLE precious (x)")
    with pytest.raises(StoreError, match=r"precious.*database of its own"):
        Store.open(tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre", "9p"])
def test_a_network_file_system_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:5 / /mnt/my\\040share rw,relatime shared:1 - {kind} server:/x rw\n"
        "3 2 8:2 / /mnt/my\\040share/local rw - xfs /dev/sdb rw\n"
    )
    assert file_system_of(Path("/mnt/other"), mounts) == "ext4"
    assert file_system_of(Path("/mnt/my share/local/a"), mounts) == "xfs"
    assert file_system_of(Path("/mnt/my share/runs/a"), mounts) == kind
    monkeypatch.setattr("cuvee.fleet.store.address.file_system_of", lambda path: kind)
    with pytest.raises(StoreError, match="network file system"):
        Store.open(tmp_path / "store.sqlite")
    assert not (tmp_path / "store.sqlite").exists()


@pytest.mark.parametrize("query", ["sslmode=disable", "sslmode=prefer", "service=x&sslmode=allow"])
def test_runs_do_not_cross_a_network_in_the_clear(
    query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(INSECURE, raising=False)
    url = f"postgresql://u@db.example.org/x?{query}"
    with pytest.raises(StoreError, match="in the clear"):
        find_address(url)
    monkeypatch.setenv(INSECURE, "1")
    assert find_address(url).secrets["sslmode"] in query


def test_tls_is_asked_for_unless_the_server_is_on_this_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (INSECURE, "PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert find_address("postgresql://db.example.org/x").secrets["sslmode"] == "require"
    assert find_address("postgresql://localhost/x?host=10.0.0.1").secrets["sslmode"] == "require"
    assert find_address("postgresql://h/x?sslmode=verify-full").secrets["sslmode"] == "verify-full"
    for local in (
        "postgresql://localhost/x",
        "postgresql://127.0.0.1:5433/x",
        "postgresql:///x?host=/run/pg",
    ):
        assert "sslmode" not in find_address(local).secrets
    monkeypatch.setenv("PGHOST", "db.example.org")
    assert find_address("postgresql:///x").secrets["sslmode"] == "require"


@pytest.mark.parametrize("host", ["127.0.0.1:1", "does-not-exist.invalid"])
def test_no_secret_is_shown_when_a_server_cannot_be_reached(
    host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    address = find_address(SECRET_URL.format(host=host))
    with pytest.raises(StoreError) as caught:
        Store.open(SECRET_URL.format(host=host), patience=0.2)
    told = io.StringIO()
    traceback.print_exception(caught.value, file=told)
    text = "\n".join(
        [str(address), repr(address), address.shown, told.getvalue(), *capfd.readouterr()]
    )
    assert host.split(":")[0] in text
    assert not any(canary in text for canary in CANARIES)
    assert address.scrub("the CANARY1 of CANARY-USER") == "the *** of ***"


def test_importing_the_package_needs_no_database_library() -> None:
    code = (
        "import sys, cuvee, cuvee.fleet; "
        "sys.exit('sqlalchemy' in sys.modules or 'alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import cuvee.fleet.store.migrations

    config = Config()
    config.set_main_option(
        "script_location", str(Path(cuvee.fleet.store.migrations.__file__).parent)
    )
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_worker_is_dead_only_if_it_certainly_is() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    name = worker_name()
    childs = name.replace(f"/{os.getpid()}/", f"/{child.pid}/").rpartition("/")[0]
    start = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    assert is_alive(name)
    assert is_alive(f"{childs}/{start}")
    assert (
        is_alive(f"{childs}/{int(start) + 1}") is False
    )  # the number was used again by another process
    child.kill()
    child.wait()
    assert is_alive(f"{childs}/{start}") is False
    assert is_alive(f"elsewhere-{childs}/{start}") is None
    assert is_alive("some name") is None


def test_a_killed_worker_of_this_host_need_not_wait_out_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    code = (
        "import os, sys; from cuvee.fleet.store.store import Store, worker_name\n"
        "store = Store.open(sys.argv[1])\n"
        "store.claim_run(store.create('a', 0, {}), worker_name(), 3600.0)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    with Store.open(path) as store:
        assert store.runs()[0].status == "running"
        claim = store.claim(worker_name())
        assert claim is not None
        assert claim.attempt == 2


def test_a_column_that_holds_no_json_is_a_named_error(tmp_path: Path) -> None:
    for junk in ("{", "", "[" * 100_000, '{"a": NaN'):
        place = tmp_path / f"{abs(hash(junk))}.db"
        with Store.open(place) as store:
            run_id = store.create("x", 0, {"a": 1})
        with contextlib.closing(sqlite3.connect(place)) as other:
            other.execute("update runs set config = ?", (junk,))
            other.commit()
        with Store.open(place) as store:
            with pytest.raises(StoreError, match="does not hold JSON"):
                store.runs()
            with pytest.raises(StoreError, match="does not hold JSON"):
                store.summary(run_id)


@pytest.mark.parametrize(
    "change",
    [
        "config = '{'",
        "config = '[]'",
        "config = '{\"a\": 2}'",
        "seed = 9",
        "config = cast(x'7b22ff' as text)",
        "reason = cast(x'ff41' as text)",
        "name = cast(x'80' as text)",
        "updated = 'soon'",
        "intervals = 'many'",
        "progress = 'half'",
        "reason = x'00ff'",
        "fingerprint = ''",
        "status = 'lost'",
    ],
)
def test_one_damaged_run_hides_no_other(tmp_path: Path, change: str) -> None:
    place = tmp_path / "store.db"
    with Store.open(place) as store:
        ids = [store.create(f"run {i}", i, {"a": 1}, run_id=f"run-{i}") for i in range(4)]
    with contextlib.closing(sqlite3.connect(place)) as other:
        other.execute("pragma ignore_check_constraints = on")
        other.execute(f"update runs set {change} where id = ?", (ids[1],))  # noqa: S608
        other.commit()
    with Store.open(place) as store:
        listing = store.listing()
        assert [run.id for run in listing.runs] == [ids[0], *ids[2:]]
        assert list(listing.damaged) == [ids[1]]
        assert ids[1] in listing.damaged[ids[1]]
        with pytest.raises(StoreError, match=ids[1]):
            store.runs()
        assert find_runs(store, [ids[2]])[0].seed == 2
        with pytest.raises(StoreError, match=ids[1]):
            find_runs(store, [ids[1]])
    with pytest.warns(UserWarning, match=ids[1]):
        listed = CliRunner().invoke(
            app, ["runs", "list", "--store", str(place)], catch_exceptions=False
        )
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [ids[0], *ids[2:]]


def test_a_clock_that_steps_fails_no_live_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Database.now
    steps = itertools.cycle([0.0, 3600.0, 0.0, -3600.0])
    with Store.open(tmp_path / "store.db") as store:
        run_id = store.create("a", 0, {})
        claim = store.claim_run(run_id, worker_name())
        for _ in range(20):  # each step up ends the lease of a worker that lives
            shift = next(steps)
            monkeypatch.setattr(
                Database, "now", lambda self, connection, by=shift: right(self, connection) + by
            )
            claim = store.claim(worker_name()) or claim
            claim.heartbeat()
            assert store.summary(run_id).status == "running"
        assert claim.attempt > 3  # more than `max_attempts`, none of them a failure
        assert store.tally().lost_attempts == 0
        claim.finish(Cost())
        assert store.summary(run_id).status == "done"


ROWS = {
    "numbers exchanged": "update intervals set number = case number when 3 then 104 when 4 then 103 "
    "else number end",
    "of another run": "update intervals set (mixture, signals, digest, space) = (select other.mixture,"
    " other.signals, other.digest, other.space from intervals other where other.number = 3 and"
    " other.run_id <> intervals.run_id) where number = 3",
    "a figure of a policy": """update intervals set metrics = '{"reward": 2.0}' where number = 3""",
    "no record": """update intervals set metrics = '{"guard": "x"}'""",
    "a list for a record": """update intervals set metrics = '{"guard": [1]}'""",
    "a record of other types": """update intervals set metrics = '{"guard": {"verdict": 5}}'""",
    "a lower count": "update runs set intervals = 2",
    "a text for a number": "update intervals set number = 'x' where number = 3",
}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("change", ROWS.values(), ids=ROWS)
def test_rows_that_were_altered_or_exchanged_are_refused(
    tmp_path: Path, change: str, earlier: bool
) -> None:
    """Earlier versions recorded digests without run, number and metrics, which must still load."""
    with Store.open(tmp_path / "s.db") as store:
        ids = [store.add("n", example_run("odm", seed, intervals=6)) for seed in (0, 1)]
        with closing(sqlite3.connect(tmp_path / "s.db")) as other, other:
            if earlier:
                for row in other.execute("select rowid, space, mixture, signals from intervals"):
                    old = digest_of([row[1], *(json.loads(one or "null") for one in row[2:])])
                    other.execute("update intervals set digest = ? where rowid = ?", (old, row[0]))
        assert len(store.load(ids[0]).trajectory) == 6
        assert store.add("n", example_run("odm", 0, intervals=6)) == ids[0], "adding it again"
        with closing(sqlite3.connect(tmp_path / "s.db")) as other, other:
            other.execute("pragma ignore_check_constraints = on")
            other.execute(change)
            other.execute("update intervals set number = number - 100 where number in (103, 104)")
        if earlier and ("other.number" in change or "reward" in change):
            return  # the digests of earlier versions do not show it
        with pytest.raises(StoreError, match=r"altered|cannot be read|another order|lacks"):
            store.load_with_metrics(ids[0])


@pytest.mark.parametrize(
    "change",
    ["update runs set cohort = x'ff'", "update attempts set seconds = 1e299, flops = 1e299",
     "update runs set updated = 1e299, created = 1e299"],
)  # fmt: skip
def test_odd_columns_do_not_break_a_listing(tmp_path: Path, change: str) -> None:
    with Store.open(tmp_path / "s.db") as store:
        ids = [store.add("n", example_run("odm", one, intervals=2), group="g") for one in (0, 1)]
        with closing(sqlite3.connect(tmp_path / "s.db")) as other, other:
            other.execute("pragma ignore_check_constraints = on")
            table = change.split()[1]
            column = "id" if table == "runs" else "run_id"
            other.execute(f"{change} where {column} = ?", (ids[0],))
    done = CliRunner().invoke(app, ["runs", "list", "--store", str(tmp_path / "s.db")])
    assert done.exit_code == 0, done.exception
    assert ids[1] in done.stdout


def test_a_renamed_run_keeps_its_digests(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        run = store.add("n", example_run("odm", 0, intervals=3))
        store.rename(run, "another", {"checkpoint": None, "policy": None, "model": None})
        assert len(store.load("another").trajectory) == 3


def test_one_run_is_found_without_reading_the_others(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.db") as store:
        for i in range(30):
            store.create("a", i, {}, run_id=f"x-{i}")
        read: list[str] = []

        def count(row: Any) -> Any:
            read.append(row["id"])
            return read_summary(row)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cuvee.fleet.store.reading.read_summary", count)
            store.find("x-7")
            store.listing(beginning="x-2")
        assert read == ["x-7", "x-2", *(f"x-{i}" for i in range(20, 30))]


def test_a_damaged_schema_whose_error_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    """SQLite quotes the damaged text in its message, which Python then cannot decode."""
    place = tmp_path / "store.db"
    with Store.open(place) as store:
        store.create("a", 0, {})
    content = place.read_bytes()
    assert b"BETWEEN 0" in content
    place.write_bytes(content.replace(b"BETWEEN 0", b"BETWEEN\xa00"))
    with pytest.raises(StoreError, match=r"store\.db is damaged.*not UTF-8"):
        Store.open(place).runs()


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ENOMEM]
)
def test_a_process_that_cannot_be_looked_at_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    me = worker_name()

    def refuse(path: Path, *_: object, **__: object) -> str:
        raise OSError(code, os.strerror(code), str(path))

    with Store.open(tmp_path / "s.db") as store:
        run_id = store.create("a", 0, {})
        claim = store.claim_run(run_id, me)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", refuse)
            assert is_alive(me) is None
            assert store.claim("thief") is None
            with pytest.raises(StoreError, match=re.escape(os.strerror(code))):
                worker_name()
        claim.heartbeat()
        assert not store.summary(run_id).dead


def test_a_process_that_proc_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    host = worker_name().rsplit("/", 2)[0]
    assert is_alive(f"{host}/4194999/1") is False
    assert is_alive(f"{host}/{10**30}/1") is False
    monkeypatch.setattr(os, "kill", refuse)
    assert is_alive(f"{host}/4194999/1") is None

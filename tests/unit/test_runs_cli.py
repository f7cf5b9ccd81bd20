"""`cuvee runs` and `cuvee report` on a store with runs of a toy trainer, and their output."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cuvee.cli import app
from cuvee.core.errors import CuveeError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Cost, Trajectory
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.store import Store
from cuvee.fleet.worker_name import worker_name
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.alarms import AlarmSettings
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.recipes.housekeeping import remove, unfinished
from cuvee.testing.toy import ToyTrainer

SMALL = {"method": {"name": "natural", "label": "natural"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two finished runs of one comparison and a run that has only been planned."""
    path = tmp_path_factory.mktemp("runs") / "store.sqlite"
    with Store.open(path) as store:
        for label, seed, floor in (("odm", 0, 0.0), ("floored", 1, 0.3)):
            config = {"method": {"name": label, "label": label}, "guard": {"floor": floor}}
            run_id = store.create(label, seed, config, group="mine", run_id=f"mine-{label}-s{seed}")
            trainer = ToyTrainer(seed=seed)
            journal = RunJournal(store, store.claim_run(run_id, "worker"))
            policy = Exp3() if seed == 0 else Fixed({"web": 0.8, "code": 0.2, "maths": 0.0})
            run(trainer, Guard(policy, Limits(floor=floor)), journal)
            journal.finish(trainer)
        store.create(
            "natural", 2, {"method": {"name": "natural", "label": "natural"}}, run_id="planned"
        )
    return path


def cuvee(place: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--store", str(place)], catch_exceptions=False)


def trajectory(place: Path, run_id: str) -> Trajectory:
    with Store.open(place) as store:
        return store.trajectory(run_id)


def test_a_finished_run_whose_count_was_edited_to_zero_is_named(
    place: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.sqlite"
    with closing(sqlite3.connect(place)) as source, closing(sqlite3.connect(store)) as copy:
        source.backup(copy)
        copy.execute("UPDATE runs SET intervals = 0 WHERE id = 'mine-odm-s0'")
        copy.commit()
    said = "run mine-odm-s0 is done and counts no interval"
    with pytest.warns(UserWarning, match=said):
        done = cuvee(store, "runs", "export", "-o", str(tmp_path / "all.json"))
    assert done.stdout.startswith("1 run ")
    with pytest.warns(UserWarning, match=said):
        cuvee(store, "report", "-o", str(tmp_path / "report.html"))
    with pytest.raises(StoreError, match=said):
        cuvee(store, "runs", "export", "mine-odm", "-o", str(tmp_path / "one.json"))


def test_list_shows_every_run_with_its_state_and_cost(place: Path) -> None:
    lines = cuvee(place, "runs", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["mine-odm-s0", "mine-floored-s1", "planned"]
    assert all(word in lines[1] for word in ("mine", "done", "100%", "8,000"))
    assert "waiting" in lines[3]
    assert len(cuvee(place, "runs", "list", "--group", "mine").stdout.splitlines()) == 3
    assert len(cuvee(place, "runs", "list", "--status", "waiting").stdout.splitlines()) == 2


def test_show_prints_configuration_and_trajectory(place: Path) -> None:
    shown = cuvee(place, "runs", "show", "mine-o").stdout
    assert "label: odm" in shown
    rows = [line.split() for line in shown.splitlines()[-14:-5]]
    assert [row[0] for row in rows] == [str(t) for t in range(9)]
    assert rows[8][1] == "8,000"
    read_K = trajectory(place, "mine-odm-s0").tokens_read().of(("web", "code", "maths"))
    domains = [line.split() for line in shown.splitlines()[-3:]]
    assert [row[0] for row in domains] == ["web", "code", "maths"]
    assert [row[4] for row in domains] == [
        f"{read / size:.2f}" for read, size in zip(read_K, (10**6, 10**5, 10**4), strict=True)
    ]
    assert (
        len(cuvee(place, "runs", "show", "mine-odm-s0", "--every", "4").stdout.splitlines())
        == len(shown.splitlines()) - 6
    )


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("nine", "no run 'nine'"), ("mine", "'mine' is the beginning of 2 ids: mine-odm-s0, mine-fl")],
)
def test_a_run_that_is_not_meant_clearly_is_refused(place: Path, wanted: str, said: str) -> None:
    with pytest.raises(CuveeError) as caught:
        cuvee(place, "runs", "show", wanted)
    assert said in str(caught.value)


def test_json_keeps_everything(place: Path, tmp_path: Path) -> None:
    assert "2 runs" in cuvee(place, "runs", "export", "-o", str(tmp_path / "all.json")).stdout
    first, second = json.loads((tmp_path / "all.json").read_text())
    assert Trajectory.from_json(first["trajectory"]) == trajectory(place, "mine-odm-s0")
    assert [figures["guard"]["step"] for figures in second["metrics"]] == list(range(8))
    assert first["cost"]["tokens"] == 8000


def test_parquet_has_a_row_for_each_interval_and_domain(place: Path, tmp_path: Path) -> None:
    cuvee(place, "runs", "export", "mine-odm-s0", "-o", str(tmp_path / "one.parquet"))
    rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
    recorded = trajectory(place, "mine-odm-s0")
    assert len(rows) == 9 * 3
    for row in rows:
        signals, k = recorded.signals[row["interval"]], recorded.names.index(row["domain"])
        assert row["tokens"] == signals.tokens_K[k]
        assert row["loss"] == (signals.loss.values[k] if signals.loss.present[k] else None)
        assert row["weight"] == (
            recorded.mixtures[row["interval"] - 1].weights_K[k] if row["interval"] else None
        )


def test_export_needs_a_format(place: Path, tmp_path: Path) -> None:
    with pytest.raises(CuveeError, match=r"end its name in \.json or \.parquet"):
        cuvee(place, "runs", "export", "-o", str(tmp_path / "all.csv"))


def test_audit_tells_what_the_guard_did(place: Path) -> None:
    lines = cuvee(place, "runs", "audit", "mine-f", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 8
    assert all(min(record["executed"].values()) >= 0.3 - 1e-9 for record in records)
    assert [record["verdict"] for record in records] == ["limited"] * 8
    assert all(record["proposed"] != record["executed"] for record in records)
    assert records[-1]["executed"] == trajectory(place, "mine-floored-s1").mixtures[-1].as_dict()
    shown = cuvee(place, "runs", "audit", "mine-f").stdout.splitlines()
    assert shown[0].split() == [
        "step",
        "verdict",
        "change",
        "reward",
        "proposed",
        "executed",
        "why",
    ]
    assert [line.split()[:2] for line in shown[1:9]] == [[str(t), "limited"] for t in range(8)]
    assert shown[9:] == [
        "",
        "8 decisions: 8 limited",
        "limits that acted: floor 8",
        "largest change: 0.0000 at step 1",
        "alarms: none",
    ]


def test_audit_filters_and_says_so_if_there_is_nothing(place: Path) -> None:
    assert cuvee(place, "runs", "audit", "mine-f", "--only", "refused", "--json").stdout == ""
    assert (
        len(
            cuvee(
                place, "runs", "audit", "mine-odm", "--only", "accepted", "--json"
            ).stdout.splitlines()
        )
        == 8
    )
    shown = cuvee(place, "runs", "audit", "mine-f", "--only", "alarm").stdout
    assert "8 decisions: 8 limited" in shown
    assert "planned has no decision of a guard" in cuvee(place, "runs", "audit", "planned").stdout


def test_audit_of_a_run_that_went_wrong(tmp_path: Path) -> None:
    """Refusals with brackets in their reasons, alarms, fallback and shadow mode, as rows and in
    the summary."""

    class Drifts:
        probes = ()

        def mixture(self, so_far: Trajectory) -> Mixture:
            if len(so_far) == 1:
                raise ValueError("no [web] in [bold]sight")
            return Mixture.normalise(so_far.names, [1000, 1, 1])

        def learn(self, so_far: Trajectory) -> dict[str, object]:
            if len(so_far) == 3:
                raise ValueError("no lesson")
            return {"reward": {"web": 1.0}} if len(so_far) == 4 else {"reward": 0.25}

        def state_dict(self) -> dict[str, object]:
            return {"learns": True}

        def load_state_dict(self, state: object) -> None: ...

    with Store.open(tmp_path / "s.db") as store:
        for name, shadow in (("acts", False), ("shadows", True)):
            run_id = store.create(name, 0, {"method": {"name": name}}, run_id=name)
            trainer, journal = (
                ToyTrainer(intervals=8),
                RunJournal(store, store.claim_run(run_id, "worker")),
            )
            run(
                trainer,
                Guard(Drifts(), Limits(alarms=AlarmSettings(patience=3), shadow=shadow)),
                journal,
            )
            journal.finish(trainer)
    shown = cuvee(tmp_path / "s.db", "runs", "audit", "acts").stdout
    assert "ValueError: no [web] in [bold]sight" in shown
    assert "not learned from: ValueError: no lesson" in shown
    assert "8 decisions: 4 accepted, 1 refused, 3 fallback" in shown
    assert "lessons refused: 2" in shown
    assert (
        "alarm collapse: first at step 4, 4 in all: web gets 0.9980 of the tokens; "
        "3 decisions in a row" in shown
    )
    assert sum("after collapse" in line for line in shown.splitlines()) == 3
    refused = cuvee(
        tmp_path / "s.db", "runs", "audit", "acts", "--only", "refused", "--json"
    ).stdout.splitlines()
    assert [json.loads(line)["step"] for line in refused] == [1, 2]
    shadowed = cuvee(tmp_path / "s.db", "runs", "audit", "shadows").stdout
    assert "8 decisions: 8 shadow" in shadowed
    assert "else accepted" in shadowed
    assert "else refused" in shadowed


def test_the_report_of_a_group(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "there" / "report.html"
    assert cuvee(place, "report", "--group", "mine", "-o", str(page)).stdout.strip() == str(page)
    assert "floored" in page.read_text()
    with pytest.raises(CuveeError, match="has recorded anything to report yet"):
        cuvee(place, "report", "planned", "-o", str(page))


def test_no_store_is_made_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(CuveeError, match="there is no store"):
        cuvee(tmp_path / "none.db", "runs", "list")
    assert not (tmp_path / "none.db").exists()


def test_a_password_is_never_printed() -> None:
    url = "postgresql://me:s3cret@db.example.com/runs?sslmode=disable"
    command = [
        sys.executable,
        "-c",
        "from cuvee.cli import main; main()",
        "runs",
        "list",
        "--store",
        url,
    ]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert failed.returncode == 2
    assert "error: " in failed.stderr
    assert "s3cret" not in failed.stdout + failed.stderr


def test_a_long_listing_has_the_cells_of_a_short_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [line.split() for line in cuvee(place, "runs", "list").stdout.splitlines()]
    monkeypatch.setattr("cuvee.cli.display.tables._LAID_OUT", 0)
    assert [line.split() for line in cuvee(place, "runs", "list").stdout.splitlines()] == short
    assert len(short) > 1
    monkeypatch.setattr("cuvee.cli.display.tables.PIPE_WIDTH", 60)
    assert "FLOPs" not in cuvee(place, "runs", "list").stdout


def test_a_narrow_terminal_gets_fewer_columns(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuvee.cli.display.console.PIPE_WIDTH", 60)
    for arguments in (["runs", "list"], ["runs", "show", "mine-odm-s0"]):
        lines = cuvee(place, *arguments).stdout.splitlines()
        assert max(map(len, lines)) <= 60
    header = cuvee(place, "runs", "list").stdout.splitlines()[0].split()
    assert "status" in header
    assert "FLOPs" not in header


def test_json_of_listing_and_run(place: Path) -> None:
    listed = json.loads(cuvee(place, "runs", "list", "--json").stdout)
    assert [one["id"] for one in listed] == ["mine-odm-s0", "mine-floored-s1", "planned"]
    assert listed[0]["status"] == "done"
    assert listed[0]["cost"]["tokens"] == 8000
    shown = json.loads(cuvee(place, "runs", "show", "mine-odm-s0", "--json").stdout)
    assert Trajectory.from_json(shown["trajectory"]) == trajectory(place, "mine-odm-s0")
    waiting = json.loads(cuvee(place, "runs", "show", "planned", "--json").stdout)
    assert waiting["trajectory"] is None
    assert "recorded nothing yet" in cuvee(place, "runs", "show", "planned").stdout


def test_a_group_is_found_by_the_name_that_the_user_gave(tmp_path: Path) -> None:
    place = tmp_path / "s.db"
    with Store.open(place) as store:
        for i, group in enumerate(("first-0a1b2c3d", "second-0a1b2c3d", "second-99999999")):
            store.create("natural", i, SMALL, group=group, run_id=f"run-{i}")
    table = [line.split() for line in cuvee(place, "runs", "list").stdout.splitlines()[1:]]
    assert [row[1] for row in table] == ["first", "second-0a1b2c3d", "second-99999999"]
    assert len(cuvee(place, "runs", "list", "--group", "first").stdout.splitlines()) == 2
    with pytest.raises(CuveeError, match="give one of second-0a1b2c3d, second-99999999"):
        cuvee(place, "runs", "list", "--group", "second")
    with pytest.raises(CuveeError, match=r"no group 'frist'.*; did you mean 'first'"):
        cuvee(place, "runs", "list", "--group", "frist")


def kept(store: Store, run_id: str, root: Path, status: str = "done") -> Path:
    """Plan a run whose checkpoints, model and policy are in a folder, and return the folder."""
    folder = root / run_id
    for name in ("checkpoints", "model", "policy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "data").write_bytes(b"x" * 500_000)
    store.create("natural", 0, SMALL, run_id=run_id)
    worker = worker_name() if status == "running" else "elsewhere/0/1/2"
    claim = store.claim_run(run_id, worker, lease_seconds=1e-6 if status == "dead" else 60.0)
    if status == "done":
        paths = {name: str(folder / name) for name in ("model", "policy")}
        claim.finish(Cost(), checkpoint=str(folder / "checkpoints"), **paths)
    else:
        with contextlib.suppress(StoreError):  # its lease may have expired
            claim.has_checkpoints(str(folder / "checkpoints"))
        if status == "dead":
            time.sleep(0.01)
    return folder


def test_rm_asks_and_frees_the_folders(tmp_path: Path) -> None:
    place = tmp_path / "s.db"
    with Store.open(place) as store:
        folder = kept(store, "gone", tmp_path / "runs")
        mine = folder / "notes.txt"
        mine.write_text("mine")
    refused = cuvee(place, "runs", "rm", "gone")  # the answer is empty
    assert refused.exit_code == 1
    assert "remove 1 run (1.5 MB)?" in refused.stdout
    assert (folder / "model").is_dir()
    assert cuvee(place, "runs", "rm", "go", "--yes").stdout == "removed 1 run; 1.5 MB freed\n"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert len(cuvee(place, "runs", "list").stdout.splitlines()) == 1


def test_a_live_run_is_never_removed_and_a_dead_one_is_shown(tmp_path: Path) -> None:
    place = tmp_path / "s.db"
    with Store.open(place) as store:
        live = kept(store, "live", tmp_path, "running")
        dead = kept(store, "dead-one", tmp_path, "dead")
        done = kept(store, "done-one", tmp_path)
    with pytest.raises(CuveeError, match=r"run live is being trained by .*: stop that process"):
        cuvee(place, "runs", "rm", "live", "done-one", "--yes")
    states = [line.split()[:2] for line in cuvee(place, "runs", "list").stdout.splitlines()[1:]]
    assert states == [["live", "running"], ["dead-one", "dead"], ["done-one", "done"]]
    assert len(cuvee(place, "runs", "list", "--status", "dead").stdout.splitlines()) == 2
    assert "removed 1 run;" in cuvee(place, "runs", "prune", "--yes").stdout
    assert (live.is_dir(), dead.is_dir(), done.is_dir()) == (True, False, True)
    pruned = cuvee(place, "runs", "prune", "--checkpoints", "--yes").stdout
    assert pruned == "removed the checkpoints of 1 run; 0.5 MB freed\n"
    assert sorted(path.name for path in done.iterdir()) == ["model", "policy"]
    assert cuvee(place, "runs", "prune", "--yes").stdout == "nothing to remove\n"


def test_a_suspended_process_keeps_its_run(tmp_path: Path) -> None:
    """Its lease expires, but it has not ended and may go on."""
    place = tmp_path / "s.db"
    with Store.open(place) as store:
        folder = kept(store, "suspended", tmp_path, "running")
        store.create("natural", 1, SMALL, run_id="other")
        store.claim_run("other", worker_name(), lease_seconds=1e-6)
        time.sleep(0.01)
        assert store.summary("other").dead
        with pytest.raises(StoreError, match="stop that process first"):
            store.remove("other")
    assert cuvee(place, "runs", "prune", "--yes").stdout == "nothing to remove\n"
    with pytest.raises(CuveeError, match="other is being trained by process"):
        cuvee(place, "runs", "rm", "other", "--yes")
    assert folder.is_dir()


def test_a_run_that_goes_on_before_the_answer_is_kept(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        folder = kept(store, "again", tmp_path, "dead")
        listed = unfinished(store.runs())
        store.claim_run("again", worker_name()).finish(Cost(), model=str(folder / "model"))
        with pytest.raises(StoreError, match="again was trained again since it was listed"):
            remove(store, listed)
        assert store.summary("again").status == "done"
    assert (folder / "model").is_dir()


def test_only_a_folder_with_the_name_of_the_run_is_removed(tmp_path: Path) -> None:
    """Whoever can write to a store could otherwise have any folder removed."""
    (tmp_path / "precious" / "model").mkdir(parents=True)
    with Store.open(tmp_path / "s.db") as store:
        store.create("natural", 0, SMALL, run_id="planted")
        paths = {"model": str(tmp_path / "precious" / "model")}
        store.claim_run("planted", "worker").finish(Cost(), **paths)
    removed = cuvee(tmp_path / "s.db", "runs", "rm", "planted", "--yes").stdout
    assert removed == "removed 1 run; 0.0 MB freed\n"
    assert (tmp_path / "precious" / "model").is_dir()


def test_a_folder_at_a_relative_path_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder of that name may be in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run-1" / "model").mkdir(parents=True)
    with Store.open(tmp_path / "s.db") as store:
        store.create("natural", 0, SMALL, run_id="run-1")
        store.claim_run("run-1", "worker").finish(Cost(), model="run-1/model")
    cuvee(tmp_path / "s.db", "runs", "rm", "run-1", "--yes")
    assert (tmp_path / "run-1" / "model").is_dir()


def test_rename_moves_the_run_and_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "s.db"
    with Store.open(place) as store:
        kept(store, "old", tmp_path)
        kept(store, "open", tmp_path, "dead")
    assert cuvee(place, "runs", "rename", "old", "new").stdout == "old is now new\n"
    with Store.open(place) as store:
        assert store.find("old") is None
        assert store.summary("new").model == str(tmp_path / "new" / "model")
    assert (tmp_path / "new" / "model" / "data").is_file()
    for wrong in ("..", "a/b", ""):
        with pytest.raises(CuveeError, match=r"run id .* is not allowed: use 1"):
            cuvee(place, "runs", "rename", "new", wrong)
    with pytest.raises(CuveeError, match="run open is running: only a finished run"):
        cuvee(place, "runs", "rename", "open", "shut")
    assert (tmp_path / "open").is_dir()

"""`cuvee runs` and `cuvee report` on a store with runs of a toy trainer, and what the command line looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cuvee.cli import app
from cuvee.core.errors import CuveeError
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard import Guard, Limits
from cuvee.testing.toy import ToyTrainer


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
        store.create("natural", 2, {"method": {"name": "natural", "label": "natural"}}, run_id="planned")
    return path


def cuvee(place: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--store", str(place)], catch_exceptions=False)


def trajectory(place: Path, run_id: str) -> Trajectory:
    with Store.open(place) as store:
        return store.trajectory(run_id)


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
    rows = [line.split() for line in shown.splitlines()[-9:]]
    assert [row[0] for row in rows] == [str(t) for t in range(9)]
    assert rows[8][1] == "8,000"
    assert (
        len(cuvee(place, "runs", "show", "mine-odm-s0", "--every", "4").stdout.splitlines())
        == len(shown.splitlines()) - 6
    )


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("nine", "no run 'nine'"), ("mine", "'mine' begins the ids of 2 runs: mine-odm-s0, mine-fl")],
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
        assert row["weight"] == (recorded.mixtures[row["interval"] - 1].weights_K[k] if row["interval"] else None)


def test_export_needs_a_format(place: Path, tmp_path: Path) -> None:
    with pytest.raises(CuveeError, match=r"end its name in \.json or \.parquet"):
        cuvee(place, "runs", "export", "-o", str(tmp_path / "all.csv"))


def test_audit_tells_what_the_guard_did(place: Path) -> None:
    lines = cuvee(place, "runs", "audit", "mine-f", "--format", "json").stdout.splitlines()
    decisions = [json.loads(line) for line in lines]
    assert len(decisions) == 8
    assert all(min(decision["executed"].values()) >= 0.3 - 1e-9 for decision in decisions)
    limited = [decision for decision in decisions if decision["guard"]["verdict"] == "limited"]
    assert len(limited) == 8
    assert all(decision["guard"]["proposed"] != decision["executed"] for decision in limited)
    table = cuvee(place, "runs", "audit", "mine-f", "--refused").stdout.splitlines()
    assert len(table) == 1 + len(limited)


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
    command = [sys.executable, "-c", "from cuvee.cli import main; main()", "runs", "list", "--store", url]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert failed.returncode == 2
    assert "error: " in failed.stderr
    assert "s3cret" not in failed.stdout + failed.stderr

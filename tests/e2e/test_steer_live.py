"""`cuvee steer` against a `cuvee train` that runs in another process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.cli.display.fleet import request_line
from cuvee.fleet.store.store import Store
from cuvee.policies.files import save_policy
from cuvee.policies.fixed import Fixed
from cuvee.recipes.progress.fleet_watch import FleetWatch
from stdlib_corpus import stdlib_corpus

SHARES = {"algorithms": 0.2, "mail": 0.2, "network": 0.6}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def cuvee(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.stdout.split())


def test_requests_reach_a_run_that_trains(tmp_path: Path) -> None:
    save_policy(tmp_path / "fixed", Fixed(SHARES))
    place = str(tmp_path / "runs.db")
    config = {
        "corpus": str(stdlib_corpus(tmp_path / "text").folder),
        "method": "random_walk",
        "trainer": "simulator",
        "train": {"steps": 100_000, "interval": 1},
        "store": place,
        "out": str(tmp_path / "runs"),
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "cuvee.cli", "train", "mine.yaml"]
    with Store.open(place) as store:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        try:
            until(lambda: any(run.intervals for run in store.listing().runs))
            run = store.listing().runs[0].id

            def steer(*arguments: str) -> int:
                """Ask, wait until the run has obeyed for two intervals, and return the first."""
                assert "it takes effect with the next interval" in cuvee(
                    "steer", run, *arguments, "--store", place
                )
                until(lambda: store.requests(run)[-1].interval is not None)
                first = store.requests(run)[-1].interval
                assert first is not None
                until(lambda: store.trajectory(run).weights_TK().shape[0] > first)
                return first

            froze = steer("--freeze")
            fixed = steer("--set", "mail=0.5")
            changed = steer("--policy", str(tmp_path / "fixed"))
            watched = [request_line(one) for one in FleetWatch(store, None).look().requests]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        assert [line.split(" (")[0] for line in watched] == [
            f"operator of {run}: freeze, from interval {froze:,} on",
            f"operator of {run}: set mail 0.5, from interval {fixed:,} on",
            f"operator of {run}: policy {tmp_path / 'fixed'}, from interval {changed:,} on",
        ]
        mixtures = store.trajectory(run).mixtures
        held = {mixture.digest() for mixture in mixtures[froze - 2 : fixed - 1]}
        assert len(held) == 1
        assert {round(mixture["mail"], 9) for mixture in mixtures[fixed - 1 : changed - 1]} == {0.5}
        assert mixtures[changed - 1].as_dict() == pytest.approx(SHARES)
        records = [metrics["guard"] for metrics in store.metrics(run)]
        assert {record["verdict"] for record in records[froze - 1 : changed - 1]} == {"operator"}
        asked = [record["operator"]["requests"] for record in records if record["operator"]]
        assert [entry["number"] for entries in asked for entry in entries] == [1, 2, 3]
    shares = "network 0.600 algorithms 0.200 mail 0.200"
    assert shares in cuvee("runs", "show", run, "--store", place)
    audit = cuvee("runs", "audit", run, "--only", "operator", "--store", place)
    assert "asked: freeze" in audit
    assert "asked: set mail 0.500" in audit

"""A fleet of toy proxies loses nothing when its processes are killed, fail or are interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.errors import TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.local import FleetError, LocalFleet
from cuvee.fleet.store.rows import Tally
from cuvee.fleet.store.store import Store
from cuvee.loop import explore, run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.testing.toy import ToyTrainer, make_nothing, make_toy

GROUP = "toys"


def policies(count: int) -> list[Fixed | Exp3]:
    """One of them learns, so that its state has to survive as well."""
    fixed = [
        Fixed(Mixture.of({"web": i / 16, "code": (15 - i) / 16, "maths": 1 / 16}))
        for i in range(count - 1)
    ]
    return [*fixed, Exp3()]


def expected(count: int, proxy: dict[str, Any]) -> list[Trajectory]:
    return [
        run(make_toy({**proxy, "pause": 0.0, "faults": {}}, 0), policy)
        for policy in policies(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield store


def test_a_fleet_does_what_a_loop_does_and_nothing_twice(store: Store) -> None:
    proxy, seen = {"intervals": 4}, list[Tally]()
    fleet = LocalFleet(store, make_toy, proxy, group=GROUP, workers=2, on_change=seen.append)
    assert [run.trajectory for run in fleet.run(policies(8))] == expected(8, proxy)
    again = LocalFleet(store, make_nothing, proxy, group=GROUP, workers=2).run(
        policies(8)
    )  # nothing is left to build
    assert [run.trajectory for run in again] == expected(8, proxy)
    assert [run.trajectory for run in fleet.load()] == expected(8, proxy)
    assert (seen[-1].done, seen[-1].attempts, seen[-1].open, seen[-1].progress) == (8, 8, 0, 8.0)
    assert seen[-1].cost.tokens == 8 * 4000


def test_one_run_that_goes_wrong_touches_no_other(store: Store) -> None:
    faults = {"kill": 2 / 16, "nan": 5 / 16}
    proxy = {"intervals": 4, "faults": faults}
    fleet = LocalFleet(store, make_toy, proxy, group=GROUP, workers=2, max_attempts=2)
    with pytest.raises(FleetError, match=r"2 of 8 runs of toys failed after 2 attempts"):
        fleet.run(policies(8))
    clean = expected(8, proxy)
    summaries = {run.id: run for run in store.runs(GROUP)}
    for policy, trajectory in zip(policies(8), clean, strict=True):
        summary = summaries[fleet.plan(policy)]
        if trajectory.mixtures[0]["web"] in faults.values():
            assert (summary.status, summary.attempts, summary.intervals) == ("failed", 2, 2)
            assert store.load(summary.id).trajectory.mixtures == trajectory.mixtures[:2]
        else:
            assert (summary.status, summary.attempts) == ("done", 1)
            assert store.load(summary.id).trajectory == trajectory
    reasons = " ".join(str(run.reason) for run in summaries.values())
    assert all(part in reasons for part in ("died", "SignalError"))
    with pytest.raises(FleetError):  # again: nothing is repeated, and it still is an error
        fleet.run(policies(8))
    assert store.tally(GROUP).attempts == 6 + 2 * 2


def test_some_runs_may_come_to_nothing_and_the_method_does_with_the_others(store: Store) -> None:
    class Wanting:
        """Asks for eight, and then for those of the first seven that are missing."""

        def propose(self, corpus: Any, logged: Any) -> list[Fixed | Exp3]:
            there = {run.trajectory.mixtures[0] for run in logged}
            return (
                [
                    policy
                    for policy in policies(8)[:7]
                    if policy.mixture(logged[0].trajectory) not in there
                ]
                if logged
                else policies(8)
            )

        def commit(self, corpus: Any, logged: Any) -> Fixed:
            raise NotImplementedError

    proxy = {"intervals": 4, "faults": {"nan": 5 / 16}}
    fleet = LocalFleet(
        store, make_toy, proxy, group=GROUP, workers=2, max_attempts=2, max_failed_ratio=0.125
    )
    logged = explore(Wanting(), ToyTrainer(), fleet)
    assert [run.trajectory for run in logged] == [
        t for t in expected(8, proxy) if t.mixtures[0]["web"] != 5 / 16
    ]
    assert (
        fleet.spent().tokens
        == sum(run.cost.tokens for run in store.runs(GROUP))
        > sum(run.cost.tokens for run in logged)
    )


def test_workers_that_cannot_start_are_told_of(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuvee.fleet.local.work", os._exit)
    with pytest.raises(TrainingError, match="ended before they took a run"):
        LocalFleet(store, make_toy, {}, group=GROUP).run(policies(2))


def test_a_trainer_that_cannot_be_built_fails_its_run(store: Store) -> None:
    with pytest.raises(FleetError, match="RuntimeError: planted"):
        LocalFleet(store, make_nothing, {}, group=GROUP, max_attempts=1).run(policies(1))


DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_fleet import GROUP, LocalFleet, Store, make_toy, policies

if __name__ == "__main__":
    folder, proxy = Path(sys.argv[2]), json.loads(sys.argv[3])
    with Store.open(folder / "store.sqlite") as store:
        LocalFleet(
            store,
            make_toy,
            proxy,
            group=GROUP,
            workers=2,
            checkpoints=folder / "checkpoints",
            every=3,
            max_attempts=100,
        ).run(policies(6))
"""
SLOW = {"intervals": 8, "pause": 0.03}


def driver(folder: Path) -> subprocess.Popen[str]:
    (folder / "driver.py").write_text(DRIVER)
    command = [
        sys.executable,
        str(folder / "driver.py"),
        str(Path(__file__).parent),
        str(folder),
        json.dumps(SLOW),
    ]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def wait_until(store: Store, intervals: int, process: subprocess.Popen[str]) -> None:
    """Until so many intervals of the group are recorded."""
    while process.poll() is None and sum(run.intervals for run in store.runs(GROUP)) < intervals:
        time.sleep(0.02)


def assert_whole(store: Store) -> None:
    assert [store.load(run.id).trajectory for run in store.runs(GROUP)] == expected(6, SLOW)
    assert {run.status for run in store.runs(GROUP)} == {"done"}
    check = store._database.read(
        lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
    )
    assert check == "ok"


@pytest.mark.parametrize("whom", ["group", "driver", "workers"])
def test_kill_9_loses_nothing(store: Store, tmp_path: Path, whom: str) -> None:
    process = driver(tmp_path)
    wait_until(store, 10, process)
    children = [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    recorded = {run.id: store.intervals(run.id) for run in store.runs(GROUP)}
    if whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif whom == "driver":
        process.kill()
    else:
        for child in children:
            os.kill(child, signal.SIGKILL)
    process.wait()
    for run_id, before in recorded.items():
        assert store.intervals(run_id)[: len(before)] == before
    process = driver(tmp_path)
    assert process.wait() == 0, process.stderr and process.stderr.read()
    assert_whole(store)


def test_an_interrupt_saves_everything_and_the_next_start_goes_on(
    store: Store, tmp_path: Path
) -> None:
    process = driver(tmp_path)
    wait_until(store, 10, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait() != 0
    assert process.stderr is not None
    assert "run the same command again to resume" in process.stderr.read()
    tally = store.tally(GROUP)
    assert (tally.running, tally.lost_attempts) == (0, 0)
    assert tally.waiting > 0
    process = driver(tmp_path)
    assert process.wait() == 0
    assert_whole(store)
    assert store.tally(GROUP).cost.tokens == 6 * 8 * 1000  # not one interval was trained twice

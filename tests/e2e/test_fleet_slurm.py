"""A fleet of submitit jobs: as local processes, and as arguments of Slurm's own commands."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.errors import ConfigError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Run
from cuvee.fleet.engine import FleetError
from cuvee.fleet.slurm import SlurmFleet
from cuvee.fleet.store.address import find_address
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.testing.toy import make_toy
from fleet_plugin import MODULE, plugin_policy

if os.environ.get("CI") != "true":
    pytest.importorskip("submitit")

PROXY = {"intervals": 6, "pause": 0.1}


def policies() -> list[Fixed | Exp3]:
    return [
        *(Fixed(Mixture.of({"web": i / 4, "code": (3 - i) / 4, "maths": 1 / 4})) for i in range(3)),
        Exp3(),
    ]


def kill_a_worker(store: Store) -> None:
    while not (busy := [run for run in store.runs("toys", "running") if run.intervals >= 2]):
        time.sleep(0.02)
    os.kill(int(str(busy[0].worker).split("/")[-2]), signal.SIGKILL)


@pytest.mark.training
def test_a_fleet_of_jobs_finishes_though_one_is_killed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        killer = threading.Thread(target=kill_a_worker, args=(store,), daemon=True)
        killer.start()
        fleet = SlurmFleet(
            store,
            make_toy,
            PROXY,
            folder=tmp_path / "jobs",
            cluster="local",
            minutes=5,
            group="toys",
            workers=2,
        )
        found = fleet.run(policies())
        killer.join()
        assert store.tally("toys").lost_attempts == 1
    assert [one.trajectory for one in found] == [
        run(make_toy({"intervals": 6}, 0), policy) for policy in policies()
    ]
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700


@pytest.mark.training
def test_jobs_import_the_plugins_of_the_configuration_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, proxy = plugin_policy(tmp_path, monkeypatch), {"intervals": 2}

    def run_with(plugins: tuple[str, ...], place: Path) -> list[Run]:
        place.mkdir()
        options: dict[str, Any] = {"cluster": "local", "minutes": 5, "max_attempts": 1}
        with Store.open(place / "store.sqlite") as store:
            fleet = SlurmFleet(
                store,
                make_toy,
                proxy,
                folder=place / "jobs",
                group="toys",
                plugins=plugins,
                **options,
            )
            return fleet.run([policy])

    (found,) = run_with((MODULE,), tmp_path / "with")
    assert found.trajectory == run(make_toy(proxy, 0), policy)
    with pytest.raises(FleetError, match="no policy 'of_a_plugin'"):
        run_with((), tmp_path / "without")


SBATCH = """#!/bin/sh
cp "$1" {folder}/submitted.sh
echo "$@" > {folder}/arguments
echo "Submitted batch job 12"
"""


def test_the_batch_script_and_options_given_to_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tmp_path / "a folder; touch hacked"
    commands.mkdir()
    for name in ("sbatch", "srun", "scancel", "sacct"):
        (commands / name).write_text(
            SBATCH.format(folder=shlex.quote(str(tmp_path))) if name == "sbatch" else "#!/bin/sh\n"
        )
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    store = Store(
        Database(find_address("postgresql://me:s3cret@localhost/runs"))
    )  # never asked anything here
    fleet = SlurmFleet(
        store,
        make_toy,
        PROXY,
        folder=commands / "jobs",
        partition="gpu",
        minutes=30,
        gpus=1,
        group="t; rm\n#SBATCH -x",
    )
    job = fleet._start(0)
    script = (tmp_path / "submitted.sh").read_text()
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for expected in (
        "--partition=gpu",
        "--time=30",
        "--gpus-per-node=1",
        "--cpus-per-task=1",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {expected}" in lines
    assert "#SBATCH --job-name=cuvee-t--rm--SBATCH--x" in lines
    assert shlex.quote(str(commands / "jobs")) in script
    assert "s3cret" not in script + (tmp_path / "arguments").read_text()
    assert not (tmp_path / "hacked").exists()
    assert job.alive()


def test_slurm_needs_a_server_and_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        with pytest.raises(StoreError, match="use a PostgreSQL store"):
            SlurmFleet(store, make_toy, PROXY, folder=tmp_path / "jobs", group="toys")
        fleet = SlurmFleet(
            store, make_toy, PROXY, folder=tmp_path / "jobs", cluster="local", group="toys"
        )
    fleet._cluster = "slurm"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no Slurm here"):
        fleet._start(0)

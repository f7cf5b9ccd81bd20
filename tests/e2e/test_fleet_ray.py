"""A fleet on a Ray cluster of two local nodes. One node is killed while it works."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.errors import ConfigError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.registry import POLICIES, import_plugins
from cuvee.fleet.ray import RayFleet
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.testing.toy import make_toy
from fleet_plugin import MODULE, plugin_policy

pytestmark = pytest.mark.training

if os.environ.get("CI") != "true":
    pytest.importorskip("ray")

PROXY = {"intervals": 10, "pause": 0.15}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass
class Cluster:
    address: str
    raylets: set[int]
    """The process that is a node, for each node."""

    def node_without_driver(self) -> int:
        """The raylet of the node to which this process is not connected: Ray ends a driver whose
        own node dies."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        (socket,) = (node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == own)
        (other,) = (pid for pid in self.raylets if socket not in raylet_sockets(pid))
        return other


def processes(folder: Path) -> set[int]:
    """Those that were started with a path below `folder`."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes()
        except OSError:
            continue
        if str(folder).encode() + b"/" in arguments and int(entry.parent.name) != os.getpid():
            found.add(int(entry.parent.name))
    return found


def raylets(folder: Path) -> set[int]:
    return {
        pid
        for pid in processes(folder)
        if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"
    }


def raylet_sockets(pid: int) -> list[str]:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    key = "--raylet_socket_name="
    return [text.removeprefix(key) for text in arguments if text.startswith(key)]


def ray_start(*arguments: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--num-cpus", "1"]
    done = subprocess.run(
        [*command, "--object-store-memory", "80000000", "--disable-usage-stats"],
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    folder = Path(
        f"/tmp/cuvee-{secrets.token_hex(3)}"
    )  # short: the path of a Unix socket has 107 characters at most
    port = 20000 + secrets.randbelow(10000)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    try:
        ray_start(
            "--head", "--port", str(port), "--include-dashboard=false", "--temp-dir", str(folder)
        )
        ray_start("--address", f"127.0.0.1:{port}")
        yield Cluster(f"127.0.0.1:{port}", raylets(folder))
    finally:
        while left := processes(folder):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)


def policies() -> list[Fixed | Exp3]:
    return [
        *(Fixed(Mixture.of({"web": i / 8, "code": (7 - i) / 8, "maths": 1 / 8})) for i in range(5)),
        Exp3(),
    ]


def node_of(worker: str | None) -> int:
    """The raylet that started the worker, whose parent it is."""
    assert worker
    return int(
        Path(f"/proc/{worker.split('/')[-2]}/stat").read_text().rpartition(")")[2].split()[1]
    )


def kill_a_node(store: Store, cluster: Cluster, seen: set[int], killed: threading.Event) -> None:
    """When both nodes are in the midst of a run."""
    while not killed.is_set():
        busy = [run for run in store.runs("toys", "running") if run.intervals >= 3]
        try:
            seen |= {node_of(run.worker) for run in busy}
        except OSError:  # it has just ended
            continue
        if seen == cluster.raylets and len(busy) == 2:
            os.kill(cluster.node_without_driver(), signal.SIGKILL)
            killed.set()
        time.sleep(0.02)


def in_own_process(driver: Callable[..., None], *arguments: object) -> None:
    """Run a Ray driver in a process of its own. Ray ends a driver that loses its cluster, and one
    process should connect to one cluster only: the test process must survive both."""
    process = multiprocessing.get_context("spawn").Process(target=driver, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, f"the driver ended with exit code {process.exitcode}"


def finish_though_a_node_is_killed(cluster: Cluster, folder: Path) -> None:
    options: dict[str, Any] = {
        "group": "toys",
        "workers": 2,
        "every": 2,
        "checkpoints": folder / "checkpoints",
    }
    seen, killed = set[int](), threading.Event()
    with Store.open(folder / "store.sqlite") as store:
        fleet = RayFleet(
            store, make_toy, PROXY, address=cluster.address, lease_seconds=5.0, **options
        )
        killer = threading.Thread(
            target=kill_a_node, args=(store, cluster, seen, killed), daemon=True
        )
        killer.start()
        try:
            found = fleet.run(policies())
            assert killed.is_set()
        finally:
            killed.set()
            killer.join()
        assert seen == cluster.raylets, "both nodes worked"
        assert store.tally("toys").lost_attempts == 1
    clean = [run(make_toy({"intervals": 10}, 0), policy) for policy in policies()]
    assert [one.trajectory for one in found] == clean


def test_a_fleet_finishes_though_one_of_its_two_nodes_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    in_own_process(finish_though_a_node_is_killed, cluster, tmp_path)


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plugin_policy(tmp_path, monkeypatch)
    return tmp_path


def train_a_policy_of_a_plugin(cluster: Cluster, folder: Path) -> None:
    import_plugins([MODULE])
    policy: Policy = POLICIES.get("of_a_plugin")({"web": 0.5, "code": 0.5})
    with Store.open(folder / "store.sqlite") as store:
        fleet = RayFleet(
            store,
            make_toy,
            {"intervals": 2},
            address=cluster.address,
            group="toys",
            plugins=(MODULE,),
        )
        (found,) = fleet.run([policy])
    assert found.trajectory == run(make_toy({"intervals": 2}, 0), policy)


def test_tasks_import_the_plugins_of_the_configuration(
    plugin_folder: Path, cluster: Cluster
) -> None:
    """The cluster starts after the plugin is on the path, as on the nodes of a real cluster."""
    in_own_process(train_a_policy_of_a_plugin, cluster, plugin_folder)


def test_no_cluster_is_said_so(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        fleet = RayFleet(store, make_toy, PROXY, address="127.0.0.1:1", group="toys")
        fleet.plan(Exp3())
        with pytest.raises(ConfigError, match=r"there is no Ray cluster at '127\.0\.0\.1:1'"):
            fleet.work_off()


def test_several_hosts_need_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    nodes = [{"NodeManagerAddress": f"10.0.0.{i}", "Alive": True} for i in (1, 2)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    with Store.open(tmp_path / "store.sqlite") as store:
        fleet = RayFleet(store, make_toy, PROXY, group="toys")
        with pytest.raises(
            StoreError, match=r"hosts 10.0.0.1, 10.0.0.2, .* use a PostgreSQL store"
        ):
            fleet._start(0)

"""A fleet and its store lose nothing: kills, lost answers, restarts, stale workers, failures.

    python benchmarks/fleet_faults.py [--full] [--only NAME …]

Every check runs on cuvee as it is and again with a planted fault, which the check must report. The
last line is one JSON object. Numbers in brackets are reliability tests: 9 kill -9, 10 power loss
(the order of fsync and acknowledgement in a system-call trace), 11 many writers, 12 lost answers,
13 stale workers, 14 a run that dies, 15 failing runs and repetition.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fleet_parts import FAILPOINTS, GROUP, LAST, policies
from store_faults import duplicates, lost_answers, power_loss, writers

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.store import schema
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.testing.postgres import find_binaries, postgres_server
from cuvee.testing.toy import ToyTrainer

HERE = Path(__file__).parent
PROXY = {"intervals": LAST, "pause": 0.01}


class Fleet:
    """A small fleet in a folder. Its driver is a process that is killed and started again."""

    def __init__(self, folder: Path, runs: int, planted: str | None, **orders: Any) -> None:
        self.folder, self.runs = folder, runs
        self.orders = {"proxy": PROXY, "workers": 2, "max_attempts": 1000, "lease": 60.0, **orders}
        self.orders |= {
            "runs": runs,
            "planted": planted,
            "acks": str(folder / "acks"),
            "failpoint": None,
            "fuse": "",
        }
        self.store = Store.open(folder / "store.sqlite")

    def start(self, failpoint: str | None = None, number: int = 0) -> subprocess.Popen[bytes]:
        orders = self.orders | {"failpoint": failpoint, "fuse": str(self.folder / f"fuse-{number}")}
        command = [
            sys.executable,
            str(HERE / "fleet_parts.py"),
            str(self.folder),
            json.dumps(orders),
        ]
        with open(self.folder / "output", "ab") as output:
            return subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)

    def faults(self) -> Counter[str]:
        """What is wrong with the store, given that every run should be done."""
        clean = [
            run(ToyTrainer(**{**self.orders["proxy"], "pause": 0.0}), policy)
            for policy in policies(self.runs)
        ]
        by_first = {trajectory.mixtures[0].digest(): trajectory for trajectory in clean}
        found: Counter[str] = Counter()
        kept: dict[str, int] = {}
        for summary in self.store.runs(GROUP):
            found["unfinished"] += summary.status != "done"
            try:
                trajectory = self.store.trajectory(summary.id)
            except StoreError:
                found["torn"] += summary.intervals > 0
                continue
            if not len(trajectory):
                continue
            wanted = by_first[trajectory.mixtures[0].digest()]
            found["torn"] += trajectory != Trajectory(
                wanted.signals[: len(trajectory) + 1], wanted.mixtures[: len(trajectory)]
            )
            found["torn"] += summary.status == "done" and len(trajectory) != len(wanted)
            kept[trajectory.mixtures[0].digest()] = len(trajectory)
        found["lost"] = sum(
            kept.get(mixture, 0) < row
            for mixture, row in self._acked().items()
            if mixture in by_first
        )
        found["duplicated"] = self._scalar(duplicates())
        found["integrity"] = self._scalar(sa.text("PRAGMA integrity_check")) != "ok"
        late = (schema.attempts.c.ended.is_not(None)) & (
            schema.attempts.c.heartbeat > schema.attempts.c.ended
        )
        found["late writes"] = self._scalar(sa.select(sa.func.count()).where(late))
        ends = sa.select(schema.attempts.c.run_id).where(schema.attempts.c.outcome == "done")
        twice = ends.group_by(schema.attempts.c.run_id).having(sa.func.count() > 1).subquery()
        found["late writes"] += self._scalar(sa.select(sa.func.count()).select_from(twice))
        return +found

    def lost_now(self) -> int:
        """Acknowledged rows that are not there at this moment."""
        rows = sa.select(
            schema.intervals.c.run_id, schema.intervals.c.number, schema.intervals.c.mixture
        )
        found = self.store._database.read(lambda connection: connection.execute(rows).all())
        first = {row.run_id: json.dumps(row.mixture) for row in found if row.number == 1}
        last = Counter[str]()
        for row in found:
            last[first.get(row.run_id, "")] = max(last[first.get(row.run_id, "")], row.number)
        known = {
            policy_digest: json.dumps(mixture)
            for policy_digest, mixture in _first_mixtures(self.runs).items()
        }
        return sum(
            last[known[mixture]] < row for mixture, row in self._acked().items() if mixture in known
        )

    def _acked(self) -> dict[str, int]:
        """The last acknowledged row of each run, by the digest of its mixture."""
        last: dict[str, int] = {}
        path = self.folder / "acks"
        for line in path.read_text().splitlines() if path.exists() else ():
            mixture, row = line.split()
            last[mixture] = max(last.get(mixture, 0), int(row))
        return last

    def _scalar(self, query: Any) -> Any:
        return self.store._database.read(lambda connection: connection.execute(query).scalar_one())


def _first_mixtures(runs: int) -> dict[str, Any]:
    """Of the policies that never change, so that one digest names the run."""
    start = Trajectory.start(ToyTrainer(1).start(()))
    mixtures = [policy.mixture(start) for policy in policies(runs)[:-1]]
    return {mixture.digest(): mixture.to_json() for mixture in mixtures}


@contextlib.contextmanager
def _fleet(runs: int, planted: str | None, **orders: Any) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory() as name:
        fleet = Fleet(Path(name), runs, planted, **orders)
        try:
            yield fleet
        finally:
            fleet.store.close()


def kills(full: bool, planted: str | None = None) -> Counter[str]:
    """[9] SIGKILL to a worker at each failpoint, and to worker, driver or all of them at random."""
    generator, found = random.Random(0), Counter[str]()
    repeats, at_random = (5, 1000) if full else (1, 12)
    plan: list[str | None] = [*(list(FAILPOINTS) * repeats), *[None] * at_random]
    if planted:
        plan = ["before the last row" if planted.startswith("end") else "before a row"] * 4
    proxy = PROXY | {"intervals": 400 if full else LAST}
    while plan:  # a fleet is killed until its runs are done, then the next one is
        with _fleet(8, planted, proxy=proxy) as fleet:
            for number, failpoint in enumerate(list(plan)):
                process, fuse = fleet.start(failpoint, number), fleet.folder / f"fuse-{number}"
                until = time.monotonic() + (30 if failpoint else generator.uniform(0.3, 3.0))
                while process.poll() is None and time.monotonic() < until and not fuse.exists():
                    time.sleep(0.005)
                ended = process.poll() is not None and not fuse.exists()
                _kill(process, generator.choice(["everything", "driver", "worker"]))
                found["lost"] += fleet.lost_now()
                if ended:
                    break
                found["kills"] += 1
                plan.pop(0)
            fleet.start().wait()
            found += fleet.faults()
            found["fleets"] += 1
    return found


def _kill(process: subprocess.Popen[bytes], whom: str) -> None:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if whom == "worker" and children:
            os.kill(int(children[-1]), signal.SIGKILL)
            time.sleep(0.1)
        if whom == "driver":
            process.kill()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)  # a start ends before the next begins
    process.wait()


def zombies(full: bool, planted: str | None = None) -> Counter[str]:
    """[13] A worker is stopped for longer than its lease, loses its run, and wakes up."""
    found = Counter[str]()
    wanted = 200 if full else 3
    proxy = PROXY | {"intervals": 100 if full else 10, "pause": 0.1}
    while found["zombies"] < wanted:  # a fleet of 10 runs ends before 200 workers were stopped
        with _fleet(10, planted, lease=1.0, proxy=proxy) as fleet:
            process = fleet.start()
            while process.poll() is None and found["zombies"] < wanted:
                found["zombies"] += _stop_a_worker(process, fleet)
            process.wait()
            found += fleet.faults()
            found["wrongly failed"] += sum(
                summary.status == "failed" for summary in fleet.store.runs(GROUP)
            )
            found["taken over"] += fleet.store.tally(GROUP).lost_attempts
    return +found


def _stop_a_worker(process: subprocess.Popen[bytes], fleet: Fleet) -> bool:
    """Stops a worker that holds a run for 2.5 leases. False if none holds one now."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    held = [summary for summary in fleet.store.runs(GROUP, "running") if summary.intervals]
    pids = [str(summary.worker).split("/")[-2] for summary in held if summary.worker]
    victim = next((int(pid) for pid in pids if pid in children), None)
    if victim is None:
        time.sleep(0.02)
        return False
    os.kill(victim, signal.SIGSTOP)
    time.sleep(2.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGCONT)
    time.sleep(0.3)
    return True


def poison(full: bool, planted: str | None = None) -> Counter[str]:
    """[14, 15] Runs that are killed, exhaust memory or give NaN fail alone after k attempts.

    All other runs are unaffected.
    """
    k, runs = 3, 60 if full else 12
    bad = {"kill": 1 / 64, "memory": 4 / 64, "nan": 7 / 64}
    found = Counter[str]()
    with _fleet(runs, planted, max_attempts=k, proxy=PROXY | {"faults": bad}) as fleet:
        codes = [fleet.start().wait() for _ in range(2)]
        found["silent ends"] = codes.count(0)
        clean = {
            trajectory.mixtures[0].digest(): trajectory
            for trajectory in (run(ToyTrainer(LAST), policy) for policy in policies(runs))
        }
        for summary in fleet.store.runs(GROUP):
            trajectory = fleet.store.trajectory(summary.id)
            is_bad = (
                trajectory.mixtures[0]["web"] in bad.values()
                and trajectory.mixtures[0]["code"] != trajectory.mixtures[0]["web"]
            )
            found["poison"] += is_bad
            found["wrong attempts"] += summary.attempts != (k if is_bad else 1)
            found["wrong status"] += summary.status != ("failed" if is_bad else "done")
            found["without a reason"] += is_bad and not summary.reason
            found["torn"] += not is_bad and trajectory != clean[trajectory.mixtures[0].digest()]
        return +found


BAD = ("lost", "duplicated", "torn", "unfinished", "late writes", "integrity", "errors",
        "wrong attempts", "wrong status", "wrongly failed", "without a reason", "silent ends",
        "claims forgotten")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="nightly sizes: hours")
    parser.add_argument(
        "--only", nargs="*", help="some of: kills power_loss writers lost_answers zombies poison"
    )
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres_server()) if find_binaries() else None
        checks: list[tuple[str, Any, list[str]]] = [
            (
                "kills",
                kills,
                ["acknowledged before the commit", "end recorded before the last row"],
            ),
            ("power_loss", power_loss, ["synchronous = OFF"]),
            ("writers", writers, ["deferred BEGIN"]),
            ("zombies", zombies, ["no fencing token"]),
            (
                "poison",
                poison,
                ["a killed run counts as done", "a restart repeats finished runs"],
            ),
        ]
        if server:
            checks += [
                (
                    "writers_postgres",
                    lambda full, planted=None: writers(full, planted, server),
                    ["no reconnect"],
                ),
                (
                    "lost_answers",
                    lambda full, planted=None: lost_answers(full, server, planted),
                    ["no idempotency key"],
                ),
            ]
        results: dict[str, Any] = {}
        caught: dict[str, bool] = {}
        for name, check, plants in checks:
            if options.only and name not in options.only:
                continue
            results[name] = dict(check(options.full))
            print(name, results[name], flush=True)
            for fault in plants:
                found = dict(check(False, fault))
                caught[fault] = any(found.get(figure) for figure in BAD)
                print(
                    f"  planted: {fault}:",
                    "caught" if caught[fault] else "MISSED",
                    found,
                    flush=True,
                )

    def total(figure: str) -> int:
        return sum(int(result.get(figure, 0)) for result in results.values())

    print(
        json.dumps(
            {
                "rows_lost": total("lost"),
                "rows_duplicated": total("duplicated"),
                "rows_torn": total("torn"),
                "tasks_unfinished": total("unfinished"),
                "other_faults": sum(total(figure) for figure in BAD[4:]),
                "kills": total("kills"),
                "server_restarts": total("restarts"),
                "answers_lost_on_the_way": total("lost answers"),
                "zombies": total("zombies"),
                "planted_faults": len(caught),
                "planted_faults_caught": sum(caught.values()),
                "checks": results,
            }
        )
    )


if __name__ == "__main__":
    main()

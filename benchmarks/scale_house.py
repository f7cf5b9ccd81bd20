"""What stays quick at scale: listing, finding and reporting runs, the guard, and the command line.

    python benchmarks/scale_house.py            the sizes of the table
    python benchmarks/scale_house.py --fast     a tenth of the runs

Each figure is the least CPU time (user + system) of the repetitions, in seconds, because the
machine may be busy; the wall time of the same repetition stands beside it. Commands find their
modules compiled, as installed ones do. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.store.store import Store
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.testing.runs import example_run

CLI = [sys.executable, "-m", "cuvee.cli"]


def command(*arguments: str, repeat: int = 3) -> dict[str, float]:
    """Least CPU time of a command, and the wall time of that repetition."""
    compiled = Path(tempfile.gettempdir()) / f"cuvee-compiled-{os.getuid()}"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def once() -> None:
        subprocess.run([*CLI, *arguments], capture_output=True, check=False, env=environment)

    return least(once, resource.RUSAGE_CHILDREN, repeat)


def least(work: Callable[[], Any], who: int, repeat: int) -> dict[str, float]:
    figures = []
    for _ in range(repeat):
        before = resource.getrusage(who)
        begun = time.perf_counter()
        work()
        wall = time.perf_counter() - begun
        after = resource.getrusage(who)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        figures.append((round(cpu, 4), round(wall, 4)))
    cpu, wall = min(figures)
    return {"cpu_s": cpu, "wall_s": wall}


def listing(folder: Path, runs: int) -> dict[str, Any]:
    """`runs list` and the finding of one run by its key, among many planned and finished runs."""
    place = folder / "many.db"
    config = {"method": {"name": "odm", "label": "odm"}, "train": {"steps": 1000, "batch_size": 8}}
    with Store.open(place) as store:
        for seed in range(0, runs):
            store.create("odm", seed, config, group="g", run_id=f"train-odm-s{seed}-{seed:08x}")
        key = f"train-odm-s{runs // 2}-{runs // 2:08x}"
        found = least(lambda: store.find(key), resource.RUSAGE_SELF, 9)
    return {"runs_list": command("runs", "list", "--store", str(place)), "find_one": found}


def report(folder: Path, runs: int, domains: int, intervals: int) -> dict[str, Any]:
    """`report` of many runs."""
    place = folder / "wide.db"
    page = folder / "page.html"
    made = [Domain(f"domain-{k}", 400_000 // (k + 1)) for k in range(domains - 2)]
    made += [Domain(f"target-{k}", 100_000, role="target") for k in range(2)]
    methods = ("natural", "odm", "doremi", "regmix", "ado")
    with Store.open(place) as store:
        for i in range(runs):
            method = methods[i % len(methods)]
            run = example_run(method, i // len(methods), domains=made, intervals=intervals)
            store.add(method, run, group="wide")
    options = ("--store", str(place), "-o", str(page))
    figures = command("report", *options, repeat=2)
    return {"report": {**figures, "megabytes": round(page.stat().st_size / 1e6, 2)}}


def guard(intervals: int) -> dict[str, Any]:
    """CPU time of a decision of the guard, early and late in a long run."""
    run = example_run("odm", intervals=50)
    names = run.trajectory.names
    guarded = Guard(Fixed(Mixture.uniform(names)), Limits(floor=0.01))
    signals = run.trajectory.signals
    so_far = Trajectory.start(signals[0])
    spent: list[float] = []
    for t in range(intervals):
        begun = time.process_time()
        mixture = guarded.mixture(so_far)
        between = time.process_time()
        so_far = so_far.append(mixture, signals[1 + t % 50])
        after = time.process_time()
        guarded.learn(so_far)
        spent.append(between - begun + time.process_time() - after)
    width = intervals // 20
    early, late = (float(np.median(part)) for part in (spent[width : 2 * width], spent[-width:]))
    return {
        "guard": {
            "early_us": round(1e6 * early, 1),
            "late_us": round(1e6 * late, 1),
            "growth": round(late / early, 2),
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true")
    by = 10 if parser.parse_args().fast else 1
    figures: dict[str, Any] = {
        "help": command("--help", repeat=5),
        "missing_file": command("train", "nowhere.yaml", repeat=5),
    }
    figures |= guard(20_000 // by)
    print(json.dumps(figures))
    with tempfile.TemporaryDirectory() as name:
        figures |= listing(Path(name), 10_000 // by)
        print(json.dumps(figures))
        figures |= report(Path(name), 200 // by, 52, 50)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

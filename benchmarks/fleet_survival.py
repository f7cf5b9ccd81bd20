"""A fleet of real proxies on a real corpus, killed as a whole again and again, and finished.

    python benchmarks/fleet_survival.py --corpus DIR [--proxies 64] [--kills 20] [--steps 60]
                                        [--check 4]

Driver and workers are killed together (SIGKILL to the process group) at random, `--kills` times,
and started again. In the end every run must be done, and every row that was ever seen in the store
must still be there, unchanged. `--check` of the runs are trained again without interruption and
must have the same numbers. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from fleet import make_trainer, policies

from cuvee.fleet.local import LocalFleet
from cuvee.fleet.store.store import Store
from cuvee.loop import run

GROUP = "survival"


def drive(folder: Path, proxy: dict[str, Any], proxies: int) -> None:
    with Store.open(folder / "store.sqlite") as store:
        LocalFleet(
            store,
            make_trainer,
            proxy,
            group=GROUP,
            workers=os.cpu_count() or 1,
            checkpoints=folder / "checkpoints",
            every=2,
            max_attempts=1000,
        ).run(policies(proxy["corpus"], proxies))


def digests(store: Store) -> dict[tuple[str, int], str]:
    return {
        (summary.id, interval.number): interval.row()["digest"][
            :32
        ]  # without metrics, which have times
        for summary in store.runs(GROUP)
        for interval in store.intervals(summary.id)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", default="llama-0.1m")
    parser.add_argument("--proxies", type=int, default=64)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--check", type=int, default=4)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    train = {
        "steps": options.steps,
        "batch_size": 16,
        "sequence_length": 128,
        "validation_tokens": 1024,
        "validate_every": 3,
    }
    proxy = {"corpus": str(Path(options.corpus).absolute()), "model": options.model, "train": train}
    if options.drive:
        drive(Path(options.drive), proxy, options.proxies)
        return
    generator, seen, lost, kills, began = (
        random.Random(0),
        dict[tuple[str, int], str](),
        0,
        0,
        time.time(),
    )
    with tempfile.TemporaryDirectory() as name, Store.open(f"{name}/store.sqlite") as store:
        command = [sys.executable, __file__, *sys.argv[1:], "--drive", name]
        while True:
            process, rows = subprocess.Popen(command, start_new_session=True), store_rows(store)
            target = rows + generator.randint(
                1, max(2, options.proxies * (options.steps // 10) // (options.kills + 1))
            )
            while process.poll() is None and (kills == options.kills or store_rows(store) < target):
                time.sleep(0.05)
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            now = digests(store)
            lost += sum(now.get(key) != digest for key, digest in seen.items())
            seen = now
        runs = store.runs(GROUP)
        final = digests(store)
        lost += sum(final.get(key) != digest for key, digest in seen.items())
        torch.set_num_threads(1)
        steers = dict(
            zip(
                [summary.id for summary in runs],
                policies(proxy["corpus"], options.proxies),
                strict=True,
            )
        )
        checked = generator.sample(sorted(steers), min(options.check, len(steers)))
        different = sum(
            store.trajectory(one) != run(make_trainer(proxy, 0), steers[one]) for one in checked
        )
        tally = store.tally(GROUP)
    print(
        json.dumps(
            {
                "proxies": len(runs),
                "done": tally.done,
                "kills": kills,
                "rows": len(final),
                "rows_lost_or_changed": lost,
                "attempts": tally.attempts,
                "attempts_lost": tally.lost_attempts,
                "tokens_spent": tally.cost.tokens,
                "tokens_needed": options.proxies
                * options.steps
                * train["batch_size"]
                * train["sequence_length"],
                "checked_against_unbroken": len(checked),
                "different": different,
                "exit_code": process.returncode,
                "seconds": round(time.time() - began),
            }
        )
    )


def store_rows(store: Store) -> int:
    return sum(summary.intervals for summary in store.runs(GROUP))


if __name__ == "__main__":
    main()

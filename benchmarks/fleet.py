"""How fast a fleet of tiny proxies completes its runs on this machine, and its overhead.

    python benchmarks/fleet.py --corpus DIR [--runs 8] [--steps 300] [--model llama-0.1m]
                               [--workers 2]

`--corpus` is the output of `cuvee corpus build`. Rates are measured from the start of the first run
to the end of the last, by the store's clock, without the start of the processes (`startup_s`, once
per fleet). The sequential loop is a script without a fleet: one process, one proxy after the other,
torch's default number of threads, nothing stored. `overhead_share` is the share of the runs' time
in which the trainer neither trained nor measured: building the model, rows, heartbeats,
checkpoints. Proxies train one by one. `vectorised_gain` is what eight in one program would gain on
one thread, and `vectorised_ceiling` the upper bound (`benchmarks/vectorised.py` has more sizes and
the reasons). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from vectorised import measure

from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Cost
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.fleet.local import LocalFleet
from cuvee.fleet.store import schema
from cuvee.fleet.store.store import Store
from cuvee.policies.fixed import Fixed
from cuvee.testing.postgres import find_binaries, postgres_server
from cuvee.testing.store import example_interval
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer


def make_trainer(proxy: Mapping[str, Any], seed: int) -> LMTrainer:
    corpus, settings = Corpus.open(proxy["corpus"]), TrainerSettings(**proxy["train"], seed=seed)
    stream = MixtureStream(
        corpus,
        Mixture.uniform(corpus.names),
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        seed=seed,
    )
    return LMTrainer(build_model(proxy["model"], corpus, seed=seed), stream, corpus, settings)


def policies(corpus: str, count: int) -> list[Fixed]:
    names, generator = Corpus.open(corpus).names, np.random.default_rng(0)
    return [
        Fixed(Mixture.normalise(names, generator.dirichlet(np.ones(len(names)))))
        for _ in range(count)
    ]


def fleet(proxy: Mapping[str, Any], runs: int, workers: int, folder: Path) -> dict[str, float]:
    began = time.time()
    with Store.open(folder / f"store-{workers}.sqlite") as store:
        LocalFleet(
            store,
            make_trainer,
            proxy,
            group="speed",
            workers=workers,
            checkpoints=folder / f"{workers}",
            every=5,
        ).run(policies(proxy["corpus"], runs))
        times = sa.select(
            schema.attempts.c.started, schema.attempts.c.ended, schema.attempts.c.seconds
        )
        rows = store._database.read(lambda connection: connection.execute(times).all())
    first, last = min(row.started for row in rows), max(row.ended for row in rows)
    busy, trained = sum(row.ended - row.started for row in rows), sum(row.seconds for row in rows)
    return {"seconds": last - first, "startup": first - began, "overhead": 1.0 - trained / busy}


def sequential(proxy: Mapping[str, Any], runs: int) -> float:
    """Seconds of the plain loop, in a fresh process."""
    code = (
        "import json, sys, time\n"
        "from fleet import make_trainer, policies\n"
        "from cuvee.loop import run\n"
        "proxy, runs = json.loads(sys.argv[1]), int(sys.argv[2])\n"
        "steers = policies(proxy['corpus'], runs)\n"
        "make_trainer(proxy, 0); began = time.perf_counter()\n"
        "for policy in steers: run(make_trainer(proxy, 0), policy)\n"
        "print(time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", code, json.dumps(proxy), str(runs)]
    told = subprocess.run(
        command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return float(told.split()[-1])


def rows_per_second(url: str, rows: int = 300) -> float:
    with Store.open(url) as store:
        claim = store.claim_run(store.create("rows", 0, {}), "writer")
        intervals = [example_interval(number) for number in range(rows)]
        began = time.perf_counter()
        for number, (mixture, signals) in enumerate(intervals):
            claim.append(number, mixture, signals, {}, Cost(number))
        return rows / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default="llama-0.1m")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    train: dict[str, int] = {
        "steps": options.steps,
        "batch_size": 16,
        "sequence_length": 128,
        "validate_every": 5,
        "validation_tokens": 2048,
    }
    proxy = {"corpus": str(Path(options.corpus).absolute()), "model": options.model, "train": train}
    with tempfile.TemporaryDirectory() as name:
        many = fleet(proxy, options.runs, options.workers, Path(name))
        one = fleet(proxy, options.runs, 1, Path(name))
        alone = sequential(proxy, options.runs)
        vectorised = measure(
            Corpus.open(options.corpus),
            options.model,
            train["batch_size"],
            train["sequence_length"],
            8,
        )
        sqlite = rows_per_second(f"{name}/rows.sqlite")
    postgres = None
    if find_binaries():
        with postgres_server() as server:
            postgres = rows_per_second(server.url)
    print(
        json.dumps(
            {
                "proxies_per_core_hour": round(
                    3600 * options.runs / many["seconds"] / options.workers, 1
                ),
                "vs_sequential_loop": round(alone / many["seconds"], 3),
                f"scaling_{options.workers}_workers": round(one["seconds"] / many["seconds"], 3),
                "vectorised_gain": vectorised["gain"],
                "vectorised_ceiling": vectorised["bound"],
                "store_rows_per_s_sqlite": round(sqlite),
                "store_rows_per_s_postgres": postgres and round(postgres),
                "overhead_share": round(one["overhead"], 4),
                "overhead_share_all_workers": round(many["overhead"], 4),
                "startup_s": round(many["startup"], 2),
                "runs": options.runs,
                "steps": options.steps,
                "model": options.model,
                "workers": options.workers,
            }
        )
    )


if __name__ == "__main__":
    main()

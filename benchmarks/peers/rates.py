"""Rows per second of other loaders on K equal domains of random rows in memory.

Run it in the environment of the peers:

    PEERS/bin/python benchmarks/peers/rates.py --length 64 --domains 4 --seconds 5

Each loader yields rows of `length` tokens, with domains drawn by weight, in one process and in its
default way. The last line is one JSON object: rows per second by peer. `dynamic` lists those whose
weights may change during a run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)
Rows = list[Any]


def domains_of(number: int, length: int) -> Rows:
    rng = np.random.default_rng(0)
    rows = max(200, 20_000 // number)
    return [rng.integers(0, 50_000, (rows, length)) for _ in range(number)]


def weights_of(number: int) -> list[float]:
    weights = np.random.default_rng(1).dirichlet(np.ones(number))
    return [float(weight) for weight in weights / weights.sum()]


def hugging_face(domains: Rows) -> list[Any]:
    from datasets import Dataset

    return [Dataset.from_dict({"input_ids": rows}).with_format("torch") for rows in domains]


def fms(domains: Rows, weights: list[float], log: bool) -> Iterator[Any]:
    """fms-acceleration-odm: EXP3 over Hugging Face datasets.

    By default it writes a line of JSON for every row; this is switched off.
    """
    stub = types.ModuleType("sentence_transformers")  # used for clustering undivided data only
    stub.SentenceTransformer = None  # type: ignore[attr-defined]
    sys.modules.setdefault("sentence_transformers", stub)
    from fms_acceleration_odm.odm.dataset import OnlineMixingDataset

    named = {f"d{k}": dataset for k, dataset in enumerate(hugging_face(domains))}
    mixing = OnlineMixingDataset(
        named,
        {},
        named,
        {},
        sampling_weights=dict(zip(named, weights, strict=True)),
        output_dir=tempfile.mkdtemp(prefix="peers-"),
    )
    if not log:
        mixing.log_to_file = lambda data: None
    return iter(mixing)


def interleave(domains: Rows, weights: list[float], iterable: bool) -> Iterator[Any]:
    """datasets.interleave_datasets with fixed probabilities."""
    from datasets import interleave_datasets

    parts = hugging_face(domains)
    parts = [part.to_iterable_dataset() for part in parts] if iterable else parts
    return forever(
        interleave_datasets(parts, probabilities=weights, seed=0, stopping_strategy="all_exhausted")
    )


def torchdata_nodes(domains: Rows, weights: list[float]) -> Iterator[Any]:
    """torchdata.nodes.MultiNodeWeightedSampler with fixed weights."""
    from torchdata.nodes import IterableWrapper, MultiNodeWeightedSampler

    nodes = {f"d{k}": IterableWrapper(rows) for k, rows in enumerate(domains)}
    return forever(
        MultiNodeWeightedSampler(
            nodes, dict(zip(nodes, weights, strict=True)), stop_criteria="CYCLE_FOREVER", seed=0
        )
    )


def grain_mix(domains: Rows, weights: list[float]) -> Iterator[Any]:
    """grain.MapDataset.mix with fixed weights, shuffled."""
    import grain

    parts = [grain.MapDataset.source(rows).shuffle(seed=0).repeat() for rows in domains]
    return iter(
        grain.MapDataset.mix(parts, weights).to_iter_dataset(grain.ReadOptions(num_threads=0))
    )


def forever(source: Any) -> Iterator[Any]:
    while True:
        if hasattr(source, "reset"):
            source.reset()
        yield from source


def rate(make: Callable[[], Iterator[Any]], seconds: float) -> float | str:
    """Rows per second after 200 rows of warm-up; or why it does not run.

    Seconds are those of the processor or of the clock, whichever are fewer: other work on the
    machine does not count, and threads of a peer do not count twice.
    """
    try:
        rows = make()
        for _ in itertools.islice(rows, 200):
            pass
        number, begin, busy = 0, time.perf_counter(), time.process_time()
        while min(time.perf_counter() - begin, time.process_time() - busy) < seconds:
            for _ in itertools.islice(rows, 100):
                number += 1
        spent = min(time.perf_counter() - begin, time.process_time() - busy)
        return round(number / spent, 1)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    domains, weights = (
        domains_of(arguments.domains, arguments.length),
        weights_of(arguments.domains),
    )
    peers = {
        "fms-acceleration-odm": lambda: fms(domains, weights, log=True),
        "fms-acceleration-odm, its log off": lambda: fms(domains, weights, log=False),
        "datasets.interleave_datasets, map": lambda: interleave(domains, weights, iterable=False),
        "datasets.interleave_datasets, iterable": lambda: interleave(
            domains, weights, iterable=True
        ),
        "torchdata MultiNodeWeightedSampler": lambda: torchdata_nodes(domains, weights),
        "grain MapDataset.mix": lambda: grain_mix(domains, weights),
    }
    rates = {}
    for name, make in peers.items():
        rates[name] = rate(make, arguments.seconds)
        print(f"{name}: {rates[name]}", file=sys.stderr, flush=True)
    dynamic = [name for name in peers if name.startswith("fms")]
    print(
        json.dumps(
            {
                "length": arguments.length,
                "domains": arguments.domains,
                "dynamic": dynamic,
                "rows_per_s": rates,
            }
        )
    )


if __name__ == "__main__":
    main()

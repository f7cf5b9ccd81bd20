"""Is the stream exact? Reliability tests 1 to 5, 7 and 8 in full size, with planted faults.

    python benchmarks/stream_exact.py             # 10^6 samples, about 12 minutes on one core
    python benchmarks/stream_exact.py --fast      # 2 × 10^4 samples, under a minute

Everything runs on random ids made here; no data, no network. The last line is one JSON object:

    stops_identical           sequences equal after a stop and resume at random and all special
                              steps / tried
    world_pairs_identical     saved at W ranks, resumed at W' ranks × loader workers: equal / valid
                              combinations
    world_pairs_refused       combinations that do not divide the batch and are refused by an error
                              that names the size / tried
    resume_drift, unequal_states    after 50 save and load cycles
    duplicates, skips, visit_spread, repeated_orders    over every domain through at least 5 passes
    max_deviation_sequences   realised minus asked, any domain after any step, 100 changes of
                              mixture, batches of 48 and of 8
    max_deviation_batch_of_one    the same for batches of one row, where no rule can promise less
                              than one (docs/stream.md)
    max_deviation_by_rank     the same for each of 8 ranks and its share of batches of 48
    multinomial_z             largest deviation in standard deviations at the end, of
                              `multinomial_tests` figures
    edge_*                    10^5 streams under odd weights
    golden                    hash of the first 10^4 rows
    planted_caught            faults caught / planted
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from cuvee import StreamLoader
from cuvee.testing.stream_faults import planted
from cuvee.testing.stream_measures import (
    Sameness,
    Scenario,
    digest,
    golden_order,
    make_corpus,
    measure_edges,
    measure_fidelity,
    measure_repeated_resume,
    measure_resume,
    measure_visits,
    measure_worlds,
    special_stops,
)

BATCH, LENGTH = 480, 16
WORLDS = (1, 2, 3, 4, 6, 8, 16)
WORKERS = (1, 4)
SEED = 20_260


def corpus_of(rows: int, domains: int = 12) -> Any:
    """Domains of one window up to a fifth of `rows`, in geometric sizes, one of a single
    document."""
    sizes = [max(1, int(rows / 5 * 0.5**k)) * LENGTH - k for k in range(domains - 1)]
    return make_corpus({**{f"d{k}": size for k, size in enumerate(sizes)}, "note": 9}, seed=SEED)


def resume(samples: int, stops: int) -> dict[str, Any]:
    steps = samples // BATCH
    caps = {"d3": 1.5, "d5": 2.0, "d7": 3.25}
    scenario = Scenario.random(
        corpus_of(samples),
        steps,
        40,
        log_seed=SEED,
        floor=0.1,
        batch_size=BATCH,
        sequence_length=LENGTH,
        seed=SEED,
        epoch_caps=caps,
    )
    rng = np.random.default_rng(SEED)
    special = special_stops(scenario, steps)
    chosen = [0, 1, *rng.choice(special, min(len(special), stops // 2), replace=False).tolist()]
    chosen = list(dict.fromkeys([*chosen, *rng.permutation(steps - 1).tolist()]))[:stops]
    same = measure_resume(scenario, sorted(chosen), steps)
    return {
        "stops_identical": str(same),
        "first_difference": same.first_difference,
        "special_steps": len(special),
    }


def worlds(samples: int, every: bool) -> dict[str, Any]:
    """All pairs without a loader; with loaders all pairs, or one per W' and number of workers."""
    steps = samples // BATCH
    scenario = Scenario.random(
        corpus_of(samples),
        steps,
        20,
        log_seed=SEED + 1,
        batch_size=BATCH,
        sequence_length=LENGTH,
        seed=SEED,
    )
    invalid = [(1, 7), (9, 1), (11, 13), (7, 7), (2, 961)]
    pairs = [(w, v) for w in WORLDS for v in WORLDS]
    plain, refused = measure_worlds(scenario, [*pairs, *invalid], steps // 2, steps)
    middle = steps // 2
    rest, states = scenario.digests(scenario.ranks(), steps)[middle:], {}
    for world in WORLDS:
        streams = scenario.ranks(world)
        for _ in scenario.steps(streams, middle):
            pass
        states[world] = streams[-1].state_dict()
    with_workers = [
        (w, v, n)
        for i, w in enumerate(WORLDS)
        for j, v in enumerate(WORLDS)
        for n in WORKERS
        if every or i == 6 - j
    ]
    same = sum(
        loaded(scenario, states[w], v, workers, steps) == rest for w, v, workers in with_workers
    )
    return {
        "world_pairs_identical": str(
            Sameness(plain.identical + same, plain.tried + len(with_workers))
        ),
        "world_pairs_refused": str(refused),
    }


def loaded(scenario: Scenario, state: Any, world_size: int, workers: int, end: int) -> list[str]:
    """Digests of the steps after `state`, drawn by the loaders of one rank after the other."""
    shares = [
        list(rank_batches(scenario, stream, workers, end))
        for stream in scenario.ranks(world_size, state)
    ]
    return [digest(batches) for batches in zip(*shares, strict=True)]


def rank_batches(scenario: Scenario, stream: Any, workers: int, end: int) -> Iterator[Any]:
    """Announces mixtures through the loader as early as allowed, as a trainer that plans ahead
    does."""
    loader = StreamLoader(stream, num_workers=workers, steps=end - stream.position)
    due = sorted(step for step in scenario.changes if step >= stream.position)
    for step in [step for step in due if step < stream.position + 2 * workers + 1]:
        stream.set_mixture(scenario.changes[step], at_step=step)
        due.remove(step)
    for batch in loader:
        yield batch
        while due and due[0] < loader.first_open_step + 40:
            loader.set_mixture(scenario.changes[due[0]], at_step=due[0])
            due.pop(0)


def repeated() -> dict[str, Any]:
    scenario = Scenario.random(corpus_of(2000), 120, 12, log_seed=SEED + 2)
    figures = [
        measure_repeated_resume(scenario, 50, step_between) for step_between in (False, True)
    ]
    return {
        "resume_drift": sum(drift for drift, _ in figures),
        "unequal_states": sum(unequal for _, unequal in figures),
    }


def visits(samples: int) -> dict[str, Any]:
    """40 domains whose mixture shares are their shares of the windows: each is read five times
    or more."""
    rng = np.random.default_rng(SEED)
    windows = [1, 1, *rng.integers(2, max(3, samples // 120), 38).tolist()]
    corpus = make_corpus(
        {f"d{k}": int(number) * LENGTH - k % LENGTH for k, number in enumerate(windows)}, seed=SEED
    )
    names = tuple(domain.name for domain in corpus.domains)
    shares = np.array(windows) / sum(windows)
    scenario = replace(
        Scenario.random(
            corpus, 2, 0, log_seed=0, batch_size=BATCH, sequence_length=LENGTH, seed=SEED
        ),
        start=type(Scenario.random(corpus, 2, 0, log_seed=0).start).normalise(names, shares),
    )
    found = measure_visits(scenario, -(-5 * sum(windows) // BATCH) + BATCH)
    return {
        "duplicates": found.duplicates,
        "skips": found.skips,
        "visit_spread": found.spread,
        "repeated_orders": found.repeated_orders,
    }


def fidelity(samples: int) -> dict[str, Any]:
    steps = samples // 48
    found = {
        batch: measure_fidelity(
            Scenario.random(
                corpus_of(20_000, 8), steps, 100, log_seed=SEED + batch, batch_size=batch
            ),
            steps,
            world_size=8 if batch == 48 else 1,
        )
        for batch in (48, 8, 1)
    }
    # Of 8 domains, each is due 48 · 0.17 / 8 > 1 rows a batch.
    due = Scenario.random(corpus_of(20_000, 8), steps, 100, log_seed=SEED, floor=0.17)
    random = Scenario.random(
        corpus_of(20_000, 8), steps, 100, log_seed=SEED, sampling="multinomial"
    )
    z = measure_fidelity(random, steps).z
    return {
        "max_deviation_sequences": round(max(found[48].overall, found[8].overall), 6),
        "max_deviation_due_each_batch": round(measure_fidelity(due, steps).overall, 6),
        "max_deviation_batch_of_one": round(found[1].overall, 6),
        "max_deviation_by_rank": round(found[48].by_rank, 3),
        "multinomial_z": round(z, 3),
        "multinomial_tests": 8,
    }


def faults() -> dict[str, Any]:
    scenario = Scenario.random(corpus_of(2000, 6), 200, 12, log_seed=5)
    caught = {
        name: plant() for name, plant in planted(scenario, 200, golden_order(960), 960).items()
    }
    missed = [name for name, was_caught in caught.items() if not was_caught]
    return {"planted_caught": f"{sum(caught.values())}/{len(caught)}", "planted_missed": missed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="the size that every commit can afford")
    fast = parser.parse_args().fast
    samples, stops, cases = (20_000, 20, 1000) if fast else (1_000_000, 200, 100_000)
    figures: dict[str, Any] = {
        "benchmark": "stream_exact",
        "samples": samples,
        "seed": SEED,
        "size": "fast" if fast else "full",
    }
    parts = {
        "resume": lambda: resume(samples, stops),
        "worlds": lambda: worlds(samples, not fast),
        "repeated": repeated,
        "visits": lambda: visits(samples),
        "fidelity": lambda: fidelity(samples),
        "edges": lambda: {
            f"edge_{name}": number for name, number in measure_edges(cases, SEED).items()
        },
        "golden": lambda: {"golden": golden_order(10_000)[:16]},
        "faults": faults,
    }
    for name, part in parts.items():
        begin = time.perf_counter()
        found = part()
        figures.update(found)
        print(
            f"{name:9} {time.perf_counter() - begin:7.1f} s  {json.dumps(found)}",
            file=sys.stderr,
            flush=True,
        )
    figures.update(
        python=platform.python_version(), numpy=np.__version__, machine=platform.machine()
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

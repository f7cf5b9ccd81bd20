"""Tests 1 to 5, 7 and 8: the stream. The measures are those of `stream_exact.py`."""

from __future__ import annotations

from functools import cache

import stream_exact
from stream_exact import SEED, corpus_of

from cuvee.testing.stream_faults import planted
from cuvee.testing.stream_measures import Scenario, golden_order, measure_edges
from golden.test_stream_order import GOLDEN
from reliability.measure import Result, measured


def samples(full: bool) -> int:
    return 1_000_000 if full else 20_000


@cache
def _caught(number: int) -> dict[str, bool]:
    """The planted faults of test `number`."""
    scenario = Scenario.random(corpus_of(2000, 6), 200, 12, log_seed=5)
    faults = planted(scenario, 200, golden_order(960), 960)
    return {
        name: plant() for name, plant in faults.items() if int(name.partition(" ")[0]) == number
    }


def all_of(share: str) -> bool:
    """Whether "20/20" is all."""
    part, _, whole = share.partition("/")
    return part == whole


@measured(1, "resume at any step")
def resume(full: bool) -> Result:
    found = stream_exact.resume(samples(full), 200 if full else 20)
    same = found["stops_identical"]
    n = f"{samples(full)} samples × {same.partition('/')[2]} stops"
    return Result(n, f"{same} stops identical", "all", all_of(same), _caught(1))


@measured(2, "another world size")
def worlds(full: bool) -> Result:
    found = stream_exact.worlds(samples(full), full)
    same, refused = found["world_pairs_identical"], found["world_pairs_refused"]
    return Result(
        same.partition("/")[2],
        f"{same} identical, {refused} refused by name",
        "all, all",
        all_of(same) and all_of(refused),
        _caught(2),
    )


@measured(3, "repeated resume")
def repeated(full: bool) -> Result:
    found = stream_exact.repeated()
    drift, unequal = found["resume_drift"], found["unequal_states"]
    return Result(
        "2 × 50 cycles",
        f"{drift} samples of drift, {unequal} unequal states",
        "0, 0",
        drift == unequal == 0,
        _caught(3),
    )


@measured(4, "once per epoch")
def visits(full: bool) -> Result:
    found = stream_exact.visits(samples(full))
    figures = [found[name] for name in ("duplicates", "skips", "visit_spread", "repeated_orders")]
    return Result(
        "40 domains, 5 epochs",
        "{} duplicates, {} skips, visits differ by {}, {} repeated orders".format(*figures),
        "0, 0, ≤ 1, 0",
        max(figures[0], figures[1], figures[3]) == 0 and figures[2] <= 1,
        _caught(4),
    )


@measured(5, "mixture fidelity")
def fidelity(full: bool) -> Result:
    found = stream_exact.fidelity(samples(full) * (1 if full else 5))
    proven, worst, z = (
        found[name]
        for name in ("max_deviation_due_each_batch", "max_deviation_sequences", "multinomial_z")
    )
    return Result(
        f"{samples(full) * (1 if full else 5)} samples, 100 changes",
        f"{proven:.3f} sequences if each domain is due one a batch, {worst:.3f} for any weights; "
        f"drawn at random: z = {z:.2f} of 8",
        "< 1 (proven), ≤ 8 domains; z < 3.84",  # two-sided 1e-3 over eight figures
        proven < 1 and worst <= 8 and abs(z) < 3.84,
        _caught(5),
    )


@measured(7, "edge weights")
def edges(full: bool) -> Result:
    found = measure_edges(100_000 if full else 1000, SEED)
    unnamed, silent = found["unnamed_errors"], found["silent_acceptances"]
    return Result(
        f"{found['cases']} cases",
        f"{unnamed} unnamed errors, {silent} silent acceptances",
        "0, 0",
        unnamed == silent == 0,
        _caught(7),
    )


@measured(8, "golden order")
def golden(full: bool) -> Result:
    same = sum(golden_order(count) == wanted for count, wanted in GOLDEN.items())
    return Result(
        f"{len(GOLDEN)} lengths, this Python and NumPy",
        f"{same}/{len(GOLDEN)} hashes equal",
        "all",
        same == len(GOLDEN),
        _caught(8),
    )

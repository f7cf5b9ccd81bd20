"""The scarce regime of `agent.py`: a target field with little text, which may be read repeatedly.

The training text of the target is cut to `--target-bytes`. Each regime is a cap (how often the
target may be read) and a learning-rate schedule. The base model has read every source domain. Mixed
runs of one seed share weights, data order, budget, cap and schedule. Results are nats per token of
the validation documents that decided nothing; source and target averaged. Lower is better.

Baselines are methods: `natural`, `uniform`, `even`, `late`, target shares, falling and rising ramps,
and with `--methods` any other that needs no proxies (`gain`, `ac_odm`, `odm`, `ado`, …). `universal`
is what ships. With `--proxies N`, `agent` is what `cuvee learn` writes, from N proxies of half the
length under the same cap. RegMix gets as many proxies.

`gain_vs_best_static` and `gain_vs` are relative falls of the average, paired by seed. The best
static mixture is known only in hindsight; `even`, which holds one share to the end, is one of them.
`share_of_room` is the part that was reached of what the best run of all gains over the better of
`even` and half for each role. The figures are for `--judged`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from itertools import product
from typing import Any

import agent
from agent_parts import Field, Material

from cuvee.core.domain import divided_shares
from cuvee.core.trajectory import Run
from cuvee.policies.files import load_policy

SHARES = (0.11, 0.22, 0.45)
RAMPS = ((0.4, 0.04), (0.04, 0.4), (0.8, 0.1), (0.1, 0.8))
HALF = "share-0.5"
STEERED_BY = {"history": "actor", "plan": "plan", "fallback": "static"}


def entries_by_hand(field: Field, methods: list[str]) -> list[Any]:
    """Mixtures that know nothing of the run, and methods without proxies."""
    ends = {
        share: divided_shares(field.corpus.domains, share)
        for share in {s for r in RAMPS for s in r}
    }
    ramps = [
        {
            "name": "schedule",
            "points": [[0.0, ends[a]], [1.0, ends[b]]],
            "label": f"ramp-{a:g}-{b:g}",
        }
        for a, b in RAMPS
    ]
    objective = {field.target: 1.0}
    paced = [{"name": name, "objective": objective, "label": name} for name in ("even", "late")]
    natural = {"name": "even", "objective": objective, "rest": "natural", "label": "even-natural"}
    sweep = agent.sweep(field, (*SHARES, 0.5))
    return ["natural", "uniform", *paced, natural, *sweep, *ramps, *methods]


def measure(bench: agent.Bench, field: Field, name: str) -> dict[str, Any]:
    """Return the figures of one regime. Runs that exist are not run again."""
    options = bench.options
    base = bench.base(field, options.model)
    entries = entries_by_hand(field, options.methods)
    steered_by = None
    if options.proxies:
        policies, _ = agent.learned_policies(bench, field, base)
        entries += agent.carried(bench, policies, field)
        learned: Any = load_policy(policies["agent"])
        steered_by = STEERED_BY[learned.steered_by]
    if options.regmix_proxies:
        entries += agent.regmix(bench, field, base)
    runs = dict(bench.compared(field, base, entries, options.seeds, name=name))
    shipped = bench.compared(
        field, base, [{"policy": "universal", "label": "universal"}], options.seeds, name=name
    )
    return figures_of(bench, field, {**runs, **shipped}, steered_by)


def figures_of(
    bench: agent.Bench,
    field: Field,
    runs: Mapping[str, Mapping[int, Run]],
    steered_by: str | None,
) -> dict[str, Any]:
    figures = agent.Figures()
    average = agent.averages(bench.judged(field, runs))
    judged = bench.options.judged if bench.options.judged in average else "universal"
    held = ("natural", "uniform", "even", "even-natural")
    static = [one for one in average if one.startswith("share-") or one in held]
    best, best_static = agent.best_of(average, [*average]), agent.best_of(average, static)
    easy = agent.best_of(average, ["even", HALF])
    room = agent.mean_of(average[easy]) - agent.mean_of(average[best])
    reached = agent.mean_of(average[easy]) - agent.mean_of(average[judged])
    gain = figures.gains("gain_vs_best_static", average, judged, best_static)
    return {
        "judged": judged,
        "gain_vs_best_static": [gain, *(figures.ci95["gain_vs_best_static"] or [None, None])],
        "best_static": best_static,
        "best": best,
        "share_of_room": round(reached / room, 3) if room > 0 else None,
        "gain_vs": {
            one: figures.gains(one, average, judged, one) for one in average if one != judged
        },
        "steered_by": steered_by,
        "average": {
            one: [round(value, 4) for _, value in sorted(by_seed.items())]
            for one, by_seed in sorted(average.items(), key=lambda row: agent.mean_of(row[1]))
        },
        "target_shares": {one: agent.path_of(by_seed) for one, by_seed in runs.items()},
        "ci95": figures.ci95,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this regime has."""
    parser.add_argument("--target-bytes", type=int, default=150_000, help="text of the target")
    parser.add_argument("--caps", type=float, nargs="+", default=[4.0, 16.0], help="passes over it")
    parser.add_argument("--schedules", nargs="+", default=["cosine", "wsd"])
    parser.add_argument("--methods", nargs="*", default=[], help="more baselines without proxies")
    parser.add_argument("--judged", default="universal", help="whose gains are reported")


def run_all(options: argparse.Namespace) -> None:
    """Measure every cap with every schedule. Prints each as it is known, then one JSON object."""
    for name, value in {"tokens": 1_228_800, "seeds": 2, "proxies": 0, "regmix_proxies": 0}.items():
        setattr(options, name, getattr(options, name) or value)
    options.base_tokens = 4 * options.tokens
    started = time.perf_counter()
    material = Material(
        options.corpus,
        options.out,
        options.questions or [],
        options.target,
        kept_away=0.0,
        every=options.every or 1,
        target_bytes=options.target_bytes,
    )
    found: dict[str, Any] = {}
    for cap, schedule in product(options.caps, options.schedules):
        bench = agent.Bench(options)
        field = material.field(f"scarce-{options.target_bytes}", material.sources, material.target)
        bench.base(field, options.model)
        bench.common = {"guard": {"epochs": {field.target: cap}}, "train": {"schedule": schedule}}
        name = f"scarce-{cap:g}-{schedule}"
        found[name] = {**measure(bench, field, name), "cost": sum(bench.spent.values())}
        seconds = time.perf_counter() - started
        print(f"{seconds:7.0f} s  {name}: {json.dumps(found[name])}", flush=True)
    print(json.dumps({"benchmark": "agent", "tokens": options.tokens, "scarce": found}))

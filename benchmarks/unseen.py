"""The universal policy on text that it has never seen, against mixtures by hand.

    python benchmarks/unseen.py --corpus DIR                  the policy that ships, with and
                                                              without feedback; half an hour on one
                                                              core
    python benchmarks/unseen.py --corpus DIR --policy DIR --policy DIR
                                                              other policies of its kind, compared

DIR is a raw folder: {train,valid}/<domain>.jsonl.gz, and a table.json with roles, or `--target`. A
small base model of the source domains continues under each mixture. Runs of one seed share weights,
data order and budget. A policy that is *told* receives the model's losses on the feedback half of
the validation documents; the other half evaluates all policies (see agent_parts.py). No proxy is
run.

Gains are relative drops of the evaluated nats per token, source and target averaged, paired by
seed, with bootstrap intervals in `ci95`: against `share-0.5`, a choice without any knowledge, and
against the best static mixture, known only in hindsight. `targets` has one entry per target domain;
each is a continual pre-training of its own. `cost` has all training tokens. The last line printed is one JSON object. The same
command resumes after an interruption.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent import (
    Bench,
    Figures,
    averages,
    best_of,
    carried,
    common_options,
    even,
    mean_of,
    path_of,
    sides_of,
    sweep,
)
from agent_parts import Field, Material

from cuvee.policies.files import UNIVERSAL

HALF = "share-0.5"


def measure(bench: Bench, field: Field, policies: Sequence[Path]) -> dict[str, Any]:
    seeds = bench.options.seeds
    base = bench.base(field, bench.options.model)
    statics = ["natural", "uniform", *sweep(field, (0.3, 0.5, 0.7)), even(field, 0.5)]
    runs = bench.compared(field, base, statics, seeds)
    by_hand, learned = list(runs), []
    for number, folder in enumerate(policies):
        name = folder.name if len(policies) > 1 else "universal"
        for way, label in (
            ("told", "learned"),
            ("untold", "untold"),
        ):  # only what is called learned has questions
            entry = {**carried(bench, {f"policy-{number}": folder}, field)[0], "label": label}
            runs[f"{name}, {way}"] = bench.compared(field, base, [entry], seeds)[label]
            learned.append(f"{name}, {way}")
    verdicts, figures = bench.judged(field, runs), Figures()
    average = averages(verdicts)
    best = best_of(average, by_hand)
    return {
        "domains": len(field.corpus.domains),
        "best_static": best,
        "gain_to_half": {
            one: figures.gains(f"gain_to_half.{one}", average, one, HALF) for one in average
        },
        "gain_to_best": {
            one: figures.gains(f"gain_to_best.{one}", average, one, best) for one in learned
        },
        "average": {one: round(mean_of(by_seed), 4) for one, by_seed in average.items()},
        "nats": {one: sides_of(by_seed) for one, by_seed in verdicts.items()},
        "target_shares": {one: path_of(runs[one]) for one in learned},
        "ci95": figures.ci95,
    }


def main() -> None:
    parser = common_options(__doc__, questions=False)
    parser.add_argument("--policy", type=Path, action="append", default=[])
    parser.add_argument("--targets", type=int, default=2, help="how many target domains, at most 2")
    options = parser.parse_args()
    for name, value in {"tokens": 655_360, "seeds": 3, "every": 1}.items():
        setattr(options, name, getattr(options, name) or value)
    options.base_tokens = 3 * options.tokens
    bench, started = Bench(options), time.perf_counter()
    material = Material(
        options.corpus, options.out, options.questions or [], options.target, 0.0, options.every
    )
    found: dict[str, Any] = {}
    targets = [name for name in (material.target, material.other_target) if name]
    for target in targets[: options.targets]:
        field = material.field(f"to-{target}", material.sources, target)
        found[target] = measure(bench, field, options.policy or [UNIVERSAL])
        print(
            f"{time.perf_counter() - started:7.0f} s  {target}: {json.dumps(found[target])}",
            flush=True,
        )
    print(
        json.dumps(
            {
                "benchmark": "unseen",
                "tokens": options.tokens,
                "seeds": options.seeds,
                "cost": sum(bench.spent.values()),
                "targets": found,
            }
        )
    )


if __name__ == "__main__":
    main()

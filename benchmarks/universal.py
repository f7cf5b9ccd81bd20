"""Trains the universal policy in simulated worlds, and evaluates it in unseen worlds.

    python benchmarks/universal.py --train --corpus DIR --questions FILE… --targets NAME…
                                   --out src/cuvee/policies/universal
                                                              makes the policy that ships (targets
                                                              math, code_python and german), with
                                                              its proxies; over an hour
    python benchmarks/universal.py --train --out DIR          without runs on real text, minutes
    python benchmarks/universal.py                            judges the one that ships
    python benchmarks/universal.py --policy DIR --worlds 4 --tasks 2x20

With a corpus and questions, as for `agent.py` and with its proxies (in `--work`, which may be its
`--out`), most worlds have parameters under which proxies end as they did on real text
(`cuvee.simulation.calibration`). `unseen.py` evaluates on real text; the evaluation here needs no
corpus.

A task is DOMAINSxINTERVALS. Its worlds are simulated continual pre-training
(`cuvee.simulation.continual`) with random parameters, from a range of seeds that training does not
use. The policy steers each world as it would a run: noisy losses, noisy feedback, under the guard.
Figures are means over worlds of the true feedback e at the end, in percent:

    reference      half of the run for each field, divided by tokens: what an untrained policy plays
    one_share      the target share of 0.1, 0.2, …, 0.9 that is best on average over these worlds
    best_share     the best of these for each world, known only in hindsight
    best_static    the best constant mixture of each world, by climbing the truth
    best_schedule  the best path of mixtures, likewise
    told, untold   the policy, with and without feedback

`room` is the policy's gain over one_share as a share of the gain of best_schedule. `wins` is the
number of worlds in which it ends above best_static. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agent import Bench, agent_method, common_options
from agent_parts import Material

from cuvee.core.domain import Domain
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Cost, Run
from cuvee.learning.universal import UniversalSettings, learn_universal
from cuvee.loop import run
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.history.heuristics import role_shares
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.recipes.search import logged_runs, run_proxies
from cuvee.simulation.calibration import calibrate
from cuvee.simulation.continual import WorldParams, continual, feedback_gain
from cuvee.simulation.simulator import ScalingLaws, Simulator

SHIPPED = Path(__file__).parents[1] / "src" / "cuvee" / "policies" / "universal"
SPACES = {2: (1, 1), 8: (6, 2), 16: (12, 4), 52: (40, 12), 104: (84, 20)}
TASKS = ("2x20", "8x20", "16x20", "52x20", "8x80", "52x80")
UNSEEN = 2**32  # training draws its worlds' seeds below 2^31
DRAWS, KEPT = 40_000, 64  # kept of each corpus


class _Evaluation:
    name = "evaluation"


def evaluate(policy: HistoryPolicy, task: str, worlds: int) -> dict[str, Any]:
    K, intervals = map(int, task.split("x"))
    found: dict[str, list[float]] = {}
    sweep: list[list[float]] = []
    for seed in range(UNSEEN, UNSEEN + worlds):
        laws, domains = continual(*SPACES[K], seed, intervals, WorldParams.draw(seed))
        source_K, target_K = (role_shares(domains, role) for role in ("source", "target"))
        sweep.append(
            [_constant(laws, (1 - s) * source_K + s * target_K) for s in np.linspace(0.1, 0.9, 9)]
        )
        figures = {
            "reference": _constant(laws, 0.5 * (source_K + target_K)),
            "best_share": max(sweep[-1]),
            "best_static": _constant(laws, laws.best_static(150).numpy()),
            "best_schedule": feedback_gain(laws, laws.best_schedule(150)),
            "told": _steered(policy, laws, domains, True),
            "untold": _steered(policy, laws, domains, False),
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    ends_WS = np.array(sweep)
    one_share = float(ends_WS.mean(0).max())
    means = {
        "one_share": one_share,
        **{name: float(np.mean(values)) for name, values in found.items()},
    }
    room = means["best_schedule"] - one_share
    return {
        "task": task,
        "worlds": worlds,
        **{name: round(100 * value, 3) for name, value in means.items()},
        "room": {
            name: round((means[name] - one_share) / room, 3)
            for name in ("untold", "told", "best_share", "best_static")
        },
        "wins": int((np.array(found["told"]) > np.array(found["best_static"])).sum()),
        "below_reference": int((np.array(found["told"]) < np.array(found["reference"])).sum()),
    }


def _constant(laws: ScalingLaws, weights_K: Any) -> float:
    return feedback_gain(laws, torch.from_numpy(np.array(weights_K)).expand(laws.intervals, -1))


def _steered(
    policy: HistoryPolicy, laws: ScalingLaws, domains: tuple[Domain, ...], told: bool
) -> float:
    policy.probes = (_Evaluation(),) if told else ()
    guarded: Policy = Guard(policy, Limits(), int(laws.interval))
    steered = run(Simulator(laws, seed=7, domains=domains), guarded)
    return feedback_gain(laws, torch.from_numpy(steered.weights_TK()))


def proxies(options: argparse.Namespace) -> tuple[list[str], list[Run]]:
    """Trajectories of the scoring sampler on real text, and the fingerprints of their corpora.

    They are those of `agent.py` and of other targets. Missing ones are run here.
    """
    asked = ["--corpus", options.corpus, "--questions", *options.questions, "--out", options.work]
    theirs = common_options("").parse_args([str(one) for one in asked])
    theirs.tokens, theirs.every, theirs.proxies = 983_040, 4, options.proxies
    theirs.base_tokens = 3 * theirs.tokens
    bench, corpora, runs = Bench(theirs), [], []
    for target in options.targets or [None]:
        material = Material(
            theirs.corpus, theirs.out, theirs.questions, target, theirs.kept_away, theirs.every
        )
        name = "main" if target in (None, material.default_target) else f"main-{target}"
        field = material.field(name, material.sources, material.target)
        config = bench.searching(
            field, bench.base(field, theirs.model), agent_method(bench, field), "dma"
        )
        run_proxies(config)
        corpora.append(field.corpus.fingerprint)
        runs += logged_runs(config)
    return corpora, runs


def train(
    out: Path,
    settings: UniversalSettings,
    seed: int,
    corpora: Sequence[str] = (),
    runs: Sequence[Run] = (),
) -> HistoryPolicy:
    started = time.process_time()
    alike = calibrate(runs, DRAWS, KEPT, seed) if runs else []

    def show(number: int, said: dict[str, float]) -> None:
        if number % 50 == 0:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in said.items())
            print(f"{number}: {figures}, {time.process_time() - started:.0f} s", flush=True)

    policy = learn_universal(settings, seed, show, [one.params for one in alike])
    cost = sum((run.cost for run in runs), Cost())
    provenance = {
        "made_by": "benchmarks/universal.py --train",
        "learned_from": "simulated continual pre-training (cuvee.simulation.continual)",
        "like": {
            "runs": [run.id for run in runs],
            "corpora": list(corpora),
            "cost": {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds},
            "draws": DRAWS,
            "world_params": [dataclasses.asdict(one) for one in alike],
        },
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "processor_seconds": round(time.process_time() - started),
        "proxies": {"tokens": 0, "flops": 0.0, "seconds": 0.0},  # of the run that it steers
    }
    save_policy(out, policy, provenance)
    return policy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("universal"))
    parser.add_argument("--policy", type=Path, default=SHIPPED)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--questions", nargs="+", default=[], metavar="[ABOUT=]FILE")
    parser.add_argument(
        "--targets",
        nargs="+",
        help="target domains, each with proxies of its own; one by default, as in agent.py",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/agent"))
    parser.add_argument("--proxies", type=int, default=64)
    parser.add_argument("--updates", type=int, default=UniversalSettings.updates)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--worlds", type=int, default=24)
    options = parser.parse_args()
    if bool(options.corpus) != bool(options.questions):
        parser.error(
            "--corpus and --questions go together: proxies on real text are asked questions"
        )
    torch.set_num_threads(1)
    if options.train:
        logged = proxies(options) if options.corpus else ()
        policy = train(
            options.out, UniversalSettings(updates=options.updates), options.seed, *logged
        )
    else:
        loaded = load_policy(options.policy)
        assert isinstance(loaded, HistoryPolicy)
        policy = loaded
    rows = []
    for task in options.tasks:
        rows.append(evaluate(policy, task, options.worlds))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"benchmark": "universal", "seed": options.seed, "tasks": rows}))


if __name__ == "__main__":
    main()

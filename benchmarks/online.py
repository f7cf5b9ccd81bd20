"""Online mixing on real text: all methods at equal budget, and how much there is to win.

    python benchmarks/online.py --corpus DIR --variant scarce --targets law german --target-bytes 150000
    python benchmarks/online.py --corpus DIR --full --out DIR    all variants, 5 seeds; resumable
    python benchmarks/online.py --corpus DIR --variant tiny --steps 100 --seeds 1 --trials 4

DIR is a raw folder: {train,valid}/<domain>.jsonl.gz, and optionally test/. Variants of it:

    clean    as given
    junk     six more domains, three of random tokens and three of machine boilerplate. The
             objective is a pool of validation text of all others, which is no domain to train on:
             nothing says which domains are junk
    copies   the third largest domain present under three names; validated under its own
    tiny     the domain of median size cut to 50,000 tokens, which may be read four times at most
             (`guard: {epochs: …}`)
    misset   every third domain has a tenth of its text, and only these are validated: the natural
             blend is ten times off from what counts
    skills   made-up text: functions of letters, then two and three of them in a row, and three
             domains of the corpus. Only three in a row are validated, in combinations that are not
             in training. They cannot be learned before single functions are
    scarce   for each target, its training text cut to --target-bytes, which may be read --epochs
             times; nothing else is validated. Its name in the result is scarce-TARGET

All methods share a seed's model weights, order of each domain's data, budget, epoch caps, objective
and evaluation. The result is the mean over the domains that count of the final loss: on the test
split if there is one, else on validation text. The room (online_room.py) is the distance from the
better of natural and uniform, or from `even` for scarce targets, to the best path found. It is
measured on the seeds that the search did not use, if there are others, and so are the differences.

    room              nats, ci95, from, to, best_static, best_schedule
    seeds             trained, and judged: those that the search did not use
    vs_best_static    method: [mean, low, high] of its loss minus that of the best static mixture
    vs_odm, vs_natural  the same against these
    share_of_room     method: [mean, low, high]
    agent_minus_gain  ac_odm and hds minus `gain`
    noise_minus_real  agents with noise for gains minus the same agents
    steps_vs_*        steps to the other's best validation loss, as a share of the other's steps;
                      null if a seed never reaches it
    wall_ratio        seconds of a run over those of uniform
    cost_tokens       of all runs of a method, measuring and proxies included, in training tokens of
                      the same FLOPs; `everything` includes the search

Intervals are paired 95 % bootstrap intervals over seeds. One line is printed for each variant when
it is done, and the last line is one JSON object. OUT/paths-VARIANT.html shows the mixtures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from online_corpora import POOL, SCARCE, prepare, target_of
from online_room import Trial, by_example, by_hand, next_paths

from cuvee.core.domain import natural_K
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.evaluation.statistics import bootstrap_mean, steps_to_reach
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, parse
from cuvee.recipes.search import SearchConfig, search
from cuvee.recipes.stores import open_store
from cuvee.training.model import PRESETS

VARIANTS = ("scarce", "clean", "junk", "misset", "skills", "copies", "tiny")
TARGETS = ("code_python", "german", "medicine")
METHODS = (
    "natural",
    "uniform",
    "even",
    "late",
    "gain",
    "odm",
    "doge",
    "ado",
    "ac_odm",
    "ac_odm_noise",
    "hds",
    "hds_noise",
    "gain_proxy",
    "ac_odm_proxy",
)
OPTIONS: dict[str, dict[str, str]] = {
    "ac_odm_noise": {"name": "ac_odm", "reward": "random"},
    "hds_noise": {"name": "hds", "reward": "random"},
}
PROXIES = {"gain_proxy": "gain", "ac_odm_proxy": "ac_odm"}
AGENTS = ("ac_odm", "hds")


# --------------------------------------------------------------------------------------------- runs


class Bench:
    """One variant: trains methods and paths through `compare`, each once whatever happens."""

    def __init__(
        self, corpus: Corpus, folder: Path, variant: str, out: Path, options: argparse.Namespace
    ) -> None:
        self.corpus, self.variant, self.out, self.options = corpus, variant, out, options
        self.common: dict[str, Any] = {
            "corpus": str(folder),
            "model": options.model,
            "store": str(out / "runs.db"),
            "out": str(out / "runs"),
            "name": f"online-{variant}",
            "checkpoint_every": 50,
            "train": {
                "steps": options.steps,
                "batch_size": options.batch_size,
                "sequence_length": 128,
                "learning_rate": 1e-2,
                "interval": 4,
                "validate_every": max(1, options.steps // 80),  # twenty times
                "validation_tokens": 4096,
            },
        }
        self.target = target_of(variant) or (self.smallest if variant == "tiny" else None)
        if self.target:
            self.common["guard"] = {"epochs": {self.target: options.epochs}}
        if variant.startswith(SCARCE):
            self.common["objective"] = {self.target: 1.0}
        if POOL in corpus.names:
            self.common["objective"] = {POOL: 1.0}
            self.common["guard"] = {"ceiling": {POOL: 0.0}}
            self.common["train"]["validation_tokens"] = 32_768
        self.shares_K = natural_K(corpus.domains)

    @property
    def smallest(self) -> str:
        return min(self.corpus.domains, key=lambda domain: domain.tokens).name

    def proxy(self, label: str, seed: int) -> dict[str, str]:
        """What a method learned on models of half the width, as an entry of a comparison."""
        narrow = {"hidden_size": 16, "intermediate_size": 32, "initializer_range": 0.16}
        method = {"name": PROXIES[label], "mode": "proxy", "proxies": self.options.proxies}
        config = parse(
            SearchConfig,
            {
                **self.common,
                "name": f"{label}-{self.variant}-{seed}",
                "model": {**PRESETS[self.options.model], **narrow},
                "method": method if label == "gain_proxy" else {**method, "seed": seed},
                "seed": 1000 + seed,
            },
            "the benchmark",
        )
        return {"policy": str(search(config)), "label": label}

    def train(self, methods: Sequence[Any], seeds: Sequence[int]) -> dict[str, dict[int, Run]]:
        """Runs by label and seed."""
        config = parse(
            CompareConfig,
            {**self.common, "methods": list(methods), "seeds": list(seeds)},
            "the benchmark",
        )
        runs: dict[str, dict[int, Run]] = {}
        for run in compare(config, resume=True, workers=self.options.workers):
            runs.setdefault(label_of(run), {})[run.seed] = run
        return runs


def label_of(run: Run) -> str:
    method = run.config.get("method")
    return str(method["label"] if method else run.config["policy"])


def losses_of(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Optimizer steps (T,) of validations, and losses (T, V) of the domains that are validated."""
    measured = [
        (s.step, s.probes["valid_loss"]) for s in run.trajectory.signals if "valid_loss" in s.probes
    ]
    return np.array([step for step, _ in measured]), np.stack(
        [loss.values[loss.present] for _, loss in measured]
    )


def final_loss(run: Run) -> float:
    """Mean over the domains of the loss on the test split, else on validation text."""
    tested = run.trajectory.last.probes.get("test_loss")
    if tested is not None and tested.present.any():
        return float(tested.values[tested.present].mean())
    return float(losses_of(run)[1][-1].mean())


# ------------------------------------------------------------------------------------------ methods


def run_methods(bench: Bench) -> dict[str, dict[int, Run]]:
    """All methods on all seeds; each seed has a proxy of its own."""
    runs: dict[str, dict[int, Run]] = {}
    for seed in range(bench.options.seeds):
        entries: list[Any] = [
            bench.proxy(label, seed)
            if label in PROXIES
            else {**OPTIONS.get(label, {"name": label}), "label": label}
            for label in bench.options.methods
        ]
        for label, by_seed in bench.train(entries, [seed]).items():
            runs.setdefault(label, {}).update(by_seed)
    return runs


# --------------------------------------------------------------------------------------------- room


def explore(
    bench: Bench, runs: dict[str, dict[int, Run]]
) -> tuple[dict[str, dict[int, Run]], set[str]]:
    """Runs of seed 0 along paths, and the best two of each kind on all seeds, by name and seed.

    Also returns the names of the static mixtures. A guard may change what they play at a cap.
    """
    names, rng = bench.corpus.names, np.random.default_rng(0)
    trials: list[Trial] = []
    found: dict[str, dict[int, Run]] = {}

    def entry(name: str, start_K: np.ndarray, end_K: np.ndarray) -> dict[str, Any]:
        ends = ((0.0, start_K), (1.0, end_K))
        points = [
            [at, dict(zip(names, np.round(end, 6).tolist(), strict=True))] for at, end in ends
        ]
        return {"name": "schedule", "points": points, "label": name}

    def attempt(paths: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
        done = bench.train([entry(*path) for path in paths], [0])
        for name, start_K, end_K in paths:
            found[name] = done[name]
            trials.append(Trial(name, start_K, end_K, final_loss(done[name][0])))

    valued_K = np.array([float(bench.corpus.has(name, "valid")) for name in names])
    if POOL in names:  # nothing says which domains count
        valued_K = np.ones(len(names))
    first = by_hand(bench.shares_K, np.ones(len(names)) if bench.target else valued_K)
    for label in runs:
        if is_static(runs[label][0]):
            continue
        first += by_example(label, runs[label][0].trajectory.weights_TK())
    attempt(first)
    for start in range(0, bench.options.trials, 4):
        number = min(4, bench.options.trials - start)
        paths = next_paths(trials, number, rng)
        attempt([(f"search-{start + i:02d}", *path) for i, path in enumerate(paths)])
    ranked = sorted(trials, key=lambda trial: trial.loss)
    static = [trial for trial in ranked if trial.is_static][:2]
    finalists = {trial.name: trial for trial in [*static, *ranked[:2]]}
    again = bench.train(
        [entry(t.name, t.start_K, t.end_K) for t in finalists.values()], range(bench.options.seeds)
    )
    for name, by_seed in again.items():
        found[name] = by_seed
    return found, {trial.name for trial in trials if trial.is_static}


# ------------------------------------------------------------------------------------------ figures


Losses = dict[str, dict[int, float]]
"""By label and seed."""


def report(
    bench: Bench,
    runs: dict[str, dict[int, Run]],
    paths: dict[str, dict[int, Run]],
    static_paths: set[str],
) -> dict[str, Any]:
    seeds = range(bench.options.seeds)
    unseen = list(seeds)[1:] or list(seeds)
    everything = {**paths, **runs}
    loss: Losses = {
        label: {seed: final_loss(run) for seed, run in by_seed.items()}
        for label, by_seed in everything.items()
    }
    start = "even"
    if not bench.variant.startswith(SCARCE):
        start = min(("natural", "uniform"), key=lambda label: mean_of(loss[label], unseen))
    complete = [label for label in loss if set(loss[label]) >= set(seeds)]
    static = [
        label for label in complete if label in static_paths or is_static(everything[label][0])
    ]
    best = min(complete, key=lambda label: mean_of(loss[label], unseen))
    best_static = min(static, key=lambda label: mean_of(loss[label], unseen))
    room = {seed: loss[start][seed] - loss[best][seed] for seed in unseen}
    nats = mean_of(room, unseen)

    def minus(one: str, other: str) -> list[float | None] | None:
        if one not in loss or other not in loss:
            return None
        return interval([loss[one][seed] - loss[other][seed] for seed in unseen])

    def steps(one: str, other: str) -> list[float | None] | None:
        if other not in runs:
            return None
        ratios = [steps_ratio(runs[one][seed], runs[other][seed]) for seed in seeds]
        known = [ratio for ratio in ratios if ratio is not None]
        return interval(known) if len(known) == len(ratios) else None

    walls = {
        label: [wall_of(bench, runs[label][s]) / wall_of(bench, runs["uniform"][s]) for s in seeds]
        for label in runs
    }
    low_high = interval(list(room.values()))
    plain = runs["uniform"][0].cost
    per_token = plain.flops / plain.tokens
    return {
        "seeds": {"trained": len(seeds), "judged": len(unseen)},
        "room": {
            "nats": round(nats, 4),
            "ci95": low_high[1:] if low_high else None,
            "from": start,
            "to": best,
            "best_static": {"name": best_static, "loss": mean_of(loss[best_static], unseen)},
            "best_schedule": {"name": best, "loss": mean_of(loss[best], unseen)},
        },
        "vs_best_static": {label: minus(label, best_static) for label in runs},
        "vs_odm": {label: minus(label, "odm") for label in runs if label != "odm"},
        "vs_natural": {label: minus(label, "natural") for label in runs if label != "natural"},
        "share_of_room": {
            label: interval([(loss[start][s] - loss[label][s]) / nats for s in unseen])
            for label in runs
            if label != start and nats > 0
        },
        "agent_minus_gain": {label: minus(label, "gain") for label in AGENTS},
        "noise_minus_real": {label: minus(f"{label}_noise", label) for label in AGENTS},
        "steps_vs_odm": {label: steps(label, "odm") for label in runs if label != "odm"},
        "steps_vs_natural": {
            label: steps(label, "natural") for label in runs if label != "natural"
        },
        "wall_ratio": {label: interval(ratios) for label, ratios in walls.items()},
        "cost_tokens": {
            **{label: cost_of(runs[label], per_token) for label in runs},
            "everything": sum(cost_of(by_seed, per_token) for by_seed in everything.values()),
        },
        "final_loss": {label: round(mean_of(loss[label], unseen), 4) for label in complete},
    }


def mean_of(by_seed: dict[int, float], seeds: Sequence[int]) -> float:
    return float(np.mean([by_seed[seed] for seed in seeds]))


def interval(values: Sequence[float]) -> list[float | None] | None:
    """Return [mean, low, high] of a 95 % bootstrap over seeds, without bounds for one seed."""
    if not values:
        return None
    estimate = bootstrap_mean(values)
    bounds = (estimate.mean, estimate.low, estimate.high)
    return [None if bound is None else round(bound, 4) for bound in bounds]


def is_static(run: Run) -> bool:
    return bool(np.allclose(np.diff(run.trajectory.weights_TK(), axis=0), 0))


def cost_of(by_seed: dict[int, Run], flops_per_token: float) -> int:
    """What all seeds cost, with measuring and proxies, in training tokens of the same FLOPs."""
    proxies = sum(run.config.get("proxies", {}).get("flops", 0.0) for run in by_seed.values())
    flops = float(proxies + sum(run.cost.flops for run in by_seed.values()))
    return round(flops / flops_per_token)


def steps_ratio(ours: Run, theirs: Run) -> float | None:
    """Steps to the other's best validation loss, over the other's steps to it."""
    (our_steps, our_losses), (their_steps, their_losses) = losses_of(ours), losses_of(theirs)
    goal = float(their_losses.mean(axis=1).min())
    reached = steps_to_reach(our_steps, our_losses.mean(axis=1), goal)
    needed = steps_to_reach(their_steps, their_losses.mean(axis=1), goal)
    return None if reached is None or not needed else reached / needed


def wall_of(bench: Bench, run: Run) -> float:
    """Seconds from a run's creation to its end, with the agent's learning and all writing.

    For more than one attempt: the seconds of the last attempt's training.
    """
    with open_store(bench.common["store"]) as store:
        summary = store.summary(run.id)
    return summary.updated - summary.created if summary.attempts == 1 else summary.cost.seconds


def draw(bench: Bench, runs: dict[str, dict[int, Run]]) -> Path:
    """Mixtures over time, one panel a method, seed 0."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = list(runs)
    figure = make_subplots(rows=1, cols=len(shown), subplot_titles=shown, shared_yaxes=True)
    for column, label in enumerate(shown, 1):
        trajectory = runs[label][0].trajectory
        weights_TK, steps = (
            trajectory.weights_TK(),
            [signals.step for signals in trajectory.signals[1:]],
        )
        for k, name in enumerate(trajectory.names):
            line = {"width": 0.5, "color": f"hsl({360 * k // len(trajectory.names)}, 60%, 50%)"}
            figure.add_trace(
                go.Scatter(
                    x=steps,
                    y=weights_TK[:, k],
                    stackgroup=label,
                    name=name,
                    line=line,
                    showlegend=column == 1,
                ),
                row=1,
                col=column,
            )
    figure.update_layout(
        height=520,
        width=340 * len(shown),
        title=f"{bench.variant}: shares of domains, by optimizer step",
    )
    path: Path = bench.out / f"paths-{bench.variant}.html"
    figure.write_html(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="of the variant scarce")
    parser.add_argument("--target-bytes", type=int, default=150_000)
    parser.add_argument("--epochs", type=float, default=4.0, help="cap of a scarce domain")
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of 128 tokens a step")
    parser.add_argument("--seeds", type=int)
    parser.add_argument(
        "--trials",
        type=int,
        default=8,
        help="of the search for the room, after what is tried first",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--proxies", type=int, default=6, help="of each method that learns on them")
    parser.add_argument("--model", default="llama-0.1m")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if missing := {"natural", "uniform"} - set(options.methods):
        parser.error(
            f"--methods needs {' and '.join(sorted(missing))}: others are compared to them"
        )
    options.seeds = options.seeds or (5 if options.full else 3)
    options.trials = 24 if options.full and options.trials == 8 else options.trials
    chosen = options.variant or (VARIANTS if options.full else ("scarce", "junk"))
    variants = [
        name
        for variant in chosen
        for name in (
            [f"{SCARCE}{target}" for target in options.targets]
            if variant == "scarce"
            else [variant]
        )
    ]
    results = {}
    for variant in variants:
        began = time.perf_counter()
        corpus = prepare(options.corpus, variant, options.out, options.target_bytes)
        bench = Bench(corpus, options.out / "corpora" / variant, variant, options.out, options)
        runs = run_methods(bench)
        results[variant] = report(bench, runs, *explore(bench, runs))
        print(f"{variant}: {time.perf_counter() - began:.0f} s; {draw(bench, runs)}", flush=True)
        print(json.dumps({variant: results[variant]}, indent=1), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Online mixing on real text: natural, uniform, ODM, DoGE, AC-ODM (both modes) and HDS.

    python benchmarks/online.py --corpus DIR    clean and junk, 3 seeds; within an hour on two cores
    python benchmarks/online.py --corpus DIR --full --out DIR    all variants, 5 seeds; resumable
    python benchmarks/online.py --corpus DIR --variant tiny --steps 100 --seeds 1 --trials 4

DIR is a raw folder: {train,valid}/<domain>.jsonl.gz. Variants of it:

    clean    as given
    junk     six more domains, three of random tokens and three of machine boilerplate; these are
             not in validation
    copies   the third largest domain present under three names; validated under its own
    tiny     the domain of median size cut to 50,000 tokens, which may be read four times at most
             (`guard: {epochs: …}`)

All methods share a seed's model weights, order of each domain's data, budget and evaluation. The
result is the mean over domains of the final validation loss. The room (online_room.py) is the
distance from the better of natural and uniform to the best path found. `gain_of_room` is the share
of it that a method gains, over the seeds that the search did not use, if there are others.
`*_steps_vs_*` are the steps to the other's best validation loss, as a share of the other's steps;
null if a seed never reaches it. A proxy has half the width and the seed 1,000 + s; its cost is not
in the steps. `cost` has the tokens of everything. The last line printed is one JSON object by
variant. OUT/paths-VARIANT.html shows the mixtures over time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from online_room import Trial, by_example, by_hand, next_paths

from cuvee.core.domain import natural_K
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.evaluation.statistics import bootstrap_mean, steps_to_reach
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, parse
from cuvee.recipes.search import SearchConfig, search
from cuvee.recipes.stores import open_store
from cuvee.training.model import PRESETS

VARIANTS = ("clean", "junk", "copies", "tiny")
VOCABULARY = 1024  # of a small model the logits are most of the work
TINY_TOKENS, TINY_EPOCHS = 50_000, 4.0


# ------------------------------------------------------------------------------------------ corpora


def prepare(raw: Path, variant: str, out: Path) -> Corpus:
    """Build the variant's corpus below `out`, or open it if it exists.

    All variants share the tokenizer of `clean`.
    """
    source = out / "raw" / variant
    folder = out / "corpora" / variant
    if variant == "clean":
        return build([raw], folder, BuildSettings(vocab_size=VOCABULARY))
    clean = prepare(raw, "clean", out)
    if not source.exists():
        half_done = source.with_name(f"{variant}.part")
        shutil.rmtree(half_done, ignore_errors=True)
        for file in (
            file for file in raw.rglob("*") if file.is_file()
        ):  # without modes: DIR may be read-only
            copy = half_done / file.relative_to(raw)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        CHANGES[variant](half_done, clean)
        half_done.rename(source)
    tokenizer = out / "corpora" / "clean" / "tokenizer.json"
    return build([source], folder, BuildSettings(tokenizer=tokenizer))


def add_junk(folder: Path, clean: Corpus) -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789+/=_-#@ "
    makers: dict[str, Callable[[], str]] = {
        "junk-letters": lambda: "".join(rng.choices(letters, k=1500)),
        "junk-words": lambda: " ".join(
            "".join(rng.choices(letters[:26], k=rng.randint(2, 9))) for _ in range(250)
        ),
        "junk-hex": lambda: "\n".join(
            f"{rng.getrandbits(128):032x} {rng.getrandbits(64):016x}" for _ in range(30)
        ),
        "junk-log": lambda: "\n".join(_log_line(rng) for _ in range(25)),
        "junk-menu": lambda: " | ".join(rng.choices(_MENU, k=120)),
        "junk-notice": lambda: "\n".join(rng.choices(_NOTICES, k=15)),
    }
    for name, make in makers.items():
        write_documents(folder / "train" / f"{name}.jsonl.gz", [make() for _ in range(1_000)])


def copy_domain(folder: Path, clean: Corpus) -> None:
    largest = sorted(clean.domains, key=lambda domain: -domain.tokens)
    original = folder / "train" / f"{largest[2].name}.jsonl.gz"
    for again in ("again", "once-more"):
        shutil.copyfile(original, original.with_name(f"{largest[2].name}-{again}.jsonl.gz"))


def cut_domain(folder: Path, clean: Corpus) -> None:
    """The domain of median size keeps its first documents, 50,000 tokens of them."""
    domain = sorted(clean.domains, key=lambda domain: domain.tokens)[len(clean.domains) // 2]
    path, tokenizer, kept, tokens = (
        folder / "train" / f"{domain.name}.jsonl.gz",
        clean.tokenizer(),
        [],
        0,
    )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            kept.append(text)
            tokens += len(tokenizer.encode(text).ids) + 1
            if tokens >= TINY_TOKENS:
                break
    write_documents(path, kept)


CHANGES = {"junk": add_junk, "copies": copy_domain, "tiny": cut_domain}
_MENU = (
    "Home",
    "About us",
    "Contact",
    "Log in",
    "Register",
    "Cart (0)",
    "Next page",
    "Share",
    "Cookie settings",
    "Search",
)
_NOTICES = (
    "All rights reserved. No part of this page may be reproduced without written permission.",
    "This is an automatically generated message. Please do not reply to this address.",
    "Your privacy matters to us. By continuing to browse you accept the use of cookies.",
    "The content of this field is kept private and will not be shown publicly.",
    "Page generated in 0.031 seconds with 14 queries.",
)


def _log_line(rng: random.Random) -> str:
    level, code, port = (
        rng.choice(("INFO", "WARN", "DEBUG")),
        rng.choice((200, 204, 404, 500)),
        rng.randint(1024, 65535),
    )
    day = f"2024-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    at = f"{day}T{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}Z"
    return f"{at} {level} worker-{rng.randint(0, 99)} port={port} status={code}"


def write_documents(path: Path, texts: Sequence[str]) -> None:
    path.unlink(missing_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)


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
                "batch_size": 32,
                "sequence_length": 128,
                "learning_rate": 1e-2,
                "interval": 4,
                "validate_every": max(1, options.steps // 80),  # twenty times
                "validation_tokens": 4096,
            },
        }
        if variant == "tiny":
            self.common["guard"] = {"epochs": {self.smallest: TINY_EPOCHS}}
        self.shares_K = natural_K(corpus.domains)

    @property
    def smallest(self) -> str:
        return min(self.corpus.domains, key=lambda domain: domain.tokens).name

    def proxy(self, seed: int) -> dict[str, str]:
        """AC-ODM learned on a model of half the width, as an entry of a comparison."""
        narrow = {"hidden_size": 16, "intermediate_size": 32, "initializer_range": 0.16}
        common = {key: value for key, value in self.common.items() if key != "guard"}
        config = parse(
            SearchConfig,
            {
                **common,
                "name": f"proxy-{self.variant}-{seed}",
                "model": {**PRESETS[self.options.model], **narrow},
                "method": {"name": "ac_odm", "mode": "proxy", "seed": seed},
                "seed": 1000 + seed,
            },
            "the benchmark",
        )
        return {"policy": str(search(config)), "label": "ac_odm_proxy"}

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
    return float(losses_of(run)[1][-1].mean())


# ------------------------------------------------------------------------------------------ methods

METHODS = ("natural", "uniform", "odm", "doge", "ac_odm", "ac_odm_proxy", "hds")


def run_methods(bench: Bench) -> dict[str, dict[int, Run]]:
    """All methods on all seeds; each seed has a proxy of its own."""
    runs: dict[str, dict[int, Run]] = {}
    for seed in range(bench.options.seeds):
        entries = [*(name for name in METHODS if name != "ac_odm_proxy"), bench.proxy(seed)]
        for label, by_seed in bench.train(entries, [seed]).items():
            runs.setdefault(label, {}).update(by_seed)
    return runs


# --------------------------------------------------------------------------------------------- room


def explore(bench: Bench, runs: dict[str, dict[int, Run]]) -> dict[str, dict[int, Run]]:
    """Runs of seed 0 along paths, and the best two of each kind on all seeds, by name and seed."""
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
    first = by_hand(bench.shares_K, valued_K)
    for label in METHODS[2:]:
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
    return found


# ------------------------------------------------------------------------------------------ figures


def report(
    bench: Bench, runs: dict[str, dict[int, Run]], paths: dict[str, dict[int, Run]]
) -> dict[str, Any]:
    seeds = list(range(bench.options.seeds))
    unseen = seeds[1:] or seeds
    loss = {
        label: {seed: final_loss(run) for seed, run in by_seed.items()}
        for label, by_seed in {**paths, **runs}.items()
    }
    base = min(
        ("natural", "uniform"), key=lambda label: np.mean([loss[label][seed] for seed in unseen])
    )
    complete = [label for label in paths if set(loss[label]) >= set(seeds)]
    judged = {
        label: float(np.mean([loss[label][seed] for seed in unseen]))
        for label in [*complete, *runs]
    }
    is_static = {
        label: np.allclose(np.diff(paths[label][0].trajectory.weights_TK(), axis=0), 0)
        for label in complete
    }
    best_static = min((label for label in complete if is_static[label]), key=judged.__getitem__)
    best = min(judged, key=judged.__getitem__)
    room = {seed: loss[base][seed] - judged[best] for seed in unseen}
    mean_room = float(np.mean(list(room.values())))
    ci: dict[str, Any] = {}

    def figure(name: str, by_seed: dict[int, float | None]) -> float | None:
        values = [value for value in by_seed.values() if value is not None]
        if len(values) < len(by_seed) or not values:
            ci[name] = None
            return None
        estimate = bootstrap_mean(values)
        ci[name] = [estimate.low, estimate.high]
        return round(estimate.mean, 4)

    def steps(ours: str, theirs: str) -> dict[int, float | None]:
        return {seed: steps_ratio(runs[ours][seed], runs[theirs][seed]) for seed in seeds}

    others = [label for label in runs if label != "hds"]
    next_best = min(others, key=judged.__getitem__)
    result: dict[str, Any] = {
        "ac_odm_steps_vs_odm": figure("ac_odm_steps_vs_odm", steps("ac_odm", "odm")),
        "ac_odm_proxy_steps_vs_odm": figure(
            "ac_odm_proxy_steps_vs_odm", steps("ac_odm_proxy", "odm")
        ),
        "ac_odm_steps_vs_natural": figure("ac_odm_steps_vs_natural", steps("ac_odm", "natural")),
        "hds_steps_vs_next_best": figure("hds_steps_vs_next_best", steps("hds", next_best)),
        "hds_steps_vs_natural": figure("hds_steps_vs_natural", steps("hds", "natural")),
        "final_ppl_vs_odm": {
            label: figure(
                f"final_ppl_vs_odm.{label}",
                {s: float(np.exp(loss[label][s] - loss["odm"][s])) for s in seeds},
            )
            for label in METHODS
        },
        "gain_of_room": {
            label: figure(
                f"gain_of_room.{label}",
                {s: (loss[base][s] - loss[label][s]) / mean_room for s in unseen},
            )
            for label in METHODS[2:]
        },
        "room": {
            "nats": figure("room.nats", dict(room)),
            "from": base,
            "to": best,
            "best_static": best_static,
        },
        "vs_best_static": {
            label: figure(
                f"vs_best_static.{label}",
                {s: loss[label][s] - loss[best_static][s] for s in unseen},
            )
            for label in METHODS
        },
        "final_loss": {
            label: round(float(np.mean(list(loss[label].values()))), 4)
            for label in [*runs, *complete]
        },
        "next_best": next_best,
        "wall_overhead": figure(
            "wall_overhead",
            {
                s: wall_of(bench, runs["ac_odm"][s]) / wall_of(bench, runs["uniform"][s])
                for s in seeds
            },
        ),
        "cost": {
            "tokens": sum(
                run.cost.tokens
                for by_seed in {**paths, **runs}.values()
                for run in by_seed.values()
            )
        },
        "ci95": ci,
    }
    if bench.variant != "clean":
        unvalued = [
            k for k, name in enumerate(bench.corpus.names) if not bench.corpus.has(name, "valid")
        ]
        result["share_not_validated"] = {
            label: round(
                float(
                    np.mean(
                        [
                            run.trajectory.weights_TK()[:, unvalued].sum(1).mean()
                            for run in by_seed.values()
                        ]
                    )
                ),
                4,
            )
            for label, by_seed in runs.items()
        }
    return result


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

    shown = METHODS[2:]
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
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int)
    parser.add_argument(
        "--trials",
        type=int,
        default=8,
        help="of the search for the room, after what is tried first",
    )
    parser.add_argument("--model", default="llama-0.1m")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    options.seeds = options.seeds or (5 if options.full else 3)
    options.trials = 24 if options.full and options.trials == 8 else options.trials
    results = {}
    for variant in options.variant or (VARIANTS if options.full else VARIANTS[:2]):
        began = time.perf_counter()
        corpus = prepare(options.corpus, variant, options.out)
        bench = Bench(corpus, options.out / "corpora" / variant, variant, options.out, options)
        runs = run_methods(bench)
        paths = explore(bench, runs)
        results[variant] = report(bench, runs, paths)
        print(f"{variant}: {time.perf_counter() - began:.0f} s; {draw(bench, runs)}", flush=True)
        print(json.dumps({variant: results[variant]}, indent=1), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

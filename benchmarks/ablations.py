"""What each part of AC-ODM and HDS is worth: reward, critic, reward terms, proxy size, domains.

    python benchmarks/ablations.py --corpus DIR            about 20 minutes on two cores, 3 seeds
    python benchmarks/ablations.py --corpus DIR --tokens 5_000_000 --seeds 5 --out DIR
    python benchmarks/ablations.py --corpus DIR --only critic --tokens 20_000 --seeds 1

DIR is a raw folder: {train,valid}/<domain>.jsonl.gz. Each file of `examples/ablations/*.yaml`
defines one ablation; the budget and the seeds are those given here. Runs that several files name
are trained once. After an interruption, the same command resumes.

The loss is the final model's validation loss in nats per token, the mean over the domains of DIR,
also where domains were merged for training. Differences are paired by seed, with a 95 % bootstrap
interval: to `uniform` of the same model, and to the full method that the ablation reduces. Merged
domains need a line for every domain of DIR in `examples/ablations/maps`. A proxy's seed is 1,000
above its target's. FLOPs include those of the proxies. The last line printed is one JSON object by
ablation and label.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cuvee.core.trajectory import Run
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.label.labelers import ByMap
from cuvee.data.label.labels import label
from cuvee.evaluation.statistics import paired_difference
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, MethodChoice, PolicyChoice, load
from cuvee.recipes.config.yaml_file import read_yaml
from cuvee.recipes.search import SearchConfig, search
from cuvee.report.summary import method_label
from cuvee.training.loss import NextTokenLoss
from cuvee.training.model import build_model
from cuvee.training.validation import Validation

EXAMPLES = Path(__file__).parents[1] / "examples" / "ablations"
VOCABULARY = 1024  # of a small model the logits are most of the work
PROXY_SEED = 1000


@dataclass(frozen=True)
class Ablation:
    """A file of `examples/ablations`, the label of its full method, and its merging of domains."""

    file: str
    whole: str
    domains: str = ""


ABLATIONS = {
    "reward": Ablation("reward.yaml", "ac_odm"),
    "critic": Ablation("critic.yaml", "ac_odm"),
    "hds_terms": Ablation("hds_terms.yaml", "hds"),
    "domains_29": Ablation("domains_29.yaml", "ac_odm"),
    "domains_11": Ablation("domains_11.yaml", "ac_odm", "29_to_11"),
    "domains_5": Ablation("domains_5.yaml", "ac_odm", "29_to_5"),
    "proxy_size": Ablation("proxy_size_tiny.yaml", "ac_odm"),
}

Losses = dict[str, dict[int, float]]
"""By label and seed."""


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        self.corpus = build(
            [options.corpus], self.out / "corpora" / "all", BuildSettings(vocab_size=VOCABULARY)
        )

    def merged(self, way: str) -> Path | None:
        """The corpus with merged domains and the tokenizer of the whole corpus.

        None if the map lacks one of its domains.
        """
        place = EXAMPLES / "maps" / f"{way}.yaml"
        known = read_yaml(place)
        if missing := [name for name in self.corpus.names if name not in known]:
            print(f"left out: {place.name} has no line for {', '.join(missing)}", flush=True)
            return None
        label(
            [self.options.corpus],
            self.out / "text" / way,
            ByMap.of(known, str(place)),
            workers=self.options.workers,
        )
        tokenizer = self.corpus.folder / "tokenizer.json"
        return build(
            [self.out / "text" / way],
            self.out / "corpora" / way,
            BuildSettings(tokenizer=tokenizer),
        ).folder

    def overrides(self, corpus: Path, name: str) -> list[str]:
        """`name` is the same for all comparisons, so that what two of them ask for is one run."""
        return [
            f"corpus={corpus}",
            f"name={name}",
            f"train.tokens={self.options.tokens}",
            f"store={self.out / 'runs.db'}",
            f"out={self.out / 'runs'}",
            "checkpoint_every=50",
        ]

    def train(self, ablation: Ablation, corpus: Path) -> list[Run]:
        config = load(CompareConfig, EXAMPLES / ablation.file, self.overrides(corpus, "ablation"))
        seeds = tuple(range(self.options.seeds))
        if not any(isinstance(choice, PolicyChoice) for choice in config.methods):
            return self.compare(config, config.methods, seeds)
        wanted = [(choice, seed) for seed in seeds for choice in config.methods]
        with ThreadPoolExecutor(self.options.workers) as searches:
            methods = list(
                searches.map(lambda pair: self.learned(pair[0], pair[1], corpus), wanted)
            )
        count = len(config.methods)
        return [
            run
            for seed in seeds
            for run in self.compare(config, methods[seed * count : (seed + 1) * count], (seed,))
        ]

    def compare(
        self, config: CompareConfig, methods: Sequence[Any], seeds: tuple[int, ...]
    ) -> list[Run]:
        wanted = config.model_copy(update={"methods": tuple(methods), "seeds": seeds})
        return compare(wanted, resume=True, workers=self.options.workers)

    def learned(
        self, choice: MethodChoice | PolicyChoice, seed: int, corpus: Path
    ) -> MethodChoice | PolicyChoice:
        """Replace a policy path runs/SEARCH/policy by the policy of that search for this seed."""
        if isinstance(choice, MethodChoice):
            return choice
        name = choice.policy.parent.name
        overrides = [*self.overrides(corpus, f"{name}-s{seed}"), f"seed={PROXY_SEED + seed}"]
        return PolicyChoice(
            policy=search(load(SearchConfig, EXAMPLES / f"{name}.yaml", overrides)),
            label=choice.label,
        )

    def loss(self, run: Run) -> float:
        """The final model's, on the domains of the whole corpus."""
        model = build_model(self.out / "runs" / run.id / "model", self.corpus).eval()
        settings: Mapping[str, Any] = run.config["train"]
        rows, length = settings["batch_size"], settings["sequence_length"]
        pools = [
            self.corpus.pool(name, "valid") if self.corpus.has(name, "valid") else None
            for name in self.corpus.names
        ]
        judge = Validation(self.options.valid_tokens, length)
        sums_2K = judge.sums(NextTokenLoss(model), pools, torch.device("cpu"), rows, 0, 1).view(
            2, -1
        )
        seen_K = sums_2K[1] > 0
        return float((sums_2K[0, seen_K] / sums_2K[1, seen_K]).mean())


def against(losses: Losses, one: str, other: str) -> dict[str, Any] | None:
    difference = paired_difference(losses[one], losses[other]) if one != other else None
    if difference is None:
        return None
    return {"mean": round(difference.mean, 5), "ci95": [difference.low, difference.high]}


def measure(bench: Bench, name: str) -> dict[str, Any] | None:
    ablation = ABLATIONS[name]
    corpus = bench.merged(ablation.domains) if ablation.domains else bench.corpus.folder
    if corpus is None:
        return None
    runs = bench.train(ablation, corpus)
    losses: Losses = {}
    for run in runs:
        losses.setdefault(method_label(run.config), {})[run.seed] = bench.loss(run)
    found = {}
    print(
        f"\n{name:<28}{'loss':>9}{'to uniform':>12}{'95 % interval':>20}"
        f"{'to ' + ablation.whole:>12}",
        flush=True,
    )
    for one, by_seed in losses.items():
        spent = [
            run.cost.flops + run.config.get("proxies", {}).get("flops", 0.0)
            for run in runs
            if method_label(run.config) == one
        ]
        found[one] = {
            "loss": round(sum(by_seed.values()) / len(by_seed), 5),
            "to_uniform": against(losses, one, "uniform"),
            "to_whole": against(losses, one, ablation.whole),
            "flops": sum(spent) / len(spent),
            "by_seed": by_seed,
        }
        print(row(one, found[one]), flush=True)
    return found


def row(name: str, found: dict[str, Any]) -> str:
    uniform, whole = found["to_uniform"], found["to_whole"]
    low, high = uniform["ci95"] if uniform else (None, None)
    interval = f"{low:+.4f} {high:+.4f}" if low is not None and high is not None else ""
    cells = (f"{difference['mean']:+.4f}" if difference else "" for difference in (uniform, whole))
    return "{:<28}{:>9.4f}{:>12}{:>20}{:>12}".format(
        name, found["loss"], next(cells), interval, next(cells)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=600_000, help="of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=ABLATIONS, action="append")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--valid-tokens", type=int, default=8192, help="of each domain, for the final loss"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    found = {name: measure(bench, name) for name in options.only or ABLATIONS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

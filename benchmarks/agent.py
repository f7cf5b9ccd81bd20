"""Does the Data Mixing Agent, learned from small runs on real text, beat common mixtures?

    python benchmarks/agent.py --corpus DIR --questions FILE…           about 40 minutes on one core
    python benchmarks/agent.py --corpus DIR --questions FILE… --full    more proxies and seeds,
                                                                        longer runs, larger models
    python benchmarks/agent.py … --proxies 8 --seeds 1 --tokens 40000   a quick trial
    python benchmarks/agent.py --corpus DIR --regime scarce --target code_python
                                                   little text of the target: agent_scarce.py

DIR is a raw folder: {train,valid}/<domain>.jsonl.gz, and a table.json with the roles of domains (or
--target NAME). Question files are JSONL (docs/probes.md). The field of a question file is guessed
from its name; general=FILE, target=FILE or NAME=FILE sets it.

A base model is trained on the source field without every fourth source domain. The proxies of the
agent and those of RegMix start from it, under one data order, and are half as long as a target run.
Target runs have other data orders; all methods share the data order of a seed. Everything that
decides about mixtures sees the feedback half of the questions and of the validation documents. The
results are those of the other half, in nats per token: a side (source, target) is the mean of its
texts, by domain, and its questions, by file; the average is that of both sides. Lower is better.

    base            the base model
    target_only     naive
    natural         by tokens
    uniform         each domain alike
    random_walk     on the simplex
    share-0.3       a static target share, each field divided by its tokens
    regmix          fitted to as many static proxies
    sft             the agent after behaviour cloning
    agent           what `cuvee learn` writes, used unchanged
    actor           the agent's actor where the agent itself would use its fallback
    learned         the policy given by --policy
    ramp-0.8-0.2    a falling target share: shows the room, not a baseline
    ramp-0.2-0.8    a rising target share: likewise
    even-0.4        source domains alike: likewise

`avg_gain_vs_best_baseline` is the relative drop of the average against the baseline with the lowest
mean over seeds, chosen in hindsight. `source_retained` is 1 minus the relative rise of the source
side over the base. `target_gain` is the relative drop of the target side. `source_tokens_saved` is
the share of that baseline's source tokens that the agent did not need. Transfers, without new
learning, against the best static share: `source`, the held-out source domains (and a base model of
them); `model`, a GPT-NeoX base; `space`, the same text as two domains; `field`, another target.
`rank_correlation` is Spearman's ρ over static mixtures between the feedback of proxies and the
results of target runs. `room` is the distance from the best static mixture to the best of all.
`cost` has all training tokens, without probes. The last line printed is one JSON object. The same
command resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import agent_scarce
import numpy as np
from agent_parts import Field, Material, Verdict, evaluate

from cuvee.core.domain import divided_shares
from cuvee.core.errors import PolicyError
from cuvee.core.trajectory import Run
from cuvee.data.label.labelers import ByRole
from cuvee.evaluation.ranks import rank_correlation
from cuvee.evaluation.statistics import bootstrap_mean
from cuvee.learning.history_learning import learn
from cuvee.learning.learn_settings import LearnSettings
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import load_policy, read_provenance, save_policy
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, TrainConfig, parse
from cuvee.recipes.search import SearchConfig, logged_runs, run_proxies, search
from cuvee.recipes.search import learn as learn_from_search
from cuvee.recipes.train import train

BATCH, LENGTH, INTERVALS = 32, 128, 20
SHARES = (0.1, 0.3, 0.5, 0.7)
LEARNED = ("agent", "actor", "sft", "learned")
TRANSFERS = ("field", "space", "source", "model")
FIRST_SEED = 100  # proxies have data order 0, target runs have others
FITTED = ("regmix", "sizes")  # runs whose validation losses are used


class Bench:
    """Trains and judges, each thing once whatever happens."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.unsaid: dict[str, str] = {}
        self.spent: dict[str, int] = {}
        self._counted: dict[str, dict[str, int]] = {}  # tokens by run, by part
        self.common: dict[str, Any] = {}  # settings of mixed runs and proxies, by section

    def base(self, field: Field, model: str) -> Path:
        """A model of the source field alone."""
        return self.model_of(self.base_run(field, model, model))

    def base_run(self, field: Field, model: str | Mapping[str, Any], called: str) -> Run:
        config = self._config(field, model, self.options.base_tokens, "base", rate=1e-2)
        run = train(
            parse(TrainConfig, {**config, "method": "source_only"}, "the benchmark"), resume=True
        )
        self.spent[f"base {field.name} {called}"] = run.cost.tokens
        return run

    def model_of(self, run: Run) -> Path:
        path: Path = self.out / "runs" / run.id / "model"
        return path

    def _config(
        self,
        field: Field,
        model: Path | str | Mapping[str, Any],
        tokens: int,
        name: str,
        rate: float | None = None,
    ) -> dict[str, Any]:
        return {
            "corpus": str(field.folder),
            "model": str(model) if isinstance(model, Path) else model,
            "store": str(self.out / "runs.db"),
            "out": str(self.out / "runs"),
            "name": name,
            "checkpoint_every": 20,
            "train": {
                "tokens": tokens,
                "batch_size": BATCH,
                "sequence_length": LENGTH,
                "learning_rate": rate or self.options.rate,
                "interval": max(1, tokens // (BATCH * LENGTH) // INTERVALS),
                "validate_every": 0,
                "validation_tokens": 4096 if name in FITTED else 1024,
            },
        }

    def _with_common(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, **{k: {**config.get(k, {}), **v} for k, v in self.common.items()}}

    def searching(
        self, field: Field, base: Path, method: Mapping[str, Any], name: str
    ) -> SearchConfig:
        config = self._with_common(self._config(field, base, self.options.tokens // 2, name))
        return parse(SearchConfig, {**config, "method": dict(method)}, "the benchmark")

    def compared(
        self,
        field: Field,
        base: Path,
        entries: Sequence[Any],
        seeds: int,
        tokens: int | None = None,
        name: str = "",
        first_seed: int = FIRST_SEED,
    ) -> dict[str, dict[int, Run]]:
        """Runs by label and seed."""
        config = self._config(
            field, base, tokens or self.options.tokens, name or f"on-{field.name}"
        )
        config = self._with_common(config)
        config |= {"methods": list(entries), "seeds": [first_seed + seed for seed in range(seeds)]}
        if any(entry.get("label") in LEARNED for entry in entries if isinstance(entry, dict)):
            share = (
                self.options.share * self.options.tokens / 2 / config["train"]["tokens"]
            )  # equally many questions
            config["evaluation"] = {**field.feedback, "share": share}
        runs: dict[str, dict[int, Run]] = {}
        for run in compare(parse(CompareConfig, config, "the benchmark"), resume=True):
            runs.setdefault(label_of(run), {})[run.seed] = run
        part = f"{config['name']}, {Path(base).parent.name}"
        counted = self._counted.setdefault(part, {})  # a part may be trained in several calls
        counted |= {
            run.id: run.cost.tokens for by_seed in runs.values() for run in by_seed.values()
        }
        self.spent[part] = sum(counted.values())
        return runs

    def judged(
        self, field: Field, runs: Mapping[str, Mapping[int, Run]]
    ) -> dict[str, dict[int, Verdict]]:
        return {
            label: {seed: self._judge(field, run.id, field.judged) for seed, run in by_seed.items()}
            for label, by_seed in runs.items()
        }

    def _judge(
        self, field: Field, run_id: str, files: Mapping[str, Sequence[str]], cache: str = "judged"
    ) -> Verdict:
        model = self.out / "runs" / run_id / "model"
        return evaluate(
            model, field.corpus, files, self.out / cache / f"{run_id}-{field.name}.json"
        )

    def by_feedback(self, field: Field, run: Run) -> Verdict:
        """By all the texts and questions of the feedback half."""
        files = {
            f"{'source' if name == 'general' else 'target'}/text/all": paths
            for name, paths in field.feedback.items()
        }
        return self._judge(field, run.id, files, "feedback")

    def judge_base(self, field: Field, base: Path) -> Verdict:
        return self._judge(field, base.parent.name, field.judged)


def label_of(run: Run) -> str:
    method = run.config.get("method")
    return str(method["label"] if method else run.config["policy"])


# ---------------------------------------------------------------------------------------- the agent


def agent_method(bench: Bench, field: Field) -> dict[str, Any]:
    return {
        "name": "data_mixing_agent",
        "evaluation": field.feedback,
        "share": bench.options.share,
        "proxies": bench.options.proxies,
        "agent": json.loads(bench.options.agent),
    }


def learned_policies(bench: Bench, field: Field, base: Path) -> tuple[dict[str, Path], float]:
    """Folders of "agent", "sft" and, where the agent would use its fallback, "actor"; seconds
    of learning."""
    config = bench.searching(field, base, agent_method(bench, field), "dma")
    runs = run_proxies(config)
    bench.spent["proxies of the agent"] = sum(run.cost.tokens for run in runs)
    folders = {name: bench.out / "policies" / name for name in ("agent", "sft")}
    if not (folders["agent"] / "diagnostics.html").exists():
        result = learn_from_search(config, folders["agent"], observer=None)
        print("learned:", *result.verdict, sep="\n  ", flush=True)
    if not folders["sft"].exists():
        method: Any = config.method.build(config.seed)
        settings = LearnSettings.of({**method.agent, "updates": 0})
        cloned = learn(logged_runs(config), Feedback(method.weight), settings, config.seed).policy
        save_policy(folders["sft"], acting(cloned))
    if bench.options.policy:
        folders["learned"] = bench.options.policy
    agent: Any = load_policy(folders["agent"])
    if not agent.supported:
        folders["actor"] = bench.out / "policies" / "actor"
        if not folders["actor"].exists():
            save_policy(folders["actor"], acting(agent))
    return folders, float(read_provenance(folders["agent"])["learning"]["seconds"])


def acting(policy: HistoryPolicy) -> HistoryPolicy:
    """The network itself, whatever off-policy evaluation said of it."""
    bare = HistoryPolicy(**{**policy.settings(), "support": None})
    bare.load_state_dict(policy.state_dict())
    return bare


def carried(bench: Bench, policies: Mapping[str, Path], to: Field) -> list[dict[str, str]]:
    """Entries of a comparison on `to`."""
    entries = []
    for label, folder in policies.items():
        policy: Any = load_policy(folder)
        copy = HistoryPolicy(
            **{**policy.settings(), "evaluation": None}
        )  # questions belong to the run
        copy.load_state_dict(policy.state_dict())
        place = bench.out / "policies" / f"{label}-on-{to.name}"
        save_policy(place, copy, read_provenance(folder))
        entries.append({"policy": str(place), "label": label})
    return entries


# ---------------------------------------------------------------------------------------- baselines


def target_share(field: Field, share: float) -> dict[str, Any]:
    """A static mixture: each field by its tokens."""
    return {
        "name": "given",
        "weights": divided_shares(field.corpus.domains, share),
        "label": f"share-{share:g}",
    }


def even(field: Field, share: float) -> dict[str, Any]:
    """A static mixture: the domains of each field alike."""
    weights = divided_shares(field.corpus.domains, share, flatness=1.0)
    return {"name": "given", "weights": weights, "label": f"even-{share:g}"}


def sweep(field: Field, shares: Sequence[float] = SHARES) -> list[dict[str, Any]]:
    return [target_share(field, share) for share in shares]


def static_entries(field: Field) -> list[Any]:
    return ["target_only", "natural", "uniform", *sweep(field)]


def ramps(field: Field) -> list[dict[str, Any]]:
    """Manual schedules that show the value of moving: the target share falls or rises."""
    ends = {share: target_share(field, share)["weights"] for share in (0.2, 0.8)}
    pairs = ((0.8, 0.2), (0.2, 0.8))
    return [
        {
            "name": "schedule",
            "points": [[0.0, ends[start]], [1.0, ends[end]]],
            "label": f"ramp-{start:g}-{end:g}",
        }
        for start, end in pairs
    ]


def regmix(bench: Bench, field: Field, base: Path) -> list[dict[str, str]]:
    """An entry of a comparison, or none and the reason in `unsaid`."""
    method = {
        "name": "regmix",
        "proxies": bench.options.regmix_proxies,
        "fit": "gaussian_process",
        "objective": "source_target",
        "tokens": bench.options.tokens,
    }
    config = bench.searching(field, base, method, "regmix")
    bench.spent["proxies of RegMix"] = sum(run.cost.tokens for run in run_proxies(config))
    try:
        return [{"policy": str(search(config)), "label": "regmix"}]
    except PolicyError as error:
        bench.unsaid["regmix"] = str(error)
        return []


# ------------------------------------------------------------------------------------------ figures


def averages(verdicts: Mapping[str, Mapping[int, Verdict]]) -> dict[str, dict[int, float]]:
    return {
        label: {seed: one.average for seed, one in by_seed.items()}
        for label, by_seed in verdicts.items()
    }


def mean_of(by_seed: Mapping[int, float]) -> float:
    return float(np.mean(list(by_seed.values())))


def best_of(average: Mapping[str, Mapping[int, float]], labels: Sequence[str]) -> str:
    return min(labels, key=lambda label: mean_of(average[label]))


NO_BASELINES = (*LEARNED, "ramp-0.8-0.2", "ramp-0.2-0.8", "even-0.4")


class Figures:
    """Estimates over seeds, with their intervals apart."""

    def __init__(self) -> None:
        self.ci95: dict[str, Any] = {}

    def __call__(self, name: str, values: Sequence[float]) -> float:
        estimate = bootstrap_mean(values)
        low, high = estimate.low, estimate.high
        self.ci95[name] = None if low is None or high is None else [round(low, 5), round(high, 5)]
        return round(estimate.mean, 5)

    def gains(
        self, name: str, average: Mapping[str, Mapping[int, float]], ours: str, theirs: str
    ) -> float:
        """Relative drop of the average, seed by seed."""
        seeds = sorted(set(average[ours]) & set(average[theirs]))
        return self(name, [1 - average[ours][seed] / average[theirs][seed] for seed in seeds])


def main_figures(
    bench: Bench, field: Field, base: Path, runs: Mapping[str, Mapping[int, Run]], figures: Figures
) -> dict[str, Any]:
    verdicts, of_base = bench.judged(field, runs), bench.judge_base(field, base)
    average = averages(verdicts)
    baselines = [label for label in average if label not in NO_BASELINES]
    static = [label for label in baselines if label != "random_walk"]
    best, best_static, best_of_all = (
        best_of(average, baselines),
        best_of(average, static),
        best_of(average, [*average]),
    )
    agent, theirs = verdicts["agent"], runs[best]
    saved = [
        1 - source_tokens(run) / read
        for seed, run in runs["agent"].items()
        if (read := source_tokens(theirs[seed]))
    ]
    if not saved:
        bench.unsaid["source_tokens_saved"] = f"{best} reads no source text"
    return {
        "avg_gain_vs_best_baseline": figures.gains(
            "avg_gain_vs_best_baseline", average, "agent", best
        ),
        "best_baseline": best,
        "gain_by_method": {
            label: figures.gains(f"gain.{label}", average, label, best) for label in average
        },
        "source_retained": figures(
            "source_retained", [2 - one.source / of_base.source for one in agent.values()]
        ),
        "target_gain": figures(
            "target_gain", [1 - one.target / of_base.target for one in agent.values()]
        ),
        "source_tokens_saved": figures("source_tokens_saved", saved) if saved else None,
        "accuracy": accuracy_above_chance(verdicts, ["agent", best]),
        "room": {
            "from": best_static,
            "to": best_of_all,
            "gain": figures.gains("room", average, best_of_all, best_static),
        },
        "nats": {
            "base": [round(of_base.source, 4), round(of_base.target, 4)],
            **{label: sides_of(by_seed) for label, by_seed in verdicts.items()},
        },
        "target_shares": {label: path_of(by_seed) for label, by_seed in runs.items()},
    }


def sides_of(by_seed: Mapping[int, Verdict]) -> list[float]:
    """Mean nats a token of source and target."""
    return [
        round(float(np.mean([getattr(one, side) for one in by_seed.values()])), 4)
        for side in ("source", "target")
    ]


def path_of(by_seed: Mapping[int, Run]) -> list[float]:
    """Target share in the first, middle and last tenth of the run, mean over seeds."""
    shares_NT = np.stack([target_weights(run) for run in by_seed.values()])
    tenth = max(1, shares_NT.shape[1] // 10)
    middle = shares_NT.shape[1] // 2
    parts = (shares_NT[:, :tenth], shares_NT[:, middle : middle + tenth], shares_NT[:, -tenth:])
    return [round(float(part.mean()), 3) for part in parts]


def target_weights(run: Run) -> np.ndarray:
    is_target = [domain.is_target for domain in run.trajectory.domains]
    return np.asarray(run.trajectory.weights_TK()[:, is_target].sum(axis=1))


def source_tokens(run: Run) -> float:
    drawn = [signals.tokens_K for signals in run.trajectory.signals[1:]]
    is_source = [not domain.is_target for domain in run.trajectory.domains]
    return float(np.sum(drawn, axis=0)[is_source].sum())


def accuracy_above_chance(
    verdicts: Mapping[str, Mapping[int, Verdict]], labels: Sequence[str]
) -> dict[str, Any] | None:
    """By question file where each of `labels` is above chance."""
    said: dict[str, Any] = {}
    for name in next(iter(verdicts[labels[0]].values())).accuracy:
        means = {
            label: np.mean([one.accuracy[name] for one in verdicts[label].values()], axis=0)
            for label in labels
        }
        if all(right > least for right, least in means.values()):
            said[name] = {label: round(float(right), 4) for label, (right, _) in means.items()}
    return said or None


def ranks(
    bench: Bench, field: Field, base: Path, average: Mapping[str, Mapping[int, float]]
) -> dict[str, Any]:
    """Static mixtures at the proxies' size, by the feedback half, against results of target
    runs."""
    short = bench.options.tokens // 2
    runs = bench.compared(field, base, static_entries(field), 1, tokens=short, name="proxy-static")
    found = {
        label: bench.by_feedback(field, run).average
        for label, by_seed in runs.items()
        for run in by_seed.values()
    }
    labels = sorted(set(found) & set(average))
    return {
        "tokens": short,
        "mixtures": len(labels),
        **ranked([found[label] for label in labels], [mean_of(average[label]) for label in labels]),
    }


def ranked(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Spearman's ρ of two measurements of the same mixtures, with its interval over mixtures."""
    estimate = rank_correlation(first, second)
    return {
        "value": round(estimate.value, 4),
        "interval": [round(estimate.low, 4), round(estimate.high, 4)],
    }


# --------------------------------------------------------------------------------------------- main


def run_all(bench: Bench, material: Material) -> None:
    """Prints what is known so far after each part, with null for what is not."""
    options, figures, started = bench.options, Figures(), time.perf_counter()
    result: dict[str, Any] = {"transfer": dict.fromkeys(TRANSFERS), "rank_correlation": {}}

    def log(what: str) -> None:
        print(f"{time.perf_counter() - started:7.0f} s  {what}", flush=True)

    def say(parts: Mapping[str, Any]) -> None:
        result.update(parts)
        spent = {"tokens": sum(bench.spent.values()), **bench.spent}
        print(
            json.dumps({**result, "cost": spent, "ci95": figures.ci95, "unsaid": bench.unsaid}),
            flush=True,
        )

    field = material.field("main", material.sources, material.target)
    log(f"main: {len(field.sources)} source domains and {field.target}")
    base = bench.base(field, options.model)
    entries = [
        *static_entries(field),
        "random_walk",
        *ramps(field),
        even(field, 0.4),
        *regmix(bench, field, base),
    ]
    log("base model and RegMix")
    without_agent = averages(bench.judged(field, bench.compared(field, base, entries, 1)))
    log(
        "without the agent: "
        f"{json.dumps({label: round(mean_of(one), 4) for label, one in without_agent.items()})}"
    )
    policies, seconds = learned_policies(bench, field, base)
    entries += carried(bench, policies, field)
    log("agent")
    say(
        {
            **main_figures(bench, field, base, bench.compared(field, base, entries, 1), figures),
            "agent_seconds": seconds,
        }
    )
    details: dict[str, Any] = {}
    for name in TRANSFERS:
        details[name] = transfer(bench, material, name, field, base, policies, figures)
        log(f"transfer {name}: {json.dumps(details[name])}")
    gains = {name: None if one is None else one["gain"]["agent"] for name, one in details.items()}
    say({"transfer": gains, "transfer_details": details})
    if options.seeds > 1:
        runs = bench.compared(field, base, entries, options.seeds)
        say(main_figures(bench, field, base, runs, figures))
    average = averages(bench.judged(field, bench.compared(field, base, entries, options.seeds)))
    say({"rank_correlation": {"proxies": ranks(bench, field, base, average)}})


def transfer_to(
    bench: Bench, material: Material, name: str, field: Field, base: Path
) -> tuple[Field, Path] | str:
    """What is trained on and from which model, or why that cannot be."""
    match name:
        case "field":
            if not material.other_target:
                return "the corpus has one target domain"
            return material.field("other", material.sources, material.other_target), base
        case "space":
            return material.field("space", material.sources, material.target, ByRole()), base
        case "source":
            if not material.unseen:
                return "too few source domains to keep some away"
            unseen = material.field("unseen", material.unseen, material.target)
            return unseen, bench.base(unseen, bench.options.model)
        case _:
            return field, bench.base(field, bench.options.other_model)


def transfer(
    bench: Bench,
    material: Material,
    name: str,
    learned_on: Field,
    base: Path,
    policies: Mapping[str, Path],
    figures: Figures,
) -> dict[str, Any] | None:
    """Figures of one transfer: the agent against the best static share."""
    options, found = bench.options, transfer_to(bench, material, name, learned_on, base)
    if isinstance(found, str):
        bench.unsaid[f"transfer.{name}"] = found
        return None
    field, start = found
    played = {label: folder for label, folder in policies.items() if label != "sft"}
    entries = [*sweep(field, SHARES[1:]), *carried(bench, played, field)]
    seeds = options.transfer_seeds
    runs = bench.compared(field, start, entries, seeds, options.transfer_tokens, name=f"to-{name}")
    average = averages(bench.judged(field, runs))
    best = best_of(average, [label for label in average if label not in NO_BASELINES])
    return {
        "gain": {
            label: figures.gains(f"transfer.{name}.{label}", average, label, best)
            for label in played
        },
        "best_baseline": best,
        "nats": {label: round(mean_of(one), 4) for label, one in average.items()},
        "target_shares": {label: path_of(by_seed) for label, by_seed in runs.items()},
    }


def common_options(description: str, questions: bool = True) -> argparse.ArgumentParser:
    """What `agent_checks.py` is asked too."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument(
        "--questions", nargs="+", action="extend", required=questions, metavar="[ABOUT=]FILE"
    )
    parser.add_argument(
        "--target", help="the target domain; by default the first one of table.json"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/agent"))
    parser.add_argument("--proxies", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument(
        "--tokens",
        type=int,
        help="of a target run; a proxy has half of them, a base model three times as many",
    )
    parser.add_argument(
        "--every",
        type=int,
        help="how manieth training document is kept: short runs read little of them",
    )
    parser.add_argument(
        "--share", type=float, default=0.3, help="of a proxy's cost that feedback may have"
    )
    parser.add_argument(
        "--rate", type=float, default=5e-3, help="learning rate after the base model"
    )
    parser.add_argument(
        "--kept-away", type=float, default=0.25, help="share of source domains for the transfer"
    )
    parser.add_argument("--model", default="llama-0.1m")
    parser.add_argument("--agent", default="{}", metavar="JSON", help="settings of learning")
    return parser


def main() -> None:
    parser = common_options(__doc__, questions=False)
    parser.add_argument("--regime", choices=("even", "scarce"), default="even")
    agent_scarce.add_options(parser)
    parser.add_argument("--regmix-proxies", type=int)
    parser.add_argument("--transfer-seeds", type=int)
    parser.add_argument(
        "--policy",
        type=Path,
        help='a learned policy from elsewhere, judged beside the others as "learned"',
    )
    parser.add_argument("--other-model", default="pythia-0.1m")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if options.regime == "scarce":
        agent_scarce.run_all(options)
        return
    if not options.questions:
        parser.error("the even regime needs --questions: proxies are asked them")
    sizes = {
        "proxies": (28, 128),
        "regmix_proxies": (20, 128),
        "seeds": (2, 5),
        "transfer_seeds": (1, 3),
        "tokens": (983_040, 3_276_800),
        "every": (4, 1),
    }
    for name, (quick, full) in sizes.items():
        setattr(options, name, getattr(options, name) or (full if options.full else quick))
    options.transfer_tokens = options.tokens if options.full else options.tokens // 2
    options.base_tokens = 3 * options.tokens
    bench = Bench(options)
    material = Material(
        options.corpus,
        options.out,
        options.questions,
        options.target,
        options.kept_away,
        options.every,
    )
    print(f"questions: {material.asked}", flush=True)
    run_all(bench, material)


if __name__ == "__main__":
    main()

"""Checks of the Data Mixing Agent's assumptions, one at a time.

    python benchmarks/agent_checks.py --check sizes --corpus DIR --questions FILE…
                                        do small proxies rank mixtures as target runs do?
    python benchmarks/agent_checks.py --check spaces --corpus DIR --questions FILE…
                                        what if the text is divided into other domains?
    python benchmarks/agent_checks.py --check conservatism --corpus DIR --questions FILE…
                                        what does the strength of CQL do?
    … --proxies 8 --seeds 1 --tokens 40000 --every 40 --out NEW
      --agent '{"bc_updates": 10, "updates": 20}'                                a quick trial

Corpus, questions, halves, runs and evaluation are those of `agent.py`. With the --out and --tokens
of `agent.py`, its base model, proxies and static target runs are reused. (--every belongs to an
--out: another value needs another folder.)

**sizes.** A base model of each of `--sizes` (hidden widths of `--model`, the rest in proportion, or
models by name) continues, half as long as a target run, under the same static mixtures: those of
`agent.py`, and random ones that give the target field a share from 0.05 to 0.95 and multiply each
domain of a field by a log-normal factor. Figures are Spearman's ρ over mixtures between a proxy's
result and the result of the target model (the last size, or `--target-model`) at full length on the
evaluation half: `feedback` for texts and questions of the feedback half, `valid_loss` for text
alone, to which RegMix is fitted. `regret` is how much worse the mixture that the proxies would
choose is than the best mixture. Proxies have one data order, target runs have others; `agreement`
is ρ between the first two orders of the target runs, which bounds what a proxy can reach. FLOPs are
those of training and validation.

**spaces.** The same text with other domains, under one base model and one evaluation: `2` by role,
`labelled` as given, `kmeans` topics found by words and `random` ones by a hash, both divided by
role. In each space an agent learns from its own proxies. Its `actor`, and what `agent` would play
where it lacks support, are compared with the best static target share there. Another space is
another order of the same text, so gains can be compared between spaces and nats cannot.

**conservatism.** From one set of proxies an agent learns with each `cql_ratio`. `kept` is the actor
that off-policy evaluation chooses, as `cuvee learn` does; `last` is the final actor. Both steer
target runs, unless they are the same network as another one (`same_as`: an agent that keeps its
first actor is `sft`). Gains are against the best static target share. `q_std` is the deviation of Q
between mixtures in one state at the end of learning, `q_doubt` the one between the twin critics.

Gains are relative drops of the average, paired by seed, with bootstrap intervals in `ci95` for two
seeds or more. The last line printed is one JSON object. The same command resumes after an
interruption.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from agent import (
    Bench,
    Figures,
    acting,
    agent_method,
    averages,
    best_of,
    common_options,
    mean_of,
    path_of,
    ranked,
    static_entries,
    sweep,
    target_share,
)
from agent_parts import Field, Material

from cuvee.core.state import digest
from cuvee.core.trajectory import Run
from cuvee.data.label.labelers import ByRandom, ByRole, Way
from cuvee.data.label.topics import ByTopics
from cuvee.learning.history_learning import Learned, learn
from cuvee.learning.learn_settings import LearnSettings
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import save_policy
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.recipes.config.schema import short_digest
from cuvee.recipes.reports.diagnosis import diagnose
from cuvee.recipes.search import logged_runs, run_proxies
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.model import PRESETS

TOKENS = {"sizes": 983_040, "spaces": 491_520, "conservatism": 983_040}
SPACES = ("2", "labelled", "kmeans", "random")
SAMPLE = 4000  # documents that topics are found in
FEWEST_MIXTURES = 12
FEWEST_PROXIES = 8  # that anything learns from
JUDGED = (
    "supported",
    "within_reach",
    "value",
    "gain",
    "gain_low",
    "gain_high",
    "over_static",
    "outside",
    "error",
)
Average = Mapping[str, Mapping[int, float]]
Parts = Iterator[dict[str, Any]]  # what is known after each step


# -------------------------------------------------------------------------------------------- sizes


def sized(preset: str, size: str) -> str | dict[str, Any]:
    """A model by its name, or the one of another hidden width that is otherwise in proportion."""
    if not size.isdigit():
        return size
    given = PRESETS[preset]
    ratio = int(size) / given["hidden_size"]
    if ratio == 1:
        return preset
    changed = {name: round(given[name] * ratio) for name in ("hidden_size", "intermediate_size")}
    return {**given, **changed, "initializer_range": given["initializer_range"] / math.sqrt(ratio)}


def mixtures(field: Field, count: int) -> list[Any]:
    """Manual static mixtures, and random ones: a target share, and factors within each field."""
    entries, domains = static_entries(field), field.corpus.domains
    for number in range(count - len(entries)):
        rng = np.random.default_rng([1, number])
        share, factors_K = rng.uniform(0.05, 0.95), np.exp(rng.standard_normal(len(domains)))
        weights = target_share(field, share)["weights"]
        tasted = {
            domain.name: weights[domain.name] * factor
            for domain, factor in zip(domains, factors_K, strict=True)
        }
        of_target = sum(tasted[domain.name] for domain in domains if domain.is_target)
        of_source = sum(tasted.values()) - of_target
        scale = {True: share / of_target, False: (1 - share) / of_source}
        given = {domain.name: tasted[domain.name] * scale[domain.is_target] for domain in domains}
        entries.append({"name": "given", "weights": given, "label": f"taste-{number:02}"})
    return entries


def valid_loss(run: Run) -> float:
    """Final validation loss in nats per token: the mean of the source's mean and the target's
    mean."""
    found, domains = run.trajectory.last.probes["valid_loss"], run.trajectory.domains
    sides: dict[bool, list[float]] = {True: [], False: []}
    for domain, loss, there in zip(domains, found.values, found.present, strict=True):
        if there:
            sides[domain.is_target].append(float(loss))
    return float(np.mean([np.mean(losses) for losses in sides.values()]))


def sizes(bench: Bench, material: Material, figures: Figures) -> Parts:
    options = bench.options
    field = material.field("main", material.sources, material.target)
    entries = mixtures(field, options.mixtures)
    target = options.target_model or options.sizes[-1]
    bases = {
        size: bench.base_run(field, sized(options.model, size), size)
        for size in dict.fromkeys([*options.sizes, target])
    }
    runs = bench.compared(field, bench.model_of(bases[target]), entries, options.seeds)
    average = averages(bench.judged(field, runs))
    labels, results = list(average), {label: mean_of(one) for label, one in average.items()}
    flops = sum(run.cost.flops for by_seed in runs.values() for run in by_seed.values())
    said: dict[str, Any] = {"mixtures": len(labels), "target": {"model": target, "flops": flops}}
    if options.seeds > 1:
        said["agreement"] = ranked(
            *([one[seed] for one in average.values()] for seed in sorted(average[labels[0]])[:2])
        )
    yield {**said, "nats": {label: round(value, 4) for label, value in results.items()}}
    best = min(results.values())
    by_size: dict[str, Any] = {}
    for size in options.sizes:
        base, tokens = bases[size], options.tokens // 2
        found = bench.compared(
            field, bench.model_of(base), entries, 1, tokens, "sizes", first_seed=0
        )
        proxies = {label: run for label, by_seed in found.items() for run in by_seed.values()}
        seen = {
            "feedback": {
                label: bench.by_feedback(field, run).average for label, run in proxies.items()
            },
            "valid_loss": {label: valid_loss(run) for label, run in proxies.items()},
        }
        by_size[size] = {
            **{
                name: {
                    **ranked(
                        [values[label] for label in labels], [results[label] for label in labels]
                    ),
                    "regret": round(results[min(values, key=values.__getitem__)] / best - 1, 5),
                }
                for name, values in seen.items()
            },
            "flops": sum(run.cost.flops for run in proxies.values()),
            "base_flops": base.cost.flops,
        }
        yield {"sizes": by_size}


# ----------------------------------------------------------------------------------------- learning


class Course(NamedTuple):
    """The result of learning: the actor that was kept, the last actor, and the logged runs."""

    learned: Learned
    last: HistoryPolicy
    runs: Sequence[Run]
    settings: LearnSettings

    @property
    def update(self) -> int:
        """The one whose actor was kept."""
        return int(self.learned.provenance["support"]["update"])

    def judged(self, update: int) -> dict[str, Any]:
        """Off-policy figures of the actor after so many updates."""
        entry = next(one for one in self.learned.evaluations if one["update"] == update)
        figures: Mapping[str, Any] = next(iter(entry["estimates"].values()), {})
        return {name: figures[name] for name in JUDGED if name in figures}

    def opinions(self) -> dict[str, float]:
        at_end = dataclasses.replace(self.learned, policy=self.last)
        return {
            name: round(float(values_T.mean()), 5)
            for view in diagnose(at_end, self.runs)
            for name, values_T in (("q_std", view.q_std_T), ("q_doubt", view.disagreement_T))
        }


def course(bench: Bench, field: Field, base: Path, **changed: Any) -> Course:
    """Train missing proxies, and learn. `changed` are settings that differ from those of
    `--agent`."""
    config = bench.searching(field, base, agent_method(bench, field), "dma")
    bench.spent[f"proxies on {field.name}"] = sum(run.cost.tokens for run in run_proxies(config))
    runs = logged_runs(config)
    settings = LearnSettings.of({**json.loads(bench.options.agent), **changed})
    key = short_digest({"runs": [run.id for run in runs], "settings": dataclasses.asdict(settings)})
    folder = bench.out / "courses" / key
    learned = learn(runs, Feedback(), settings, config.seed, folder)
    saved = Checkpoints(folder).latest()
    assert saved is not None, folder
    last, train_states = acting(learned.policy), saved[1]["learner"]["train_states"]
    last.load_state_dict(
        {
            name: train_states[name]["mean"] or train_states[name]["net"]
            for name in ("actor", "critic")
        }
    )
    return Course(learned, last, runs, settings)


def entry_of(bench: Bench, policy: HistoryPolicy, label: str) -> dict[str, str]:
    """Of a comparison: a folder for each network and each way of playing it."""
    key = short_digest({"settings": policy.settings(), "state": digest(policy.state_dict())})
    folder = bench.out / "policies" / f"check-{key}"
    if not folder.exists():
        save_policy(folder, policy)
    return {"policy": str(folder), "label": label}


def against_best(
    average: Average, figures: Figures, part: str, statics: Sequence[str]
) -> dict[str, Any]:
    best = best_of(average, statics)
    return {
        "best_baseline": best,
        "gain": {
            label: figures.gains(f"{part}.{label}", average, label, best)
            for label in average
            if label != best
        },
        "nats": {label: round(mean_of(one), 4) for label, one in average.items()},
    }


# ------------------------------------------------------------------------------------------- spaces


def space_of(material: Material, name: str, topics: int) -> Field:
    ways: dict[str, Way] = {
        "2": ByRole(),
        "kmeans": ByTopics(topics, 0, SAMPLE),
        "random": ByRandom(topics, 0),
    }
    if name == "labelled":
        return material.field("main", material.sources, material.target)
    called = (
        "space" if name == "2" else f"space-{name}-{topics}"
    )  # `agent.py` has the first one too
    return material.field(called, material.sources, material.target, ways[name])


def spaces(bench: Bench, material: Material, figures: Figures) -> Parts:
    options, by_space = bench.options, {}
    topics = options.topics or max(
        2, round((len(material.sources) + 1) / 2)
    )  # each will have two roles
    base = bench.base(space_of(material, "labelled", topics), options.model)
    for name in options.spaces:
        field = space_of(material, name, topics)
        done = course(bench, field, base)
        agent = done.learned.policy
        entries = [*sweep(field), entry_of(bench, agent, "agent")]
        if not agent.supported:
            entries.append(entry_of(bench, acting(agent), "actor"))
        runs = bench.compared(field, base, entries, options.seeds)
        average = averages(bench.judged(field, runs))
        returns = [float(Feedback()(run.trajectory).values[-1]) for run in done.runs]
        by_space[name] = {
            "domains": len(field.corpus.domains),
            "targets": sum(domain.is_target for domain in field.corpus.domains),
            **against_best(average, figures, name, [entry["label"] for entry in sweep(field)]),
            "plays": "actor" if agent.supported else "fallback",
            "off_policy": {"update": done.update, **done.judged(done.update)},
            "returns": [round(float(value), 5) for value in np.quantile(returns, [0, 0.5, 1])],
            "target_shares": {label: path_of(by_seed) for label, by_seed in runs.items()},
            "learning_seconds": round(done.learned.provenance["learning"]["seconds"], 1),
        }
        yield {"spaces": by_space}


# ------------------------------------------------------------------------------------- conservatism


def conservatism(bench: Bench, material: Material, figures: Figures) -> Parts:
    options = bench.options
    field = material.field("main", material.sources, material.target)
    base = bench.base(field, options.model)
    cloned = course(bench, field, base, updates=0)
    by_ratio: dict[str, Any] = {"sft": {"off_policy": cloned.judged(0)}}
    entries, first = [*sweep(field), "random_walk"], {}

    def play(label: str, policy: HistoryPolicy) -> str:
        """The label of the runs of this network."""
        key = digest(policy.state_dict()["actor"])
        if key not in first:
            first[key] = label
            entries.append(entry_of(bench, acting(policy), label))
        return first[key]

    play("sft", cloned.learned.policy)
    for ratio in options.ratios:
        done = course(bench, field, base, cql_ratio=ratio)
        last = done.learned.evaluations[-1]["update"]
        by_ratio[f"{ratio:g}"] = {
            "kept": {
                "update": done.update,
                "off_policy": done.judged(done.update),
                "same_as": play(f"kept-{ratio:g}", done.learned.policy),
            },
            "last": {
                "update": last,
                "off_policy": done.judged(last),
                "same_as": play(f"last-{ratio:g}", done.last),
            },
            **done.opinions(),
        }
        yield {"ratios": by_ratio}
    runs = bench.compared(field, base, entries, options.seeds)
    average = averages(bench.judged(field, runs))
    static = [entry["label"] for entry in sweep(field)]
    said = against_best(average, figures, "gain", static)
    yield {**said, "target_shares": {label: path_of(by_seed) for label, by_seed in runs.items()}}


# --------------------------------------------------------------------------------------------- main


def main() -> None:
    checks = {"sizes": sizes, "spaces": spaces, "conservatism": conservatism}
    parser = common_options(__doc__)
    parser.add_argument("--check", choices=checks, required=True)
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["16", "32", "64"],
        help="widths of --model, or models by name",
    )
    parser.add_argument("--target-model", help="a width or a name too; the last size by default")
    parser.add_argument("--mixtures", type=int, default=16)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument(
        "--topics",
        type=int,
        help="of kmeans and random; with roles about as many as there are labels",
    )
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.0, 0.01, 0.03, 0.1, 0.3])
    options = parser.parse_args()
    defaults = {"tokens": TOKENS[options.check], "proxies": 28, "seeds": 2, "every": 4}
    for name, value in defaults.items():
        setattr(options, name, getattr(options, name) or value)
    if options.mixtures < FEWEST_MIXTURES:
        parser.error(
            f"--mixtures is {options.mixtures}: a rank correlation needs {FEWEST_MIXTURES} or more"
        )
    if options.proxies < FEWEST_PROXIES:
        parser.error(
            f"--proxies is {options.proxies}: an agent learns from {FEWEST_PROXIES} or more"
        )
    if (
        any(size.isdigit() for size in [*options.sizes, options.target_model or ""])
        and options.model not in PRESETS
    ):
        parser.error(
            f"--model is {options.model}: only presets have other widths ({', '.join(PRESETS)})"
        )
    options.base_tokens = 3 * options.tokens
    bench, figures, started = Bench(options), Figures(), time.perf_counter()
    material = Material(
        options.corpus,
        options.out,
        options.questions,
        options.target,
        options.kept_away,
        options.every,
    )
    result: dict[str, Any] = {
        "check": options.check,
        "seeds": options.seeds,
        "tokens": options.tokens,
    }
    for parts in checks[options.check](bench, material, figures):
        result.update(parts)
        spent = {"tokens": sum(bench.spent.values()), **bench.spent}
        print(f"{time.perf_counter() - started:7.0f} s", flush=True)
        print(json.dumps({**result, "cost": spent, "ci95": figures.ci95}), flush=True)


if __name__ == "__main__":
    main()

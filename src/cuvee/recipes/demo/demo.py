"""The demo: Data Mixing Agent from text to report. It needs only the installed packages.

    text       eleven domains from the user's own Python environment; mathematics and graph theory
               are the target
    corpus     built in the usual way, with questions from held-out text
    base       a small model pre-trained on the source domains
    proxies    short continuations of the base; each has its own random path of mixtures
    agent      learned from the logs of the proxies
    targets    the base continued with several seeds by the agent, by the universal policy (which
               has seen no proxy), by static mixtures and by an online method
    report     one page on what the model learned and forgot, another on what the agent learned

Every result is stored at once. After an interruption the same call resumes, and a finished demo
returns immediately.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cuvee.core.files import write_atomic
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.learning.history_learning import LearnProgress
from cuvee.policies.files import read_provenance
from cuvee.recipes.compare import compare
from cuvee.recipes.demo.environment_text import Gathered, gather, text_domains
from cuvee.recipes.demo.plan import (
    MODEL,
    STAGES,
    DemoPlan,
    Stage,
    as_yaml,
    base_config,
    compare_config,
    search_config,
    store,
)
from cuvee.recipes.demo.questions import write_questions
from cuvee.recipes.progress.fleet_watch import FleetStatus
from cuvee.recipes.progress.watch import Observer
from cuvee.recipes.search import SearchConfig, learn, run_proxies
from cuvee.recipes.train import train
from cuvee.report.page import write_report
from cuvee.report.words import amount, duration
from cuvee.training.validation import Validation


class DemoView(Observer, Protocol):
    """An observer of runs that also receives the events of the other stages."""

    def stage(self, number: int, stage: Stage) -> None: ...

    def gathered(self, gathered: Gathered) -> None: ...

    def building(self, stage: str, share: float) -> None: ...

    def proxies(self, status: FleetStatus) -> None: ...

    def learning(self, progress: LearnProgress) -> None: ...

    def learned(self, verdict: str) -> None: ...


@dataclass(frozen=True)
class Demo:
    """The results of the demo."""

    runs: tuple[Run, ...]
    corpus: Path
    report: Path
    """The page that compares the target runs."""
    diagnostics: Path
    """The page about the agent."""
    config: Path
    """The comparison, as a file for `cuvee compare`."""
    search: Path
    """The proxies, as a file for `cuvee search`."""
    store: Path


def demo(
    folder: Path, view: DemoView, plan: DemoPlan | None = None, workers: int | None = None
) -> Demo:
    """Run the demo in `folder`, or the part of it that is not done yet.

    `workers` is the number of processes, by default one per core and at most four. Raises
    `CorpusError` in an environment without enough text. Ctrl-C raises `Stopped` while a model
    trains and `KeyboardInterrupt` in other stages; finished work is saved in both cases.
    """
    plan = plan or DemoPlan()
    folder = folder.absolute()
    workers = workers or min(len(os.sched_getaffinity(0)), 4)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = _corpus(folder, plan, workers, view)
    evaluated = Validation(plan.continued.validation_tokens, plan.continued.sequence_length)
    questions = write_questions(corpus, folder / "questions", evaluated)
    view.stage(3, STAGES[2])
    base = train(base_config(folder, plan, corpus), resume=True, observer=view)
    model = folder / "runs" / base.id / "model"
    search = search_config(folder, plan, model, questions)
    write_atomic(
        folder / "search.yaml",
        as_yaml(search, "The demo's proxies. More: cuvee search THIS_FILE method.proxies=64"),
    )
    agent = _agent(folder, search, workers, view)
    view.stage(6, STAGES[5])
    config = compare_config(folder, plan, model, questions, agent)
    head = "The demo's comparison. More seeds: cuvee compare THIS_FILE 'seeds=[0, 1, 2, 3, 4]'"
    write_atomic(folder / "compare.yaml", as_yaml(config, head))
    runs = compare(config, resume=True, workers=workers, observer=view)
    view.stage(7, STAGES[6])
    report = write_report(
        runs,
        folder / "report.html",
        "Continued pre-training on mathematics",
        baseline=config.baseline_label,
        facts=_facts(corpus, base, agent),
    )
    return Demo(
        tuple(runs),
        corpus.folder,
        report,
        agent / "diagnostics.html",
        folder / "compare.yaml",
        folder / "search.yaml",
        Path(store(folder)),
    )


def _corpus(folder: Path, plan: DemoPlan, workers: int, view: DemoView) -> Corpus:
    """Gather text once, so the corpus does not change when packages are installed or upgraded."""
    text = folder / "text"
    targets = [domain.name for domain in text_domains() if domain.role == "target"]
    view.stage(1, STAGES[0])
    if not text.is_dir():
        gather(text, view.gathered)
    view.stage(2, STAGES[1])
    present = tuple(name for name in targets if (text / f"{name}.jsonl").exists())
    settings = BuildSettings(targets=present, vocab_size=plan.vocab_size)
    return build([text], folder / "corpus", settings, workers=workers, progress=view.building)


def _agent(folder: Path, search: SearchConfig, workers: int, view: DemoView) -> Path:
    """Return the policy's folder. A policy learned from exactly these proxies is kept.

    So the runs that it steered stay valid.
    """
    view.stage(4, STAGES[3])
    proxies = run_proxies(search, workers=workers, on_change=view.proxies)
    view.stage(5, STAGES[4])
    policy = folder / "agent"
    if not _learned_from(policy, {run.id for run in proxies}):
        learn(search, policy, view.learning)
    view.learned(_verdict(read_provenance(policy)))
    return policy


def _learned_from(policy: Path, runs: set[str]) -> bool:
    """Whether the policy was learned from `runs`. Its page is written last, so it must exist."""
    return (policy / "diagnostics.html").is_file() and set(read_provenance(policy)["runs"]) == runs


def _verdict(provenance: Mapping[str, Any]) -> str:
    """Return one sentence on what the logged runs show about the agent."""
    support = provenance["support"]
    if not support["spaces"]:
        return "The agent was not evaluated: there are too few proxies to hold some out."
    (figures,) = support["spaces"].values()
    gain, low, high = (100 * float(figures[name]) for name in ("gain", "gain_low", "gain_high"))
    said = (
        f"By {figures['runs']} runs, the agent ends {gain:+.1f} points of feedback above their "
        f"average (95 % interval {low:+.1f} to {high:+.1f})"
    )
    if support["supported"]:
        return f"{said}, so it steers."
    why = "its mixtures are too far from the paths it learned from"
    if figures["within_reach"]:
        why = (
            "it may end below the best static mixture"
            if low > 0
            else "that is not enough to trust it"
        )
    return f"{said}; {why}, so it uses the best static mixture in those runs instead."


def _facts(corpus: Corpus, base: Run, agent: Path) -> dict[str, str]:
    cost = base.cost
    provenance = read_provenance(agent)
    proxies = provenance["proxies"]
    seconds = provenance["learning"]["seconds"]
    return {
        "Model": f"llama, {MODEL['num_hidden_layers']} layers of {MODEL['hidden_size']}, "
        f"vocabulary {corpus.vocab_size:,}",
        "Base model": f"{amount(cost.tokens)} tokens of the source domains, "
        f"{amount(cost.flops)} FLOPs, {duration(cost.seconds)}",
        "Agent": f"learned in {duration(seconds)} from {len(provenance['runs'])} proxies of "
        f"{amount(proxies['tokens'])} tokens in all, {amount(proxies['flops'])} FLOPs. "
        f"{_verdict(provenance)}",
        "Universal policy": "ships with cuvee; learned from simulated runs, needs no proxies",
        "Corpus": "text from this Python environment, "
        f"{amount(sum(domain.tokens for domain in corpus.domains))} tokens",
        "Hardware": f"{len(os.sched_getaffinity(0))} CPU cores, {_processor()}",
    }


def _processor() -> str:
    """Return the processor's name if the system provides it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()

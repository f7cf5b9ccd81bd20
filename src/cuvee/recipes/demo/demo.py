"""The demo: a scarce target on real text. It needs only the installed packages.

    text       ten domains from the user's own Python environment; mathematics is the target, and
               there is little of it
    corpus     built in the usual way
    runs       the same small model under each mixture, with several seeds
    report     one page that says which mixture to train on, and how sure that is

Every result is stored at once. After an interruption the same call resumes, and a finished demo
returns immediately.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cuvee.core.files import write_atomic
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.recipes.compare import compare
from cuvee.recipes.demo.environment_text import Gathered, gather
from cuvee.recipes.demo.plan import (
    STAGES,
    TARGET,
    DemoPlan,
    Stage,
    as_yaml,
    compare_config,
    store,
)
from cuvee.recipes.progress.watch import Observer
from cuvee.recipes.setup.estimate import estimate
from cuvee.report.page import write_report
from cuvee.report.words import amount


class DemoView(Observer, Protocol):
    """An observer of runs that also receives the events of the other stages."""

    def stage(self, number: int, stage: Stage) -> None: ...

    def gathered(self, gathered: Gathered) -> None: ...

    def building(self, stage: str, share: float) -> None: ...

    def planned(self, runs: int, workers: int, seconds: float) -> None:
        """`runs` runs are to be trained, which takes about `seconds` in all."""
        ...


@dataclass(frozen=True)
class Demo:
    """The results of the demo."""

    runs: tuple[Run, ...]
    baseline: str
    corpus: Path
    report: Path
    config: Path
    """The comparison, as a file for `cuvee compare`."""
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
    view.stage(3, STAGES[2])
    config = compare_config(folder, plan)
    head = "The demo's comparison. More seeds: cuvee compare THIS_FILE 'seeds=[0, 1, 2, 3, 4]'"
    write_atomic(folder / "compare.yaml", as_yaml(config, head))
    if not (folder / "report.html").exists():
        cost = estimate(config)
        view.planned(cost.runs, workers, cost.total.seconds / workers)
    runs = compare(config, resume=True, workers=workers, observer=view)
    view.stage(4, STAGES[3])
    report = write_report(
        runs,
        folder / "report.html",
        "A scarce target: mathematics",
        baseline=config.baseline_label,
        facts=_facts(corpus),
    )
    return Demo(
        tuple(runs),
        config.baseline_label,
        corpus.folder,
        report,
        folder / "compare.yaml",
        Path(store(folder)),
    )


def _corpus(folder: Path, plan: DemoPlan, workers: int, view: DemoView) -> Corpus:
    """Gather text once, so the corpus does not change when packages are installed or upgraded."""
    text = folder / "text"
    view.stage(1, STAGES[0])
    if not text.is_dir():
        gather(text, view.gathered)
    view.stage(2, STAGES[1])
    settings = BuildSettings(targets=(TARGET,), vocab_size=plan.vocab_size)
    return build([text], folder / "corpus", settings, workers=workers, progress=view.building)


def _facts(corpus: Corpus) -> dict[str, str]:
    tokens = sum(domain.tokens for domain in corpus.domains)
    return {
        "Corpus": f"text from this Python environment, {amount(tokens)} tokens",
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

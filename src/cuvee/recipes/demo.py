"""The demo: continued pre-training on mathematics, from text to report, with nothing but the installed packages.

    text       eleven domains out of the user's own Python environment; mathematics and graph theory are the target
    corpus     built as any other
    base       a small model pre-trained on the source domains
    compare    the base continued under four mixtures, several seeds each: what is learned of the target, and what forgotten
    report     one page

Everything is written down as it happens. Whatever stops the demo, the same call goes on from there, and one that is finished
comes back at once.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from cuvee.core.files import write_atomic
from cuvee.core.trajectory import Run
from cuvee.data.build import BuildSettings, build
from cuvee.data.corpus import Corpus
from cuvee.recipes.compare import compare
from cuvee.recipes.config import CompareConfig, MethodChoice, TrainConfig
from cuvee.recipes.environment_text import Gathered, gather, text_domains
from cuvee.recipes.train import train
from cuvee.recipes.watch import Observer
from cuvee.report.page import write_report
from cuvee.report.words import amount, duration
from cuvee.training.settings import TrainerSettings

STAGES = ("Gather text", "Build the corpus", "Pre-train the base", "Continue it under each mixture", "Write the report")

_MODEL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


_BASE = TrainerSettings(
    steps=1400,
    batch_size=8,
    sequence_length=128,
    learning_rate=5e-3,
    interval=100,
    validate_every=4,
    validation_tokens=4096,
)
_CONTINUED = replace(_BASE, steps=400, learning_rate=2e-3, interval=2, validate_every=40)


@dataclass(frozen=True)
class DemoPlan:
    """How much of it. The defaults end within five minutes on two cores."""

    vocab_size: int = 2048
    base: TrainerSettings = _BASE
    continued: TrainerSettings = _CONTINUED
    methods: tuple[str, ...] = ("natural", "uniform", "target_only", "odm")
    seeds: tuple[int, ...] = (0, 1, 2)


class DemoView(Observer, Protocol):
    """An observer of runs that also sees the stages before and after them."""

    def stage(self, number: int, title: str) -> None: ...

    def gathered(self, gathered: Gathered) -> None: ...

    def building(self, stage: str, share: float) -> None: ...


@dataclass(frozen=True)
class Demo:
    """What there is at the end. `config` is the comparison as a file for `cuvee compare`."""

    runs: tuple[Run, ...]
    corpus: Path
    report: Path
    config: Path
    store: Path


def demo(folder: Path, view: DemoView, plan: DemoPlan | None = None, workers: int | None = None) -> Demo:
    """Runs the demo in `folder`, or what is left of it. `workers` processes work at a time, by default one a core up to four.

    Raises `CorpusError` in an environment without enough text; Ctrl-C while training raises `Stopped` with everything saved.
    """
    plan, folder = plan or DemoPlan(), folder.absolute()
    workers = workers or min(len(os.sched_getaffinity(0)), 4)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = _corpus(folder, plan, workers, view)
    view.stage(3, STAGES[2])
    store = str(folder / "runs.db")
    base = train(_base_config(folder, plan, corpus, store), resume=True, observer=view)
    view.stage(4, STAGES[3])
    config = _compare_config(folder, plan, corpus, store, base)
    write_atomic(folder / "compare.yaml", _as_yaml(config))
    runs = compare(config, resume=True, workers=workers, observer=view)
    view.stage(5, STAGES[4])
    report = write_report(
        runs,
        folder / "report.html",
        "Continued pre-training on mathematics",
        baseline=config.baseline_label,
        facts=_facts(corpus, base),
    )
    return Demo(tuple(runs), corpus.folder, report, folder / "compare.yaml", Path(store))


def _corpus(folder: Path, plan: DemoPlan, workers: int, view: DemoView) -> Corpus:
    """The text is gathered once: a corpus stays what it is when packages are installed or upgraded later."""
    text, targets = folder / "text", [domain.name for domain in text_domains() if domain.role == "target"]
    view.stage(1, STAGES[0])
    if not text.is_dir():
        gather(text, view.gathered)
    view.stage(2, STAGES[1])
    present = tuple(name for name in targets if (text / f"{name}.jsonl").exists())
    settings = BuildSettings(targets=present, vocab_size=plan.vocab_size)
    return build([text], folder / "corpus", settings, workers=workers, progress=view.building)


def _base_config(folder: Path, plan: DemoPlan, corpus: Corpus, store: str) -> TrainConfig:
    """Source domains in proportion to their tokens, nothing of the target."""
    weights = {domain.name: float(domain.tokens) for domain in corpus.domains if not domain.is_target}
    method = MethodChoice.model_validate({"name": "given", "label": "source-only", "weights": weights})
    return TrainConfig(
        name="demo-base",
        corpus=corpus.folder,
        model=_MODEL,
        train=plan.base,
        method=method,
        store=store,
        out=folder / "runs",
    )


def _compare_config(folder: Path, plan: DemoPlan, corpus: Corpus, store: str, base: Run) -> CompareConfig:
    return CompareConfig(
        name="demo",
        corpus=corpus.folder,
        model=str(folder / "runs" / base.id / "model"),
        train=plan.continued,
        methods=tuple(MethodChoice.model_validate(name) for name in plan.methods),
        seeds=plan.seeds,
        baseline=plan.methods[0],
        store=store,
        out=folder / "runs",
        checkpoint_every=40,
    )


def _as_yaml(config: CompareConfig) -> str:
    """A file that `cuvee compare` takes as it is, and that is pleasant to change."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    content["train"] = {key: value for key, value in content["train"].items() if value != _DEFAULTS[key]}
    content["methods"] = [method.label for method in config.methods]
    head = "# The demo's comparison. More seeds: cuvee compare THIS_FILE 'seeds=[0, 1, 2, 3, 4]'\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


_DEFAULTS = asdict(TrainerSettings())


def _facts(corpus: Corpus, base: Run) -> dict[str, str]:
    cost = base.cost
    return {
        "Model": f"llama, {_MODEL['num_hidden_layers']} layers of {_MODEL['hidden_size']}, vocabulary {corpus.vocab_size:,}",
        "Base model": f"{amount(cost.tokens)} tokens of the source domains, {amount(cost.flops)} FLOPs, {duration(cost.seconds)}",
        "Corpus": f"text out of this Python environment, {amount(sum(domain.tokens for domain in corpus.domains))} tokens",
        "Hardware": f"{len(os.sched_getaffinity(0))} CPU cores, {_processor()}",
    }


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()

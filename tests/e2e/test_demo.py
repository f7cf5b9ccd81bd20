"""The demo at a small size: from text to report, interrupted while it trains and resumed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.signals import Signals
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.config.schema import CompareConfig, load
from cuvee.recipes.demo import demo as recipe
from cuvee.recipes.demo import environment_text
from cuvee.recipes.demo.demo import Demo, DemoView, demo
from cuvee.recipes.demo.environment_text import Gathered, text_domains
from cuvee.recipes.demo.plan import DemoPlan, Stage
from cuvee.recipes.progress.stopping import Stopped
from cuvee.recipes.progress.watch import Progress
from cuvee.training.settings import TrainerSettings

pytestmark = pytest.mark.training

PLAN = DemoPlan(
    vocab_size=300,
    train=TrainerSettings(
        steps=4,
        batch_size=4,
        sequence_length=32,
        interval=1,
        validate_every=2,
        validation_tokens=256,
    ),
    methods=("natural", {"policy": "universal"}),
    seeds=(0, 1),
)


class Witness:
    """Counts events and sends Ctrl-C after a number of intervals."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stages: list[int] = []
        self.domains: list[str] = []
        self.plans: list[int] = []
        self.intervals: Counter[str] = Counter()
        self.stop_after = stop_after

    def stage(self, number: int, stage: Stage) -> None:
        assert stage.why
        self.stages.append(number)

    def gathered(self, gathered: Gathered) -> None:
        self.domains.append(gathered.name)

    def building(self, stage: str, share: float) -> None: ...

    def planned(self, runs: int, workers: int, seconds: float) -> None:
        assert seconds > 0
        self.plans.append(runs)

    def stopping(self) -> None: ...

    def begin(self, run_id: str, note: str) -> None: ...

    def interval(self, progress: Progress) -> None:
        self.intervals[progress.run_id] += 1
        if self.intervals.total() == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def end(self, run_id: str, note: str) -> None: ...


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = tuple(
        replace(domain, largest=30_000, least=20_000)
        for domain in text_domains()
        if domain.name not in ("type-stubs", "cpp-headers")
    )
    monkeypatch.setattr(environment_text, "text_domains", lambda: domains)
    monkeypatch.setattr(environment_text, "HELD_OUT", 10_000)


def test_stopped_it_resumes_and_finished_it_returns_the_result(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first, rest, again = Witness(stop_after=5), Witness(), Witness()
    with pytest.raises(Stopped):
        demo(folder, first, PLAN, workers=1)
    made = demo(folder, rest, PLAN, workers=1)
    assert len(first.domains) == 8
    assert not rest.domains, "text is gathered once"
    assert (first.stages, rest.stages) == ([1, 2, 3], [1, 2, 3, 4])
    assert rest.plans == [4]
    done = first.intervals + rest.intervals
    assert set(done.values()) == {4}, "no interval is trained twice, none is left out"
    assert len(made.runs) == 4
    targets = {domain.name for domain in made.runs[0].trajectory.domains if domain.is_target}
    assert targets == {"mathematics"}
    assert "A scarce target: mathematics" in made.report.read_text()

    assert demo(folder, again, PLAN, workers=1).runs == made.runs
    assert not again.intervals, "nothing is left to train"
    assert not again.plans
    config = load(CompareConfig, made.config)
    fingerprint = Corpus.open(made.corpus).fingerprint
    assert [run.run_id(fingerprint) for run in config.runs()] == [run.id for run in made.runs], (
        "the comparison is a file for cuvee compare"
    )


def test_the_command_prints_losses_and_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Demo] = []

    def small(folder: Path, view: DemoView) -> Demo:
        made.append(demo(folder, view, replace(PLAN, seeds=(0,)), workers=1))
        return made[0]

    monkeypatch.setattr(recipe, "demo", small)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--no-open"])
    assert result.exit_code == 0, result.output
    assert "mathematics" in result.stderr
    assert "2 runs, 1 at a time: about 0:" in result.stderr
    assert "4/4 Write the report: which mixture to train on" in result.stderr
    assert result.stderr.count("took 0:") == 4
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert {"universal", "natural", "Keep"} <= set(rows)

    def target_loss(signals: Signals) -> float:
        losses = signals.probes["test_loss"]
        return float(losses.values[signals.names.index("mathematics")])

    assert f"{target_loss(made[0].runs[0].trajectory.last):.3f}" in result.stdout
    assert f"{(tmp_path / 'demo' / 'report.html').as_uri()}" in result.stdout

"""The demo, small: from this environment's text to the report, stopped half-way and run again."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.recipes import demo as recipe
from cuvee.recipes import environment_text
from cuvee.recipes.config import CompareConfig, load
from cuvee.recipes.demo import Demo, DemoPlan, DemoView, demo
from cuvee.recipes.environment_text import Gathered, text_domains
from cuvee.recipes.stopping import Stopped
from cuvee.recipes.watch import Progress
from cuvee.training.settings import TrainerSettings

pytestmark = pytest.mark.training

SETTINGS = TrainerSettings(
    steps=4, batch_size=4, sequence_length=32, interval=1, validate_every=2, validation_tokens=256
)
PLAN = DemoPlan(vocab_size=300, base=SETTINGS, continued=SETTINGS, methods=("natural", "target_only"), seeds=(0, 1))


class Witness:
    """Counts what happened, and sends Ctrl-C after so many intervals."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stages: list[int] = []
        self.domains: list[str] = []
        self.intervals: Counter[str] = Counter()
        self.stop_after = stop_after

    def stage(self, number: int, title: str) -> None:
        self.stages.append(number)

    def gathered(self, gathered: Gathered) -> None:
        self.domains.append(gathered.name)

    def building(self, stage: str, share: float) -> None: ...

    def begin(self, run_id: str, note: str) -> None: ...

    def interval(self, progress: Progress) -> None:
        self.intervals[progress.run_id] += 1
        if self.intervals.total() == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def end(self, run_id: str, note: str) -> None: ...


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = tuple(replace(domain, largest=110_000) for domain in text_domains())
    monkeypatch.setattr(environment_text, "text_domains", lambda: domains)


def test_stopped_anywhere_it_goes_on_and_finished_it_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    in_base, in_comparison, rest, again = Witness(2), Witness(5), Witness(), Witness()
    with pytest.raises(Stopped, match="stopped after step 2"):
        demo(folder, in_base, PLAN, workers=1)
    with pytest.raises(Stopped):
        demo(folder, in_comparison, PLAN, workers=1)
    made = demo(folder, rest, PLAN, workers=1)
    assert len(in_base.domains) >= 8
    assert not in_comparison.domains + rest.domains, "text is gathered once"
    assert in_base.stages == [1, 2, 3]
    assert rest.stages == [1, 2, 3, 4, 5]
    done = in_base.intervals + in_comparison.intervals + rest.intervals
    assert set(done.values()) == {4}, "no interval is trained twice, none is left out"
    assert len(made.runs) == 4
    assert {run.trajectory.last.progress for run in made.runs} == {1.0}
    starts = {run.trajectory.signals[0].probes["valid_loss"].values.tobytes() for run in made.runs}
    assert len(starts) == 1, "all continue the same base"
    targets = {domain.name for domain in made.runs[0].trajectory.domains if domain.is_target}
    assert targets == {"mathematics", "graph-theory"}
    page = made.report.read_text()
    assert page.count("Continued pre-training on mathematics") >= 2

    assert demo(folder, again, PLAN, workers=1).runs == made.runs
    assert not again.intervals, "nothing is left to train"
    config = load(CompareConfig, made.config)
    assert [run.seed for run in config.runs()] == [0, 0, 1, 1], "the comparison is a file for cuvee compare"


def test_the_command_prints_what_was_kept_and_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(folder: Path, view: DemoView) -> Demo:
        return demo(folder, view, replace(PLAN, seeds=(0,)), workers=1)

    monkeypatch.setattr(recipe, "demo", small)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--no-open"])
    assert result.exit_code == 0, result.output
    assert "mathematics" in result.stderr
    assert "5/5 Write the report" in result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert {"base", "natural", "target_only"} <= set(rows)
    assert rows["source"] == ["source", "kept", "target", "learned", "average", "vs", "natural,", "95%", "interval"]
    source, change = float(rows["natural"][1]), float(rows["natural"][2].replace("−", "-"))
    assert source == pytest.approx(float(rows["base"][1]) + change, abs=0.0011)
    assert "no claim" in result.stdout
    assert f"{(tmp_path / 'demo' / 'report.html').as_uri()}" in result.stdout

"""The demo at a small size: from text to report, interrupted in every stage and resumed."""

from __future__ import annotations

import json
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
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.learning.history_learning import LearnProgress
from cuvee.policies.feedback import Feedback
from cuvee.recipes import learn
from cuvee.recipes.config.schema import CompareConfig, load
from cuvee.recipes.demo import demo as recipe
from cuvee.recipes.demo import environment_text
from cuvee.recipes.demo.demo import Demo, DemoView, demo
from cuvee.recipes.demo.environment_text import Gathered, gather, text_domains
from cuvee.recipes.demo.plan import DemoPlan, Stage
from cuvee.recipes.demo.questions import write_questions
from cuvee.recipes.progress.fleet_watch import FleetStatus
from cuvee.recipes.progress.stopping import Stopped
from cuvee.recipes.progress.watch import Progress
from cuvee.recipes.search import SearchConfig, logged_runs
from cuvee.training.settings import TrainerSettings
from cuvee.training.validation import Validation

pytestmark = pytest.mark.training

SETTINGS = TrainerSettings(
    steps=4, batch_size=4, sequence_length=32, interval=1, validate_every=2, validation_tokens=256
)
PLAN = DemoPlan(
    vocab_size=300,
    base=SETTINGS,
    proxy=replace(SETTINGS, validate_every=0, validation_tokens=0),
    proxies=8,
    agent={"bc_updates": 2, "updates": 2, "eval_every": 2},
    continued=SETTINGS,
    methods=("natural", "target_only"),
    seeds=(0, 1),
)


class Witness:
    """Counts events and sends Ctrl-C after a number of intervals, proxies or learning steps."""

    def __init__(
        self, stop_after: int | None = None, proxies: int | None = None, steps: int | None = None
    ) -> None:
        self.stages: list[int] = []
        self.verdicts: list[str] = []
        self.most_proxies, self.most_steps, self.steps = proxies, steps, 0
        self.domains: list[str] = []
        self.intervals: Counter[str] = Counter()
        self.stop_after = stop_after

    def stage(self, number: int, stage: Stage) -> None:
        assert stage.why
        self.stages.append(number)

    def gathered(self, gathered: Gathered) -> None:
        self.domains.append(gathered.name)

    def building(self, stage: str, share: float) -> None: ...

    def proxies(self, status: FleetStatus) -> None:
        if self.most_proxies and status.tally.done >= self.most_proxies:
            self.most_proxies = None
            os.kill(os.getpid(), signal.SIGINT)

    def learning(self, progress: LearnProgress) -> None:
        self.steps += 1
        if self.steps == self.most_steps:
            os.kill(os.getpid(), signal.SIGINT)

    def learned(self, verdict: str) -> None:
        self.verdicts.append(verdict)

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


def interrupt(*_: object, **__: object) -> Path:
    raise KeyboardInterrupt


def test_stopped_anywhere_it_resumes_and_finished_it_returns_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    in_base, in_proxies, in_learning = Witness(2), Witness(proxies=1), Witness(steps=3)
    in_page, in_comparison, rest, again = Witness(), Witness(5), Witness(), Witness()
    with pytest.raises(Stopped, match="stopped after step 2"):
        demo(folder, in_base, PLAN, workers=1)
    with pytest.raises(KeyboardInterrupt):
        demo(folder, in_proxies, PLAN, workers=1)
    with pytest.raises(KeyboardInterrupt):
        demo(folder, in_learning, PLAN, workers=1)
    with monkeypatch.context() as killed:
        killed.setattr(learn, "write_diagnostics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo(folder, in_page, PLAN, workers=1)
    with pytest.raises(Stopped):
        demo(folder, in_comparison, PLAN, workers=1)
    made = demo(folder, rest, PLAN, workers=1)
    witnesses = (in_base, in_proxies, in_learning, in_page, in_comparison, rest)
    assert len(in_base.domains) >= 8
    assert not any(witness.domains for witness in witnesses[1:]), "text is gathered once"
    assert [witness.stages[-1] for witness in witnesses] == [3, 4, 5, 5, 6, 7]
    assert rest.stages == [1, 2, 3, 4, 5, 6, 7]
    done = sum((witness.intervals for witness in witnesses), Counter[str]())
    assert set(done.values()) == {4}, "no interval is trained twice, none is left out"
    assert in_comparison.verdicts == rest.verdicts, "the agent is learned once"
    assert not rest.steps
    assert f"By {PLAN.proxies} runs, the agent ends" in rest.verdicts[0]
    assert len(made.runs) == 8
    assert {run.trajectory.last.progress for run in made.runs} == {1.0}
    starts = {run.trajectory.signals[0].probes["valid_loss"].values.tobytes() for run in made.runs}
    assert len(starts) == 1, "all continue the same base"
    targets = {domain.name for domain in made.runs[0].trajectory.domains if domain.is_target}
    assert targets == {"mathematics", "graph-theory"}
    asked = {run.id for run in made.runs if Feedback()(run.trajectory).present.all()}
    assert {run_id.split("-")[1] for run_id in asked} == {"agent", "universal"}, (
        "those who read feedback have it"
    )
    page = made.report.read_text()
    assert rest.verdicts[0] in page.replace("&#43;", "+")
    assert "Target share over time" in made.diagnostics.read_text()
    assert page.count("Continued pre-training on mathematics") >= 2

    assert demo(folder, again, PLAN, workers=1).runs == made.runs
    assert not again.intervals, "nothing is left to train"
    config = load(CompareConfig, made.config)
    assert [run.seed for run in config.runs()] == [0] * 4 + [1] * 4, (
        "the comparison is a file for cuvee compare"
    )
    fingerprint = Corpus.open(made.corpus).fingerprint
    assert [run.run_id(fingerprint) for run in config.runs()] == [run.id for run in made.runs]
    assert len(logged_runs(load(SearchConfig, made.search))) == 8, (
        "and the proxies' one is for cuvee search"
    )


def test_questions_of_training_are_never_those_of_evaluation(tmp_path: Path) -> None:
    gather(tmp_path / "text")
    corpus = build(
        [tmp_path / "text"],
        tmp_path / "corpus",
        BuildSettings(targets=("mathematics",), vocab_size=300),
    )
    validation = Validation(256, 32)
    files = write_questions(corpus, tmp_path / "questions", validation)
    assert len(files["general"]) >= 7
    assert len(files["target"]) == 1
    decode = corpus.tokenizer().decode
    for path in map(Path, (*files["general"], *files["target"])):
        tokens = corpus.pool(path.stem, "valid").tokens
        read = validation.windows(len(tokens))
        evaluated = [decode(tokens[i * 32 : (i + 1) * 32].tolist()) for i in read]
        asked = [
            row["prompt"] + row["answer"] for row in map(json.loads, path.read_text().splitlines())
        ]
        assert asked
        assert len(read) == 8
        assert not set(asked) & set(evaluated)


def test_the_command_prints_what_was_kept_and_learned(
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
    assert "7/7 Write the report: what was learned of the target" in result.stderr
    assert result.stderr.count("took 0:") == 7
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert {"base", "natural", "target_only", "agent", "universal"} <= set(rows)
    assert rows["source"] == [
        "source",
        "kept",
        "target",
        "learned",
        "average",
        "vs",
        "natural,",
        "95%",
        "interval",
    ]
    natural = next(
        run.trajectory for run in made[0].runs if run.config["method"]["name"] == "natural"
    )

    def source_loss(signals: Signals, name: str) -> float:
        losses = signals.probes[name]
        pairs = zip(natural.domains, losses.values, losses.present, strict=True)
        found = [value for domain, value, known in pairs if known and not domain.is_target]
        return sum(found) / len(found)

    start = source_loss(natural.signals[0], "valid_loss")
    change = source_loss(natural.last, "valid_loss") - start
    assert float(rows["base"][1]) == pytest.approx(start, abs=6e-4)
    assert float(rows["natural"][2].replace("−", "-")) == pytest.approx(change, abs=6e-4)
    test_loss = source_loss(natural.last, "test_loss")
    assert float(rows["natural"][1]) == pytest.approx(test_loss, abs=6e-4)
    assert "an observation, not a result" in " ".join(result.stdout.split())
    assert f"{(tmp_path / 'demo' / 'report.html').as_uri()}" in result.stdout

"""`cuvee compare` on real text: paired seeds, worker processes, resuming, tables and page."""

from __future__ import annotations

import html
import json
import multiprocessing
import os
import signal
import struct
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.trajectory import Run
from cuvee.fleet.store.store import Store
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, PolicyChoice, TrainConfig, load
from cuvee.recipes.progress.stopping import Stopped
from cuvee.recipes.progress.watch import Progress, Unobserved
from cuvee.recipes.reports.reporting import tables
from cuvee.recipes.train import train
from cuvee.report.words import amount
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_corpus(tmp_path_factory.mktemp("text"), test_share=0.1).folder


@pytest.fixture
def place(tmp_path: Path, corpus: Path) -> Path:
    return prepared(tmp_path, corpus)


def prepared(place: Path, corpus: Path) -> Path:
    train = {
        "steps": 20,
        "batch_size": 8,
        "sequence_length": 64,
        "learning_rate": 3e-3,
        "interval": 2,
        "validate_every": 1,
        "device": "cpu",
    }
    config = {
        "corpus": str(corpus),
        "methods": [
            "natural",
            {"name": "given", "label": "mail-only", "weights": {"mail": 1}},
            "odm",
        ],
        "seeds": [3, 4],
        "train": {**train, "validate_every": 1, "validation_tokens": 512},
        "store": str(place / "runs.db"),
        "out": str(place / "runs"),
    }
    (place / "mine.yaml").write_text(yaml.safe_dump(config))
    return place


def configured(place: Path, *overrides: str) -> CompareConfig:
    return load(CompareConfig, place / "mine.yaml", overrides)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, list[Run]]:
    place = prepared(tmp_path_factory.mktemp("compared"), corpus)
    return place, compare(configured(place))


def losses(run: Run) -> list[float]:
    return [float(signals.probes["valid_loss"].values.mean()) for signals in run.trajectory.signals]


def test_runs_of_a_seed_start_from_the_same_weights_and_read_the_same_text(
    compared: tuple[Path, list[Run]],
) -> None:
    _, runs = compared
    assert [(run.config["method"]["label"], run.seed) for run in runs] == [
        (label, seed) for seed in (3, 4) for label in ("natural", "mail-only", "odm")
    ]
    starts = {run.seed: losses(run)[0] for run in runs}
    assert all(losses(run)[0] == starts[run.seed] for run in runs)
    assert starts[3] != starts[4]
    for run in runs:
        drawn = [int(signals.tokens_K.sum()) for signals in run.trajectory.signals[1:]]
        assert all(0.9 * 2 * 8 * 64 < tokens <= 2 * 8 * 64 for tokens in drawn), (
            "the last window of an epoch may be short"
        )
    by_label = {run.config["method"]["label"]: run for run in runs if run.seed == 3}
    assert [list(m.weights_K) for m in by_label["mail-only"].trajectory.mixtures] == [
        [0.0, 1.0, 0.0]
    ] * 10


def test_tables_and_page_from_the_command_line(
    compared: tuple[Path, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, runs = compared
    monkeypatch.chdir(place)
    command = ["compare", "mine.yaml", "-o", "page.html", "baseline=odm"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.stderr.count("is finished already") == 6, "and nothing is trained again"
    natural = [run for run in runs if run.config["method"]["label"] == "natural"]
    mean = np.mean([run.trajectory.last.probes["test_loss"].values for run in natural])
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("natural ")][:1]
    assert f"{mean:.3f}" in row
    assert "Test loss at the end" in done.stdout
    assert "Against odm, paired by seed: test loss" in done.stdout
    verdict, sure, *_ = done.stdout.splitlines()
    assert verdict.startswith(("Train on ", "Keep odm"))
    assert sure.startswith("  how sure: ")
    page = (place / "page.html").read_text()
    assert "mail-only" in page
    assert f'<h2 class="choice">{verdict}</h2>' in page
    again = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    (result,) = json.loads(again.stdout)
    (first,) = [row for row in result["tables"][0]["rows"] if row["name"] == "natural"]
    assert f"{mean:.3f}" in json.dumps(first)
    assert result["report"] == "page.html"
    assert result["verdict"]["choice"] == verdict
    found = result["verdicts"]["natural"]
    assert found["outcome"] in ("better", "worse", "tied", "open")
    theirs = np.mean(
        [
            run.trajectory.last.probes["test_loss"].values
            for run in runs
            if run.config["method"]["label"] == "odm"
        ]
    )
    assert found["difference"]["mean"] == pytest.approx(mean - theirs)


def test_claims_are_answered_by_compare_and_by_report(
    compared: tuple[Path, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = compared
    monkeypatch.chdir(place)
    command = ["compare", "mine.yaml", "-o", "page.html", "--claim", "odm < natural", "--json"]
    (result,) = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    (claim,) = result["claims"]
    (record,) = (place / "runs").glob("*-claims.json")
    group = record.name.removesuffix("-claims.json")
    for asked in (["--group", group], []):
        command = ["report", *asked, "--store", "runs.db", "-o", "stored.html"]
        CliRunner().invoke(app, command, catch_exceptions=False)
        assert claim in html.unescape((place / "stored.html").read_text())


class Interrupts(Unobserved):
    """Presses Ctrl-C, once, when a run is at its third interval."""

    pressed = False

    def interval(self, progress: Progress) -> None:
        if progress.step == 6 and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_comparison_resumes_to_the_same_end(
    place: Path, compared: tuple[Path, list[Run]], workers: int
) -> None:
    """In processes of their own, runs compute what they compute in this one."""
    config = configured(place, "seeds=[3]", "methods=[natural, odm]")
    with pytest.raises(Stopped):
        compare(config, observer=Interrupts(), workers=workers)
    with Store.open(place / "runs.db") as store:
        assert "waiting" in {run.status for run in store.runs()} <= {"waiting", "done"}
    with pytest.raises(ConfigError, match="continue it with --resume"):
        compare(config)
    alone = {run.id: run.trajectory for run in compared[1]}
    runs = compare(config, resume=True, workers=workers)
    assert [run.trajectory for run in runs] == [alone[run.id] for run in runs]


def test_a_run_that_fails_does_not_stop_the_others(place: Path) -> None:
    methods = "methods=[natural, {name: odm, smoothing: 0.5, label: other}]"
    config = configured(
        place, "seeds=[3]", methods, "train.learning_rate=1e30", "train.max_grad_norm=1e30"
    )
    with pytest.raises(TrainingError, match="is not finite"):
        compare(config)
    with Store.open(place / "runs.db") as store:
        assert ["is not finite" in str(run.reason) for run in store.runs()] == [True, True]


class Kills(Unobserved):
    """Kills the process of the first run that gets anywhere."""

    killed = ""

    def interval(self, progress: Progress) -> None:
        if not self.killed:
            self.killed = progress.run_id
            (child,) = [
                child
                for child in multiprocessing.active_children()
                if child.name == progress.run_id
            ]
            child.kill()


def test_a_process_that_dies_takes_no_other_with_it(place: Path) -> None:
    kills = Kills()
    config = configured(place, "seeds=[3]", "methods=[natural, odm]", "train.steps=40")
    with pytest.raises(TrainingError, match=r"died with exit code -9.*continue with --resume"):
        compare(config, workers=2, observer=kills)
    with Store.open(place / "runs.db") as store:
        assert {run.id == kills.killed: run.status for run in store.runs()}[False] == "done"
    assert len(compare(config, resume=True)) == 2


def breaks_off(
    run_id: str, config: TrainConfig, resume: bool, group: str, line: Connection
) -> None:
    """Stands for a worker process; that of `natural` dies in the middle of a message."""
    assert config.method is not None
    if config.method.label == "natural":
        os.write(line.fileno(), struct.pack("!i", 1000) + b"half a message")
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(100):
        line.send(("begin", (run_id, "heard")))


class Hears(Unobserved):
    def __init__(self) -> None:
        self.ends: list[str] = []
        self.heard = 0

    def begin(self, run_id: str, note: str) -> None:
        self.heard += 1

    def end(self, run_id: str, note: str) -> None:
        self.ends.append(note)


def test_a_process_that_dies_while_it_reports_does_not_silence_the_others(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[compare.__module__], "_work", breaks_off)
    hears = Hears()
    with pytest.raises(TrainingError, match=r"died with exit code -9"):
        compare(configured(place, "seeds=[3]", "methods=[natural, odm]"), workers=2, observer=hears)
    assert hears.ends == ["died"]
    assert hears.heard == 100


def test_a_method_that_does_not_fit_the_corpus_is_refused_before_anything_is_trained(
    place: Path,
) -> None:
    with pytest.raises(ConfigError, match="target_only needs a target domain"):
        compare(configured(place, "methods=[natural, target_only]"))
    with Store.open(place / "runs.db") as store:
        assert store.runs() == []


@pytest.mark.parametrize(
    "method", ["{name: ac_odm, mode: proxy}", "{name: doge, mode: proxy, label: mine}"]
)
def test_a_method_that_needs_proxies_is_sent_to_search_before_anything_is_created(
    place: Path, method: str
) -> None:
    remedy = (
        r"learns from proxy runs, 1 to begin with: run `cuvee search` .* policy=runs/search/policy"
    )
    with pytest.raises(ConfigError, match=remedy):
        compare(configured(place, f"methods=[natural, {method}]"))
    document = {
        k: v
        for k, v in yaml.safe_load((place / "mine.yaml").read_text()).items()
        if k not in ("methods", "seeds")
    }
    (place / "one.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=remedy):
        train(load(TrainConfig, place / "one.yaml", [f"method={method}"]))
    assert sorted(path.name for path in place.iterdir()) == ["mine.yaml", "one.yaml"]


def test_a_saved_policy_is_compared_and_its_cost_with_it(
    place: Path, compared: tuple[Path, list[Run]]
) -> None:
    learned = next(run for run in compared[1] if run.config["method"]["label"] == "odm")
    chosen = f"methods=[natural, {{policy: {learned.policy}, label: from-before}}]"
    natural, steered = compare(configured(place, chosen, "seeds=[4]", "train.steps=4"))
    assert (steered.config["policy"], "proxies" in natural.config) == ("from-before", False)
    spent = steered.config["proxies"]
    assert (spent["tokens"], spent["flops"]) == (learned.cost.tokens, learned.cost.flops)
    (final, _) = (table for _, table in tables([natural, steered]))
    assert [row.cells[-3].note for row in final.rows] == [
        "",
        f"{amount(learned.cost.tokens)} proxies",
    ]
    after = PolicyChoice(policy=Path(steered.policy or "")).proxies
    assert after is not None
    assert after.tokens == learned.cost.tokens + steered.cost.tokens, (
        "what is learned later has cost both"
    )

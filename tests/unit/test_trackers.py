"""Trackers receive the figures of each interval, and the store keeps its record."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Run, Trajectory
from cuvee.fleet.store.store import Store
from cuvee.integrations.trackers import (
    TRACKERS,
    MLflow,
    TensorBoard,
    Tracked,
    WandB,
    check_trackers,
)
from cuvee.policies.exp3 import Exp3
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.operator import TakesRequests
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, MethodChoice, TrainConfig
from cuvee.recipes.train import train
from cuvee.testing.toy import ToyTrainer
from cuvee.training.settings import TrainerSettings
from stdlib_corpus import stdlib_corpus


class Kept:
    def __init__(self) -> None:
        self.logged: dict[int, Mapping[str, float]] = {}

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.logged[step] = figures


def play(record: Tracked) -> Trajectory:
    """What a controller does with its record."""
    trainer, policy = ToyTrainer(4), Guard(Exp3(), Limits(max_change=0.05))
    so_far = Trajectory.start(trainer.start(policy.probes))
    record.append(0, None, so_far.last)
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        record.append(len(so_far), mixture, so_far.last, policy.learn(so_far))
    return so_far


def test_figures_are_those_of_the_trajectory() -> None:
    tracker = Kept()
    trajectory = play(Tracked(tracker))
    assert list(tracker.logged) == [0, 1, 2, 3, 4]
    assert not [name for name in tracker.logged[0] if name.startswith(("mixture/", "guard/"))]
    for signals, (step, logged) in zip(trajectory.signals, tracker.logged.items(), strict=True):
        assert signals.step == step
        for k, name in enumerate(signals.names):
            assert logged[f"tokens/{name}"] == signals.tokens_K[k]
            assert (f"loss/{name}" in logged) == signals.loss.present[k]
            if signals.loss.present[k]:
                assert logged[f"loss/{name}"] == signals.loss.values[k]
    last = trajectory.last_mixture
    assert last is not None
    assert {name: tracker.logged[4][f"mixture/{name}"] for name in last.names} == last.as_dict()
    verdicts = [name for name in tracker.logged[4] if name.startswith("guard/")]
    assert sum(tracker.logged[4][name] for name in verdicts if name.split("/")[1] != "change") == 1
    assert tracker.logged[4]["guard/change"] <= 0.05 + 1e-12


def test_a_tracked_claim_records_and_takes_requests(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        store.create("run", 0, {}, run_id="run")
        record = Tracked(Kept(), store.claim_run("run", "worker"))
        trajectory = play(record)
        assert store.trajectory("run") == trajectory
        assert isinstance(record, TakesRequests)
        store.request("run", {"freeze": True}, "somebody")
        assert [request.text() for request in record.requests(5)] == ["freeze"]


class Down:
    """A tracker whose server answers only at every second call."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.steps.append(step)
        if len(self.steps) % 2:
            raise ConnectionError("the server does not answer")


def test_a_tracker_that_fails_warns_once_and_does_not_end_the_run(tmp_path: Path) -> None:
    tracker = Down()
    with Store.open(tmp_path / "store.sqlite") as store:
        store.create("run", 0, {}, run_id="run")
        with pytest.warns(UserWarning, match="tracker Down failed at step 0") as warned:
            trajectory = play(Tracked(tracker, store.claim_run("run", "worker")))
        assert len(warned) == 1
        assert tracker.steps == [signals.step for signals in trajectory.signals]
        assert store.trajectory("run") == trajectory


def test_runs_of_a_comparison_end_although_their_tracker_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> Kept:
        raise OSError("no such server")

    broken = dataclasses.replace(TRACKERS["tensorboard"], package="torch", open=refuse)
    monkeypatch.setitem(TRACKERS, "tensorboard", broken)
    config = CompareConfig(
        corpus=stdlib_corpus(tmp_path / "text").folder,
        methods=(MethodChoice(name="odm"), MethodChoice(name="natural")),
        trainer="simulator",
        train=TrainerSettings(steps=6, interval=2),
        store=str(tmp_path / "runs.db"),
        out=tmp_path / "out",
        trackers=("tensorboard",),
    )
    with pytest.warns(UserWarning, match="no such server") as warned:
        runs = compare(config)
    assert [len(run.trajectory) for run in runs] == [3, 3]
    assert len(warned) == 2


def test_tensorboard_event_files_hold_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trajectory = play(Tracked(TensorBoard(tmp_path)))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    read = [(one.step, one.value) for one in events.Scalars("mixture/web")]
    shares = [(t + 1, pytest.approx(m["web"])) for t, m in enumerate(trajectory.mixtures)]
    assert read == shares


def test_mlflow_holds_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = MLflow(address, "mine")
    trajectory = play(Tracked(tracker))
    history = MlflowClient(tracking_uri=address).get_metric_history(tracker.run_id, "mixture/web")
    read = sorted((one.step, one.value) for one in history)
    assert read == [(t + 1, m["web"]) for t, m in enumerate(trajectory.mixtures)]


def test_mlflow_takes_more_figures_than_its_server_accepts_at_once(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = MLflow(address, "mine")
    tracker.log(1, {f"mixture/domain-{k}": k / 2500 for k in range(2500)})
    run = MlflowClient(tracking_uri=address).get_run(tracker.run_id)
    assert len(run.data.metrics) == 2500
    assert run.data.metrics["mixture/domain-2499"] == 2499 / 2500


class Fake(ModuleType):
    """Stands for the packages wandb and trackio, whose `init` returns a run with `log`."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.options: dict[str, Any] = {}
        self.logged: dict[int, Mapping[str, float]] = {}

    def init(self, **options: Any) -> Fake:
        self.options = options
        return self

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.logged[step] = figures


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_receive_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, name, fake)
    kept = Kept()
    play(Tracked(TRACKERS[name].open(tmp_path / "run")))
    play(Tracked(kept))
    assert fake.logged == kept.logged
    assert (fake.options["project"], fake.options["name"]) == ("cuvee", "run")


def test_wandb_sends_nothing_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for mode, wanted in ((None, "offline"), ("online", "online")):
        if mode is None:
            monkeypatch.delenv("WANDB_MODE", raising=False)
        else:
            monkeypatch.setenv("WANDB_MODE", mode)
        WandB(tmp_path, "run")
        assert fake.options["mode"] == wanted


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("cuvee.integrations.trackers.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=f"pip install {name}`"):
        check_trackers([name])


def test_a_run_of_cuvee_train_writes_its_figures_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def trained(place: str, **more: Any) -> Run:
        config = TrainConfig(
            corpus=corpus.folder,
            method=MethodChoice(name="odm"),
            trainer="simulator",
            train=TrainerSettings(steps=6, interval=2),
            store=str(tmp_path / f"{place}.db"),
            out=tmp_path / place,
            **more,
        )
        return train(config)

    corpus = stdlib_corpus(tmp_path / "text")
    run, plain = trained("tracked", trackers=("tensorboard",)), trained("plain")
    assert (run.id, run.trajectory) == (plain.id, plain.trajectory)
    assert not (tmp_path / "plain" / run.id / "tensorboard").exists()
    events = EventAccumulator(str(tmp_path / "tracked" / run.id / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"reward/mail", "guard/accepted", "loss/mail", "valid_loss/mail"} <= set(tags)
    read = [(one.step, one.value) for one in events.Scalars("mixture/mail")]
    shares = [mixture.as_dict()["mail"] for mixture in run.trajectory.mixtures]
    assert read == [(2 * t, pytest.approx(share)) for t, share in enumerate(shares, start=1)]
    assert events.Scalars("valid_loss/mail")[0].step == 0

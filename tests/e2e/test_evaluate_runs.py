"""`cuvee evaluate` on runs of the store: their checkpoints, and their figures in the report."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from cuvee.core.errors import CheckpointError, ConfigError
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.evaluation.items import Item, TaskScore
from cuvee.fleet.store.store import Store
from cuvee.policies.exp3 import Exp3
from cuvee.recipes.config.schema import TrainConfig
from cuvee.recipes.evaluate import evaluate
from cuvee.recipes.progress.stopping import Stopped
from cuvee.recipes.reports.reporting import write_stored
from cuvee.recipes.train import train
from cuvee.testing.toy import ToyTrainer
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.settings import TrainerSettings
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

SETTINGS = TrainerSettings(steps=4, batch_size=2, sequence_length=32, interval=1, validate_every=0)
QUESTIONS = [
    {"prompt": f"def {n}", "answer": "(self, a_name_of_more_than_32_characters)"} for n in "xy"
]


class AtOnce:
    """A stop request before the first interval ends."""

    signal = signal.SIGTERM


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


def interrupted(corpus: Corpus, place: Path, **more: Any) -> TrainConfig:
    """A run that was stopped after one interval."""
    config = TrainConfig(
        corpus=corpus.folder,
        train=SETTINGS,
        store=str(place / "runs.db"),
        out=place / "runs",
        checkpoint_every=1,
        **more,
    )
    with pytest.raises(Stopped):
        train(config, stop=AtOnce())
    return config


def questions(place: Path) -> Path:
    file = place / "quiz.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return file


def test_a_checkpoint_scores_as_the_model_that_is_exported_from_it(
    corpus: Corpus, tmp_path: Path
) -> None:
    config = interrupted(corpus, tmp_path)
    file = questions(tmp_path)
    run_id = config.run_id(corpus.fingerprint)
    with pytest.raises(ConfigError, match="give --corpus FOLDER"):
        evaluate(run_id, [file], store=config.store)
    (early,) = evaluate(run_id, [file], corpus=corpus.folder, store=config.store)[1]
    train(config, resume=True)
    (exported,) = evaluate(run_id, [file], store=config.store)[1]
    with connect(tmp_path / "runs.db") as store:
        store.execute("UPDATE runs SET model = NULL")
    (last,) = evaluate(run_id, [file], corpus=corpus.folder, store=config.store)[1]
    assert last.items == exported.items
    assert early.items != exported.items


def drop(weights: dict[str, Any]) -> None:
    del weights["model.norm.weight"]


def add(weights: dict[str, Any]) -> None:
    weights["extra.weight"] = weights["model.norm.weight"]


def cut(weights: dict[str, Any]) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (drop, r"it lacks model\.norm\.weight"),
        (add, r"it has extra\.weight, which the model lacks"),
        (cut, r"model\.norm\.weight has shape"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], why: str, corpus: Corpus, tmp_path: Path
) -> None:
    config = interrupted(corpus, tmp_path)
    run_id = config.run_id(corpus.fingerprint)
    checkpoints = Checkpoints(tmp_path / "runs" / run_id / "checkpoints")
    latest = checkpoints.latest()
    assert latest is not None
    number, state = latest
    change(state["trainer"]["update"]["weights"])
    checkpoints.save(number + 1, state)
    file = questions(tmp_path)
    with pytest.raises(CheckpointError, match=why):
        evaluate(run_id, [file], corpus=corpus.folder, store=config.store)


def test_a_run_of_another_trainer_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config = interrupted(corpus, tmp_path, trainer="simulator")
    run_id = config.run_id(corpus.fingerprint)
    with pytest.raises(ConfigError, match="trained by 'simulator'"):
        evaluate(run_id, [questions(tmp_path)], corpus=corpus.folder, store=config.store)


def recorded(store: Store, method: str, right: list[int]) -> None:
    """A run of `method` whose model answered the questions in `right` and no others."""
    store.create(method, 0, {"method": {"name": method, "label": method}}, run_id=method)
    claim = store.claim_run(method, "worker")
    trainer, policy = ToyTrainer(2), Exp3()
    so_far = Trajectory.start(trainer.start(policy.probes))
    claim.append(0, None, so_far.last)
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        claim.append(len(so_far), mixture, so_far.last, policy.learn(so_far))
    items = tuple(Item(str(n), {"exact_match": float(n in right)}) for n in range(8))
    store.add_evaluations(method, [TaskScore("quiz.short", "short", {"lm_eval": "1"}, items)])


def test_the_report_of_stored_runs_compares_answers(tmp_path: Path) -> None:
    with Store.open(tmp_path / "runs.db") as store:
        recorded(store, "natural", [0, 1])
        recorded(store, "odm", [0, 1, 2, 3, 4, 5])
        page = write_stored(store, store.runs(), tmp_path / "page.html", "Two runs").read_text()
    section = page[page.index('<section id="answers">') :]
    section = section[: section.index("</section>")]
    assert "<h2>Questions</h2>" in section
    for text in ("quiz.short: exact_match", "8 questions, lm_eval 1", "0.2500", "0.7500"):
        assert text in section
    assert section.count("+0.5000 (") == 1, "the baseline has no difference to itself"

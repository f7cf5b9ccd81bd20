"""`cuvee steer --add-domain` to a `cuvee train` of a language model, killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Trainer, TrainingArguments
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.errors import CorpusError, CuveeError, StoreError
from cuvee.core.trajectory import Run, Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.store.store import Store
from cuvee.integrations.huggingface import Steering
from cuvee.policies.guard.operator import Request
from cuvee.recipes.config.schema import TrainConfig, load
from cuvee.recipes.progress.watch import Progress, Unobserved
from cuvee.recipes.train import train
from cuvee.training.model import build_model
from stdlib_corpus import NAMES, corpus_with_more, stdlib_corpus

pytestmark = pytest.mark.training
ASKED_AFTER = 4
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


class Killed(BaseException):
    """Nothing runs after it, as after kill -9."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Corpus:
    return corpus_with_more(tmp_path_factory.mktemp("more"), corpus)


def cuvee(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


class Claim:
    """Keeps nothing, and asks for the domain `tools` once."""

    def __init__(self, more: Corpus) -> None:
        place = {"corpus": str(more.folder), "fingerprint": more.fingerprint}
        self._action = {"add": {"name": "tools", "share": 0.4, **place}}

    def append(self, *_: Any) -> None: ...

    def requests(self, number: int) -> list[Request]:
        return [Request("run", 1, self._action, "me", number)] if number == 2 else []


class Place:
    """A folder with a configuration of 10 intervals, and an operator who adds a domain once."""

    def __init__(self, folder: Path, corpus: Corpus, more: Corpus) -> None:
        self.more = more
        self.store = str(folder / "runs.db")
        self.asked = False
        train = {"steps": 20, "interval": 2, "batch_size": 8, "sequence_length": 64}
        config = {
            "corpus": str(corpus.folder),
            "method": "odm",
            "guard": {"floor": 0.05, "epochs": 4},
            "train": {**train, "validate_every": 2, "validation_tokens": 512, "device": "cpu"},
            "checkpoint_every": 3,
            "store": self.store,
            "out": str(folder / "runs"),
        }
        folder.mkdir(exist_ok=True)
        self.config = folder / "mine.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def steer(self, run: str, *arguments: str) -> str:
        return cuvee("steer", run, *arguments, "--store", self.store)

    def train(self, stop: int | None = None, resume: bool = False) -> Run:
        place = self

        class Watching(Unobserved):
            done = 0

            def interval(self, progress: Progress) -> None:
                number = progress.step // 2
                if number == ASKED_AFTER and not place.asked:
                    place.asked = True
                    where = ("--from", str(place.more.folder))
                    said = place.steer(progress.run_id, "--add-domain", "tools=0.3", *where)
                    assert "add domain tools 0.3" in said
                if number == stop:
                    raise Killed

        return train(load(TrainConfig, self.config, ()), resume=resume, observer=Watching())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, more: Corpus) -> Run:
    return Place(tmp_path_factory.mktemp("whole"), corpus, more).train()


def test_it_joins_with_its_share_and_is_validated(whole: Run) -> None:
    weights_TK = whole.trajectory.weights_TK()
    assert whole.trajectory.names == (*NAMES, "tools")
    first = ASKED_AFTER + 1  # the requests for the interval after were read when it was asked
    assert (weights_TK[:first, 3] == 0).all()
    assert weights_TK[first:, 3] == pytest.approx(0.3)
    tokens = [signals.tokens_K[3] for signals in whole.trajectory.signals[first + 1 :]]
    assert sum(tokens) == pytest.approx(0.3 * 5 * 2 * 8 * 64)
    after = whole.trajectory.signals[first + 1 :]
    losses = [one.probes["valid_loss"] for one in after if "valid_loss" in one.probes]
    assert [bool(loss.present[3]) for loss in losses] == [True] * 3


@pytest.mark.parametrize("stop", [5, 6, 8])
def test_it_survives_a_kill_and_an_exact_resume(
    tmp_path: Path, corpus: Corpus, more: Corpus, whole: Run, stop: int
) -> None:
    place = Place(tmp_path, corpus, more)
    with pytest.raises(Killed):
        place.train(stop)
    assert place.train(resume=True).trajectory == whole.trajectory


def test_the_operator_sees_it_and_mistakes_are_named(
    tmp_path: Path, corpus: Corpus, more: Corpus
) -> None:
    place = Place(tmp_path, corpus, more)
    with pytest.raises(Killed):
        place.train(8)
    with Store.open(place.store) as store:
        run = store.listing().runs[0].id
    audit = cuvee("runs", "audit", run, "--only", "operator", "--store", place.store)
    assert "asked: add domain tools 0.300 from" in audit
    assert "tools 0.300" in cuvee("runs", "show", run, "--store", place.store)
    where = ("--from", str(more.folder))
    other = stdlib_corpus(tmp_path / "other", vocab_size=400)
    mistakes: list[tuple[tuple[str, ...], str, type[CuveeError]]] = [
        (("tool=0.1", *where), "no domain 'tool'", CorpusError),
        (("mail=0.1", *where), "has the domain mail already", StoreError),
        (("tools=0.1", *where), "has the domain tools already: change its share", StoreError),
        (("new=1.5", "--from", str(more.folder)), "no domain 'new'", CorpusError),
        (("network=0.1", "--from", str(other.folder)), "has the domain network", StoreError),
    ]
    for arguments, said, kind in mistakes:
        with pytest.raises(kind, match=said):
            place.steer(run, "--add-domain", *arguments)
    place.train(resume=True)
    with pytest.raises(StoreError, match="is done"):
        place.steer(run, "--add-domain", "tools=0.1", *where)


def test_reader_processes_of_a_host_take_it(tmp_path: Path, corpus: Corpus, more: Corpus) -> None:
    def trained(workers: int) -> tuple[Trajectory, list[torch.Tensor]]:
        steer = Steering(corpus, "odm", interval=6, sequence_length=32, lag=5, record=Claim(more))
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=6,
            max_steps=24,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_num_workers=workers,
        )
        model = build_model(SMALL, corpus, seed=1)
        Trainer(model, steer.arguments(args), **steer.trainer_kwargs()).train()
        return steer.controller.trajectory, [weight.detach() for weight in model.parameters()]

    alone, weights = trained(0)
    assert alone.weights_TK()[:, 3] == pytest.approx([0.0, 0.4, 0.4, 0.4])
    assert alone.last.tokens_K[3] > 0
    again, same = trained(2)
    assert again == alone
    assert all(map(torch.equal, weights, same))

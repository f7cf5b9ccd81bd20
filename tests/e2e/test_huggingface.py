"""Steering in the Hugging Face `Trainer`: resumed at every step, with workers, against a plain
loop, and with stale rows."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info
from transformers import Trainer, TrainingArguments

from cuvee.core.errors import CheckpointError, ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.loader import UpdateFile
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations import huggingface, lane_rows
from cuvee.integrations.huggingface import Steering, least_lag
from cuvee.training.model import build_model
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training
torch.set_num_threads(1)
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEPS, INTERVAL = 14, 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


class Job:
    def __init__(
        self,
        corpus: Corpus,
        folder: Path,
        policy: Any = "odm",
        lag: int | None = None,
        eval_dataset: Any = None,
        **args: Any,
    ) -> None:
        self.steer = Steering(corpus, policy, interval=INTERVAL, sequence_length=32, lag=lag)
        wanted = {
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
        }
        self.args = self.steer.arguments(TrainingArguments(str(folder), **{**wanted, **args}))
        self.model = build_model(SMALL, corpus, seed=1)
        kwargs = self.steer.trainer_kwargs()
        self.trainer = Trainer(self.model, self.args, eval_dataset=eval_dataset, **kwargs)

    def train(self, resume: str | None = None) -> list[torch.Tensor]:
        self.trainer.train(resume_from_checkpoint=resume)
        return [weight.detach().clone() for weight in self.model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("policy", ["odm", "ac_odm"])
def test_resumed_at_every_step_of_an_interval_it_ends_with_the_same_weights(
    corpus: Corpus, tmp_path: Path, policy: str
) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    whole = Job(corpus, tmp_path / "run", policy, **saving)
    weights = whole.train()
    trajectory = whole.steer.controller.trajectory
    assert [signals.step for signals in trajectory.signals] == [0, 4, 9, STEPS]
    for step in range(INTERVAL, 2 * INTERVAL + 1):
        job = Job(corpus, tmp_path / "other", policy)
        again = job.train(job.steer.resume(tmp_path / "run" / f"checkpoint-{step}"))
        assert equal(again, weights), step
        assert job.steer.controller.trajectory == trajectory


def test_workers_change_nothing_at_an_equal_lag(corpus: Corpus, tmp_path: Path) -> None:
    jobs = [Job(corpus, tmp_path, lag=3, dataloader_num_workers=count) for count in (0, 2)]
    first, second = (job.train() for job in jobs)
    assert equal(first, second)
    assert jobs[0].steer.controller.trajectory == jobs[1].steer.controller.trajectory


def test_rows_and_losses_are_those_of_the_stream(corpus: Corpus, tmp_path: Path) -> None:
    job = Job(corpus, tmp_path, lag=1)
    job.train()
    trajectory = job.steer.controller.trajectory
    stream = MixtureStream(
        corpus, Mixture.natural(corpus.domains), batch_size=6, sequence_length=32, seed=0
    )
    for number, mixture in enumerate(trajectory.mixtures):
        stream.set_mixture(mixture, at_step=number * INTERVAL)
    batches = [next(stream) for _ in range(STEPS)]
    last = 0
    for signals in trajectory.signals[1:]:
        drawn_K = sum(batch.tokens_K() for batch in batches[last : signals.step])
        np.testing.assert_array_equal(signals.tokens_K, drawn_K)
        last = signals.step
    assert last == STEPS


def test_a_worker_that_does_not_hear_of_a_decision_is_caught(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = UpdateFile.read
    monkeypatch.setattr(
        UpdateFile, "read", lambda self: [] if get_worker_info() and self._offset else heard(self)
    )
    job = Job(corpus, tmp_path, lag=3, dataloader_num_workers=2)
    with pytest.raises(
        TrainingError, match=r"step 5 was drawn under mixture version 1 .*use a lag above"
    ):
        job.train()
    assert job.trainer.state.global_step == 5


def test_settings_that_cannot_be_steered_under_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="lag is 1, but with 2 workers rows are drawn up to 3 steps"
    ):
        Job(corpus, tmp_path, lag=1, dataloader_num_workers=2)
    with pytest.raises(ConfigError, match="max_steps is not set"):
        Job(corpus, tmp_path, max_steps=-1)
    with pytest.raises(ConfigError, match="ignore_data_skip"):
        Job(corpus, tmp_path, ignore_data_skip=True)
    with pytest.raises(ConfigError, match="learns from proxy runs"):
        Job(corpus, tmp_path, policy="regmix")
    job = Job(corpus, tmp_path / "none")
    assert job.steer.resume(tmp_path / "none") is None
    (tmp_path / "none" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="saved without steering or is incomplete"):
        job.steer.resume(tmp_path / "none")


@pytest.mark.parametrize(
    ("workers", "prefetch", "accumulation", "lag"), [(0, None, 1, 1), (2, None, 1, 5), (2, 4, 2, 5)]
)
def test_the_least_lag(
    tmp_path: Path, workers: int, prefetch: int | None, accumulation: int, lag: int
) -> None:
    args = TrainingArguments(
        str(tmp_path),
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=prefetch,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
    )
    assert least_lag(args) == lag


def test_an_evaluation_inside_training_is_not_measured(corpus: Corpus, tmp_path: Path) -> None:
    tokens = torch.arange(32)
    rows = [{"input_ids": tokens, "labels": tokens}] * 4
    job = Job(corpus, tmp_path, eval_dataset=rows, eval_strategy="steps", eval_steps=3)
    assert equal(job.train(), Job(corpus, tmp_path).train())


def test_nothing_of_the_host_is_assigned_to() -> None:
    """Every attribute that the integration sets is its own."""
    for module in (huggingface, lane_rows):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [
                part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])
            ]
            for target in targets:
                if isinstance(target, ast.Attribute):
                    assert isinstance(target.value, ast.Name)
                    assert target.value.id == "self", ast.unparse(node)
        assert "setattr" not in inspect.getsource(module)

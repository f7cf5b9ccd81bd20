"""Steering in the Lightning `Trainer`: resumed at every step, with workers, against a plain loop, in
two processes, and with settings under which it is not possible."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy

from cuvee.core.errors import CheckpointError, ConfigError, TrainingError
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.loader import UpdateFile
from cuvee.integrations import lightning
from cuvee.integrations.lightning import CuveeData, SteerCallback, least_lag
from cuvee.training.model import build_model
from stdlib_corpus import stdlib_corpus

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
torch.set_num_threads(1)
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEPS, INTERVAL = 12, 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


class Module(LightningModule):  # type: ignore[misc]
    def __init__(self, corpus: Corpus, steer: SteerCallback) -> None:
        super().__init__()
        self.model = build_model(SMALL, corpus, seed=1)
        self.steer = steer

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        labels_BL = batch["labels"][:, 1:]
        logits_BLV = self.model(batch["input_ids"]).logits[:, :-1]
        loss_BL = cross_entropy(logits_BLV.mT, labels_BL, reduction="none")
        counted = (labels_BL != -100).sum()
        self.steer.losses(loss_BL, denominator=counted)
        return loss_BL.sum() / counted

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Job:
    def __init__(self, corpus: Corpus, policy: str = "odm", rows: int = 3, **options: Any) -> None:
        steering = {name: options.pop(name) for name in ("lag",) if name in options}
        reading = {"workers": options.pop("workers", 0)}
        self.data = CuveeData(corpus, batch_size=rows, sequence_length=32, **reading)
        self.steer = SteerCallback(self.data, policy, interval=INTERVAL, **steering)
        self.module = Module(corpus, self.steer)
        callbacks = [self.steer, *options.pop("callbacks", ())]
        wanted = {"max_steps": STEPS, "accumulate_grad_batches": 2, **options}
        self.trainer = Trainer(
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"enable_checkpointing": False, **wanted},
        )

    def train(self, resume: Path | None = None) -> list[Tensor]:
        path = None if resume is None else str(resume)
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=True)
        return [weight.detach().clone() for weight in self.module.parameters()]

    @property
    def trajectory(self) -> Trajectory:
        return self.steer.controller.trajectory


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("policy", ["odm", "ac_odm"])
def test_resumed_at_every_step_of_an_interval_it_ends_with_the_same_weights(
    corpus: Corpus, tmp_path: Path, policy: str
) -> None:
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Job(corpus, policy, callbacks=[saves], enable_checkpointing=True)
    weights = whole.train()
    assert [signals.step for signals in whole.trajectory.signals] == [0, 5, 10, 12]
    for step in range(4, 11):
        again = Job(corpus, policy)
        assert equal(again.train(tmp_path / f"step={step}.ckpt"), weights), step
        assert again.trajectory == whole.trajectory


def test_workers_change_nothing_at_an_equal_lag(corpus: Corpus) -> None:
    one, two = Job(corpus, lag=2), Job(corpus, workers=2)
    assert equal(one.train(), two.train())
    assert one.trajectory == two.trajectory
    assert two.steer.controller.lag == least_lag(two.data, 2) == 2


def test_a_worker_that_does_not_hear_of_a_decision_is_caught(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, main = UpdateFile.read, os.getpid()
    monkeypatch.setattr(UpdateFile, "read", lambda self: read(self) if os.getpid() == main else [])
    with pytest.raises(TrainingError, match="a reader is out of date"):
        Job(corpus, workers=1).train()


def test_losses_by_domain_are_those_of_the_rows(corpus: Corpus) -> None:
    """The loss of the first interval, over the tokens of a stream that is read without a host."""
    job = Job(corpus, max_steps=1)
    weights = Module(corpus, job.steer)
    job.train()
    stream, _ = job.data.steered(job.steer, job.trainer)
    stream.load_state_dict(stream.state_dict())
    stream.set_mixture(job.trajectory.mixtures[0])
    batch = next(stream)
    tokens = torch.from_numpy(batch.tokens_BL)
    logits = weights.model(tokens).logits[:, :-1]
    loss_BL = cross_entropy(logits.mT, tokens[:, 1:], reduction="none").detach()
    counted_BL = torch.from_numpy(batch.counted_BL[:, 1:].copy())
    for k in range(len(batch.names)):
        own = counted_BL & torch.from_numpy(batch.domain_BL[:, 1:] == k)
        measured = job.trajectory.last.loss
        assert measured.present[k] == bool(own.any())
        if own.any():
            assert measured.values[k] == pytest.approx(float(loss_BL[own].mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lag": 1, "workers": 2}, "drawn up to 2 steps ahead"),
        ({"max_steps": -1, "max_epochs": 1}, "max_steps is not set"),
    ],
)
def test_settings_that_cannot_be_steered_under_are_refused(
    corpus: Corpus, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Job(corpus, **options).train()


def test_mistakes_of_assembly_are_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="doremi learns from proxy runs"):
        SteerCallback(CuveeData(corpus), "doremi")
    job = Job(corpus)
    job.trainer.callbacks.remove(job.steer)
    with pytest.raises(ConfigError, match="CuveeData has no SteerCallback"):
        job.train()
    job = Job(corpus)
    with pytest.raises(ConfigError, match="fit\\(module, datamodule=data\\)"):
        job.trainer.fit(job.module, train_dataloaders=[])
    job = Job(corpus, accumulate_grad_batches=1)
    job.module.automatic_optimization = False
    with pytest.raises(ConfigError, match="automatic_optimization is off"):
        job.train()
    job = Job(corpus, max_steps=1)
    job.module.net = job.module.model
    del job.module.model
    with pytest.raises(ConfigError, match="Module has no model called 'model'"):
        job.train()
    job = Job(corpus, max_steps=2)
    job.train()
    job.trainer.save_checkpoint(tmp_path / "bare.ckpt")
    bare = torch.load(tmp_path / "bare.ckpt", weights_only=True)
    torch.save({**bare, "callbacks": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="step 2 and the controller at 0"):
        Job(corpus, max_steps=4).train(tmp_path / "bare.ckpt")


def test_a_checkpoint_inside_a_step_is_refused_where_it_is_loaded(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Lightning saves one after the first batch of a resumed run, if a save was due at its step."""

    def saving(folder: str) -> Job:
        saves = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=7)
        return Job(corpus, callbacks=[saves], enable_checkpointing=True)

    weights = saving("first").train()
    assert equal(saving("second").train(tmp_path / "first" / "step=7.ckpt"), weights)
    with pytest.raises(CheckpointError, match="saved inside step 7"):
        Job(corpus).train(tmp_path / "second" / "step=7.ckpt")
    assert equal(Job(corpus).train(tmp_path / "first" / "step=7.ckpt"), weights)


def test_nothing_of_the_host_is_assigned_to() -> None:
    tree = ast.parse(inspect.getsource(lightning))
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
    ]
    assert {ast.unparse(target.value) for target in targets} == {"self"}
    private = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and ast.unparse(node.value).split(".")[-1] in ("trainer", "_trainer", "module", "pl_module")
    ]
    assert private == []


def save_rank(corpus: Corpus, out: Path) -> None:
    """What one of two processes does: train whole, then from step 7."""
    saves = ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp", "rows": 2}
    whole = Job(corpus, "ac_odm", callbacks=[saves], enable_checkpointing=True, **two)
    weights = whole.train()
    again = Job(corpus, "ac_odm", **two)
    found = {
        "same": equal(again.train(out / "step=7.ckpt"), weights),
        "again": again.trajectory.to_json(),
        "whole": whole.trajectory.to_json(),
    }
    (out / f"rank-{whole.trainer.global_rank}.json").write_text(json.dumps(found))


def test_two_processes_measure_what_one_does_and_resume(corpus: Corpus, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path])
    command = [*torchrun, __file__, str(corpus.folder), str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert all(rank["same"] for rank in ranks)
    assert ranks[0] == ranks[1]
    assert ranks[0]["again"] == ranks[0]["whole"]
    alone = Job(corpus, "ac_odm", rows=4)
    alone.train()
    two = Trajectory.from_json(ranks[0]["whole"])
    for a, b in zip(alone.trajectory.signals[:2], two.signals[:2], strict=True):
        np.testing.assert_array_equal(a.tokens_K, b.tokens_K)
        np.testing.assert_allclose(a.loss.values, b.loss.values, rtol=1e-5)
        for name in a.probes:
            found, expected = b.probes[name].values, a.probes[name].values
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)


if __name__ == "__main__":
    save_rank(Corpus.open(Path(sys.argv[1])), Path(sys.argv[2]))

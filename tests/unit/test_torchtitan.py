"""torchtitan's protocol of version 0.2, followed by a trainer of its shape: builders of a
`TrainSpec`, hooks on a container of optimizers, a loss that is a sum, and checkpoints by DCP."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader as loader
from torch.distributed.checkpoint import state_dict_saver as saver

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations import torchtitan
from cuvee.integrations.torchtitan import TitanSteering
from cuvee.policies.fixed import Fixed, Scheduled
from stdlib_corpus import stdlib_corpus

STEPS, L = 8, 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


@dataclass
class TrainSpec:
    build_optimizers_fn: Callable[..., torch.optim.Optimizer]
    build_dataloader_fn: Callable[..., Any]
    build_loss_fn: Callable[..., Any]


def job_config(**changes: Any) -> Any:
    degrees = {f"{name}_parallel_degree": 1 for name in ("tensor", "context", "pipeline", "expert")}
    training = {
        "steps": STEPS,
        "local_batch_size": 2,
        "global_batch_size": 4,
        "seq_len": L,
        "enable_cpu_offload": False,
    }
    return SimpleNamespace(
        training=SimpleNamespace(**{k: changes.get(k, v) for k, v in training.items()}),
        parallelism=SimpleNamespace(**{k: changes.get(k, v) for k, v in degrees.items()}),
        optimizer=SimpleNamespace(early_step_in_backward=changes.get("early", False)),
    )


class Model(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, 8)
        block = nn.ModuleDict({"feed_forward": nn.Linear(8, 8)})
        self.layers = nn.ModuleDict({"0": block})
        self.output = nn.Linear(8, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        h_BLD = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h_BLD = h_BLD + layer["feed_forward"](h_BLD)  # type: ignore[index]
        logits_BLV: Tensor = self.output(h_BLD)
        return logits_BLV


class Host:
    """Does what torchtitan's trainer does, in its order."""

    def __init__(self, corpus: Corpus, steer: TitanSteering, **changes: Any) -> None:
        config = job_config(**changes)
        spec = steer.train_spec(TrainSpec(self._optimizer, lambda **_: None, lambda *_: None))
        self.loader = spec.build_dataloader_fn(
            dp_world_size=1, dp_rank=0, tokenizer=None, job_config=config
        )
        torch.manual_seed(1)
        self.model = Model(corpus.vocab_size)
        self.loss = spec.build_loss_fn(config, parallel_dims=None)
        self.optimizer = spec.build_optimizers_fn([self.model], config.optimizer, None)
        self.step = 0

    def _optimizer(self, model_parts: Any, *_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model_parts[0].parameters(), lr=1.0)

    def train(self, saves: Path | None = None) -> list[Tensor]:
        batches = iter(self.loader)
        while self.step < STEPS:
            self.step += 1
            micro = [next(batches) for _ in range(2)]
            tokens = sum((labels != -100).sum() for _, labels in micro)
            for inputs, labels in micro:
                (self.loss(self.model(inputs["input"]), labels) / tokens).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if saves is not None:
                self.save(saves / str(self.step))
            self.validate()
        return [weight.detach().clone() for weight in self.model.parameters()]

    @torch.no_grad()
    def validate(self) -> None:
        tokens_BL = torch.zeros(1, L, dtype=torch.int64)
        assert self.loss(self.model(tokens_BL), tokens_BL) > 0

    def _states(self) -> dict[str, Any]:
        return {"model": self.model, "dataloader": self.loader, "step": self.step}

    def save(self, folder: Path) -> None:
        saver.save(self._states(), checkpoint_id=folder, no_dist=True)

    def load(self, folder: Path) -> None:
        states = self._states()
        loader.load(states, checkpoint_id=folder, no_dist=True)
        self.step = states["step"]


def turning() -> Scheduled:
    names = ("algorithms", "mail", "network")
    return Scheduled([(0.0, {names[0]: 1.0, names[1]: 1.0}), (1.0, dict.fromkeys(names, 1.0))])


def steering(corpus: Corpus, policy: Any = None, **options: Any) -> TitanSteering:
    return TitanSteering(corpus, policy or turning(), interval=3, **options)


def trained(corpus: Corpus, policy: Any = None, **options: Any) -> tuple[list[Tensor], Trajectory]:
    steer = steering(corpus, policy, **options)
    return Host(corpus, steer).train(), steer.controller.trajectory


@pytest.mark.parametrize(("policy", "steps"), [(None, (3, 4, 5)), ("ac_odm", (4,))])
def test_a_run_resumed_from_any_checkpoint_ends_with_equal_weights(
    corpus: Corpus, tmp_path: Path, policy: str | None, steps: tuple[int, ...]
) -> None:
    steer = steering(corpus, policy)
    whole = Host(corpus, steer)
    weights = whole.train(saves=tmp_path)
    trajectory = steer.controller.trajectory
    assert [signals.step for signals in trajectory.signals] == [0, 3, 6, 8]
    assert policy or len({mixture.digest() for mixture in trajectory.mixtures}) == 3
    for step in steps:
        steer = steering(corpus, policy)
        again = Host(corpus, steer)
        again.load(tmp_path / str(step))
        assert all(map(torch.equal, again.train(), weights)), step
        assert steer.controller.trajectory == trajectory


def test_a_checkpoint_from_before_training_begins_the_run(corpus: Corpus, tmp_path: Path) -> None:
    weights, _ = trained(corpus)
    host = Host(corpus, steering(corpus))
    host.save(tmp_path / "seed")
    host.load(tmp_path / "seed")
    assert all(map(torch.equal, host.train(), weights))


def test_losses_by_domain_are_those_of_a_loop_over_the_tokens(corpus: Corpus) -> None:
    """The learning rate is 0, so the losses of a domain do not depend on the step."""
    natural = Mixture.natural(corpus.domains)
    steer = TitanSteering(corpus, Fixed(natural), interval=STEPS)
    host = Host(corpus, steer)
    host.optimizer.param_groups[0]["lr"] = 0.0
    host.train()
    stream = MixtureStream(corpus, natural, batch_size=4, sequence_length=L, seed=0)
    sums_K, counts_K = np.zeros(3), np.zeros(3)
    for _ in range(STEPS):
        batch = next(stream)
        tokens_BL = torch.from_numpy(batch.tokens_BL)
        logs_BLV = host.model(tokens_BL).detach().log_softmax(-1)
        for b, j in np.argwhere(batch.counted_BL[:, :-1] & batch.counted_BL[:, 1:]):
            sums_K[batch.domain_BL[b, j]] -= float(logs_BLV[b, j, tokens_BL[b, j + 1]])
            counts_K[batch.domain_BL[b, j]] += 1
    last = steer.controller.trajectory.last
    np.testing.assert_allclose(last.loss.values, sums_K / counts_K, rtol=1e-5)


def test_two_workers_at_their_lag_give_the_same_run(corpus: Corpus) -> None:
    lagged, there = trained(corpus, lag=2)
    weights, trajectory = trained(corpus, workers=2)
    assert all(map(torch.equal, weights, lagged))
    assert trajectory == there


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tensor_parallel_degree": 2}, "tensor_parallel_degree is 2"),
        ({"pipeline_parallel_degree": 4}, "pipeline_parallel_degree is 4"),
        ({"enable_cpu_offload": True}, "enable_cpu_offload"),
        ({"early": True}, "early_step_in_backward"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    corpus: Corpus, changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        Host(corpus, steering(corpus), **changes)


def test_too_small_a_lag_is_refused_before_training(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="use a lag of 2 or more"):
        trained(corpus, workers=2, lag=1)


def test_nothing_of_the_host_is_assigned_to() -> None:
    source = inspect.getsource(torchtitan)
    assert "setattr" not in source
    for node in ast.walk(ast.parse(source)):
        for target in node.targets if isinstance(node, ast.Assign) else []:
            if isinstance(target, ast.Attribute):
                assert ast.unparse(target.value) == "self", ast.unparse(node)

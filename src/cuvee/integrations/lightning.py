"""`SteerCallback` and `CuveeData`: cuvee's controller in the Lightning `Trainer`.

    data = CuveeData(corpus, batch_size=8, sequence_length=1024)
    steer = SteerCallback(data, policy="ac_odm", interval=50)
    trainer = Trainer(max_steps=10_000, callbacks=[steer])
    trainer.fit(module, datamodule=data, ckpt_path="last.ckpt")   # None without a checkpoint

The module passes its losses on, because Lightning does not know them:

    def training_step(self, batch, index):
        loss_BL = ...                                # next-token losses, (B, L) or (B, L − 1)
        n = (batch["labels"][:, 1:] != -100).sum()
        self.steer.losses(loss_BL, denominator=n)    # `self.steer` is the callback
        return loss_BL.sum() / n                     # the sum of counted losses / denominator

It uses public extension points of Lightning: a data module, a loader and a callback. No attribute
of the host is replaced. `cuvee.integrations.controller` explains the lag.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from cuvee.core.errors import CheckpointError, ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.registry import policy_without_proxies
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller, Record, tokenizer_of
from cuvee.integrations.lane_rows import Labels, LaneRows, collate, take_rows
from cuvee.integrations.megatron import LaneBatches
from cuvee.integrations.step import Step
from cuvee.policies.guard.guard import Limits
from cuvee.training.distributed import Ranks

# The packages `lightning` and `pytorch_lightning` have a class of their own of each name.
if "pytorch_lightning" not in sys.modules and find_spec("lightning"):
    from lightning.pytorch import Callback, LightningDataModule
else:
    from pytorch_lightning import Callback, LightningDataModule


class CuveeData(LightningDataModule):  # type: ignore[misc]
    """A data module over the rows of `corpus`. It needs a `SteerCallback` in the same trainer.

    `batch_size` is the number of rows of one forward pass on one rank. Batches are dictionaries
    with `input_ids` and `labels`, (B, L) each. `workers` processes read ahead, up to `prefetch`
    batches each. `labels` masks tokens whose loss does not count (see `lane_rows.Labels`).
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int = 8,
        sequence_length: int = 1024,
        workers: int = 0,
        prefetch: int = 2,
        seed: int = 0,
        labels: Labels | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or sequence_length < 2:
            raise ConfigError(
                f"batch_size is {batch_size} and sequence_length {sequence_length}: a batch needs "
                "at least one row and a row at least two tokens"
            )
        self.corpus = corpus
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.workers = workers
        self.prefetch = prefetch if workers else 0
        self.seed = seed
        self._labels = labels
        self._batches: _Batches | None = None

    def steered(self, steer: SteerCallback, trainer: Any) -> tuple[MixtureStream, LaneRows]:
        """Prepare the rows of `trainer`; the callback calls it before training."""
        parts = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        ranks = int(parts["num_replicas"])
        stream = MixtureStream(
            self.corpus,
            Mixture.natural(self.corpus.domains),
            batch_size=self.batch_size * ranks * trainer.accumulate_grad_batches,
            sequence_length=self.sequence_length,
            seed=self.seed,
        )
        rows = LaneRows(stream, trainer.max_steps, labels=self._labels)
        self._batches = _Batches(self, steer, rows, int(parts["rank"]), ranks)
        return stream, rows

    def train_dataloader(self) -> _Batches:
        if self._batches is None:
            raise ConfigError(
                "CuveeData has no SteerCallback: give the trainer "
                "callbacks=[SteerCallback(data, policy=…)]"
            )
        return self._batches


class _Batches:
    """The loader of one rank. Reading begins with the first decision, or where a run resumes."""

    def __init__(
        self, data: CuveeData, steer: SteerCallback, rows: LaneRows, rank: int, ranks: int
    ) -> None:
        self._data = data
        self._steer = steer
        self._rows = rows
        self._rank = rank
        self._ranks = ranks

    def __len__(self) -> int:
        return len(self._rows) // (self._data.batch_size * self._ranks)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._read(self._steer.begin())

    def _read(self, begun: Controller) -> Iterator[dict[str, Tensor]]:
        size = begun.stream.batch_size
        batches = LaneBatches(
            len(self._rows),
            batch_size=size,
            micro_batch_size=self._data.batch_size,
            rank=self._rank,
            ranks=self._ranks,
            consumed=begun.step_number * size,
        )
        yield from DataLoader(
            self._rows,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self._data.workers,
            prefetch_factor=self._data.prefetch or None,
        )

    # Lightning saves and restores loaders that have these two. The callback restores the position.

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._steer.controller.step_number}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SteerCallback(Callback):  # type: ignore[misc]
    """Steers the rows of `data`: the policy decides every `interval` optimizer steps.

    `policy` is a policy, such as `load_policy(folder)`, or the name of a method that needs no proxy
    runs, with its default options. The default `lag` is the smallest that the workers of `data`
    allow. `record` stores the intervals. `model` is the module's attribute with the language model,
    as `self.model`. With several ranks, `Trainer.save_checkpoint` saves the
    states of all of them, so every rank must call it, as Lightning requires.
    """

    def __init__(
        self,
        data: CuveeData,
        policy: str | Policy = "ac_odm",
        *,
        interval: int = 50,
        lag: int | None = None,
        limits: Limits | None = None,
        record: Record | None = None,
        model: str = "model",
    ) -> None:
        self.data = data
        self._policy = (
            policy_without_proxies(policy, data.corpus) if isinstance(policy, str) else policy
        )
        self._interval = interval
        self._lag = lag
        self._limits = limits
        self._record = record
        self._name = model
        self._trainer: Any = None
        self._stream: MixtureStream | None = None
        self._rows: LaneRows | None = None
        self._ranks = Ranks()
        self._saved: list[bytes] | None = None
        self._controller: Controller | None = None
        self._step: Step | None = None
        self._updated = False

    @property
    def controller(self) -> Controller:
        """The controller with all intervals so far. It exists once training has begun."""
        assert self._controller is not None, "training has not begun"
        return self._controller

    def losses(self, loss_BL: Tensor, denominator: float | Tensor) -> None:
        """Pass the next-token losses of a training step, in nats.

        `training_step` must return Σ counted losses / `denominator`. Without effect in validation.
        """
        if self._step is not None and self._trainer.training:
            self._step.losses(loss_BL, denominator * self._trainer.accumulate_grad_batches)

    # Events of the host

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        least = least_lag(self.data, trainer.accumulate_grad_batches)
        lag = least if self._lag is None else self._lag
        self._check(trainer, pl_module, lag, least)
        self._lag = lag
        self._trainer = trainer
        self._controller = None
        self._stream, self._rows = self.data.steered(self, trainer)

    def _check(self, trainer: Any, module: Any, lag: int, least: int) -> None:
        parts = trainer.distributed_sampler_kwargs or {"num_replicas": 1}
        problems = {
            trainer.datamodule is not self.data: (
                "the trainer's data module is not the one of SteerCallback: call "
                "trainer.fit(module, datamodule=data)"
            ),
            trainer.max_steps < 1: "max_steps is not set: give Trainer the number of steps",
            trainer.precision == "16-mixed": (
                "precision 16-mixed scales losses, which measurements do not undo: use bf16-mixed"
            ),
            not module.automatic_optimization: (
                "automatic_optimization is off, so steps cannot be followed: leave it on, or use "
                "cuvee.integrations.controller.Controller in your own loop"
            ),
            parts["num_replicas"] != trainer.world_size: (
                f"{trainer.world_size} processes read {parts['num_replicas']} different parts of "
                "the data: strategies that split a model over processes are not supported"
            ),
            lag < least: (
                f"lag is {lag}, but with {self.data.workers} workers rows are drawn up to {least} "
                f"steps ahead: use a lag of {least} or more, or fewer workers"
            ),
        }
        if problem := problems.get(True):
            raise ConfigError(problem)

    def begin(self) -> Controller:
        """Return the controller; the first call builds it and begins or resumes the run."""
        if self._controller is not None:
            return self._controller
        assert self._stream is not None
        assert self._rows is not None
        assert self._lag is not None
        self._ranks = Ranks.adopt()
        controller = Controller(
            self._policy,
            self._stream,
            self._model(),
            interval=self._interval,
            steps=self._trainer.max_steps,
            lag=self._lag,
            limits=self._limits,
            ranks=self._ranks,
            tokenizer=tokenizer_of(self.data.corpus),
            record=self._record,
            on_update=self._rows.follow,
        )
        if self._saved is not None:
            controller.restore(_of_rank(self._saved, self._ranks))
            self._rows.restart(self._stream)
        else:
            controller.begin()
        if controller.step_number != self._trainer.global_step:
            raise CheckpointError(
                f"the host starts at step {self._trainer.global_step} and the controller at "
                f"{controller.step_number}: resume from a checkpoint that was saved with "
                "SteerCallback"
            )
        self._controller = controller
        return controller

    def _model(self) -> nn.Module:
        module = self._trainer.lightning_module
        model = getattr(module, self._name, None)
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{type(module).__name__} has no model called {self._name!r}: give SteerCallback "
                "the name of the attribute with the language model, as model='net'"
            )
        return model

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        rows = take_rows(batch)
        assert rows is not None, "the rows are those of CuveeData"
        if self._step is None:
            self._step = self.controller.begin_step()
            self._updated = False
        self._step.forward(rows)

    def on_before_optimizer_step(self, *_: Any) -> None:
        assert self._step is not None
        self._step.before_update()
        self._updated = True

    def on_train_batch_end(self, *_: Any) -> None:
        if self._updated:
            self._step = None
            self._updated = False
            self.controller.end_step()

    def state_dict(self) -> dict[str, Any]:
        if self._step is not None:  # the gradients accumulated so far are not in a checkpoint
            return {"inside": self.controller.step_number}
        if self._controller is None:
            return {}
        return {"ranks": self._ranks.gather(self._controller.state(), "the state of the ranks")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "inside" in state_dict:
            raise CheckpointError(
                f"the checkpoint was saved inside step {state_dict['inside']}, without the "
                "gradients accumulated until then: resume from one that was saved after a step"
            )
        if self._controller is not None:
            raise CheckpointError(
                "the run began before its checkpoint was loaded: give Trainer max_steps without "
                "max_epochs"
            )
        self._saved = state_dict["ranks"]

    def on_train_end(self, *_: Any) -> None:
        self.controller.close()

    def on_exception(self, *_: Any) -> None:
        if self._controller is not None:
            self._controller.close()


def least_lag(data: CuveeData, accumulation: int) -> int:
    """Return the smallest possible lag, ⌈workers · prefetch / accumulation⌉ steps.

    Lightning itself does not read ahead, because the loader has a length.
    """
    return math.ceil(data.workers * data.prefetch / accumulation)


def _of_rank(saved: list[bytes], ranks: Ranks) -> bytes:
    if len(saved) != ranks.size:
        raise CheckpointError(
            f"the checkpoint has the states of {len(saved)} ranks, but {ranks.size} are running: "
            "resume with the same number"
        )
    return saved[ranks.rank]

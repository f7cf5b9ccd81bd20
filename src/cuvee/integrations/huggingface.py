"""`Steering`: cuvee's controller in the Hugging Face `Trainer`.

    steer = Steering(corpus, policy="ac_odm", interval=50, sequence_length=1024)
    args = steer.arguments(TrainingArguments("out", max_steps=10_000))
    trainer = Trainer(model, args, **steer.trainer_kwargs())
    trainer.train(resume_from_checkpoint=steer.resume("out"))   # None without a checkpoint

It uses only public extension points of the host: a map-style dataset, a collator, a loss function,
a callback, and a hook on the bare model. No attribute of the host is replaced.

The rows of the dataset are read in order. Data-loader workers draw them ahead of training and
receive decisions through a file. So a decision is made some steps before it takes effect
(`cuvee.integrations.controller` explains the lag).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cuvee.core.errors import CheckpointError, ConfigError
from cuvee.core.files import write_atomic
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.registry import policy_without_proxies
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller, Record, tokenizer_of
from cuvee.integrations.lane_rows import IGNORED, Labels, LaneRows, collate, take_rows
from cuvee.integrations.step import Step
from cuvee.policies.guard.guard import Limits
from cuvee.training.distributed import Ranks


class Steering:
    """Provides what a `Trainer` needs to train on `corpus` under a policy.

    The policy decides every `interval` optimizer steps. `policy` is a policy, such as
    `load_policy(folder)`, or the name of a method that needs no proxy runs, with its default
    options. The default `lag` is the smallest that the host's workers allow. `record` stores the
    intervals.

    For supervised fine-tuning, `labels` masks tokens whose loss does not count (see
    `lane_rows.Labels`). Each row is packed from `pieces` parts of equal length, and each part is
    drawn from the mixture separately.
    """

    def __init__(
        self,
        corpus: Corpus,
        policy: str | Policy = "ac_odm",
        *,
        interval: int = 50,
        sequence_length: int = 1024,
        lag: int | None = None,
        limits: Limits | None = None,
        seed: int = 0,
        record: Record | None = None,
        pieces: int = 1,
        labels: Labels | None = None,
    ) -> None:
        if pieces < 1 or sequence_length % pieces:
            raise ConfigError(
                f"pieces is {pieces} and sequence_length {sequence_length}: sequence_length must "
                "be divisible by pieces"
            )
        self.corpus = corpus
        self.interval = interval
        self.lag = lag
        self.policy = policy_without_proxies(policy, corpus) if isinstance(policy, str) else policy
        self._length = sequence_length // pieces
        self._pieces = pieces
        self._labels = labels
        self._limits = limits
        self._seed = seed
        self._record = record
        self._stream: MixtureStream | None = None
        self._rows: LaneRows | None = None
        self._saved: bytes | None = None
        self._args: TrainingArguments | None = None
        self._controller: Controller | None = None

    @property
    def controller(self) -> Controller:
        """The controller with all intervals so far. It exists once training has begun."""
        assert self._controller is not None, "training has not begun"
        return self._controller

    # Arguments for the host

    def arguments(self, args: TrainingArguments) -> TrainingArguments:
        """Return a copy of `args` with which rows are read in order.

        Raises `ConfigError` for settings under which steering is not possible.
        """
        least = least_lag(args)
        lag = least if self.lag is None else self.lag
        if lag < least:
            raise ConfigError(
                f"lag is {lag}, but with {args.dataloader_num_workers} workers rows are drawn up "
                f"to {least} steps ahead: use a lag of {least} or more, or fewer workers"
            )
        if args.max_steps < 1:
            raise ConfigError("max_steps is not set: give TrainingArguments the number of steps")
        if args.fp16:
            raise ConfigError("fp16 scales losses, which measurements do not undo: use bf16")
        if args.ignore_data_skip:
            raise ConfigError(
                "ignore_data_skip would read rows again after a restart: do not set it"
            )
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        batch *= self._pieces
        self.lag = lag
        self._stream = MixtureStream(
            self.corpus,
            Mixture.natural(self.corpus.domains),
            batch_size=batch,
            sequence_length=self._length,
            seed=self._seed,
        )
        self._rows = LaneRows(
            self._stream, args.max_steps, pieces=self._pieces, labels=self._labels
        )
        self._args = dataclasses.replace(
            args, train_sampling_strategy="sequential", remove_unused_columns=False
        )
        return self._args

    def trainer_kwargs(self) -> dict[str, Any]:
        """Return the arguments of `Trainer`: dataset, collator, loss function and a callback."""
        if self._rows is None:
            raise ConfigError("call steer.arguments(args) before steer.trainer_kwargs()")
        hooks = TrainerHooks(self)
        return {
            "train_dataset": self._rows,
            "data_collator": collate,
            "compute_loss_func": hooks.loss,
            "callbacks": [hooks],
        }

    def resume(self, folder: Path | str) -> str | None:
        """Return the newest checkpoint in `folder`, or `folder` itself if it is a checkpoint.

        Pass it as `resume_from_checkpoint`. None if there is none. Raises `CheckpointError` for a
        checkpoint without a state of steering, or an incomplete one.
        """
        if self._args is None:
            raise ConfigError("call steer.arguments(args) before steer.resume(folder)")
        path = Path(folder)
        if not (path / "trainer_state.json").is_file():
            found = [each for each in path.glob("checkpoint-*") if each.is_dir()]
            if not found:
                return None
            path = max(found, key=lambda each: int(each.name.rpartition("-")[2]))
        saved = _file(path, self._args.process_index)
        if not saved.is_file():
            raise CheckpointError(
                f"{saved} is missing: {path} was saved without steering or is incomplete. Resume "
                "from an earlier checkpoint"
            )
        self._saved = saved.read_bytes()
        return str(path)

    # Called by the callback

    def begin(self, model: nn.Module, args: TrainingArguments, done: int) -> Controller:
        """Build the controller over the host's bare model; restore it if the host resumes.

        `done` is the step at which the host starts.
        """
        assert self._stream is not None
        assert self._rows is not None
        assert self.lag is not None
        controller = self._controller = Controller(
            self.policy,
            self._stream,
            model,
            interval=self.interval,
            steps=args.max_steps,
            lag=self.lag,
            limits=self._limits,
            ranks=Ranks.adopt(),
            tokenizer=tokenizer_of(self.corpus),
            record=self._record,
            on_update=self._rows.follow,
        )
        if self._saved is not None:
            controller.restore(self._saved)
            self._rows.restart(self._stream)
        else:
            controller.begin()
        if controller.step_number != done:
            raise CheckpointError(
                f"the host starts at step {done} and the controller at {controller.step_number}: "
                "pass resume_from_checkpoint=steer.resume(folder) to train()"
            )
        return controller


class TrainerHooks(TrainerCallback):  # type: ignore[misc]
    """Drives the controller from the host's events.

    Its loss equals the host's, computed from the loss at each position.
    """

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._controller: Controller | None = None
        self._step: Step | None = None
        self._waiting = False
        self._handles: list[Any] = []
        self._shares = 1.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any
    ) -> None:
        model: nn.Module = host["model"]
        self._controller = self._steering.begin(model, args, state.global_step)
        # The host multiplies losses that it divided by the tokens of all processes by their number.
        self._shares = float(args.world_size) if args.average_tokens_across_devices else 1.0
        before = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        self._handles = [before]

    def _before_forward(self, model: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        rows = take_rows(named)
        if rows is None:  # a forward pass of an evaluation
            return None
        if self._step is None:
            raise ConfigError("rows of the training set may be read only in training")
        self._step.forward(rows)
        self._waiting = True
        return inputs, named

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return Σ next-token losses / the counted tokens of the whole batch."""
        # The labels are shifted instead of the logits, because a slice of logits would be copied.
        targets_BL = functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
        loss_BL = functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(),
            targets_BL.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        ).view(targets_BL.shape)
        tokens = (targets_BL != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        if self._waiting:
            assert self._step is not None
            self._step.losses(loss_BL, denominator=tokens / self._shares)
            self._waiting = False
        return loss_BL.sum() / tokens

    def on_step_begin(self, *_: Any, **host: Any) -> None:
        assert self._controller is not None
        self._step = self._controller.begin_step()

    def on_pre_optimizer_step(self, *_: Any, **host: Any) -> None:
        assert self._step is not None
        self._step.before_update()

    def on_step_end(self, *_: Any, **host: Any) -> None:
        assert self._controller is not None
        self._step = None
        self._controller.end_step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **host: Any
    ) -> None:
        assert self._controller is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomic(_file(folder, args.process_index), self._controller.state())

    def on_train_end(self, *_: Any, **host: Any) -> None:
        for handle in self._handles:
            handle.remove()
        assert self._controller is not None
        self._controller.close()


def least_lag(args: TrainingArguments) -> int:
    """Return the smallest possible lag, ⌈(workers · prefetch + 1) / accumulation⌉ steps.

    Each worker holds `prefetch` micro-batches, accelerate reads one more ahead, and a step has
    `accumulation` micro-batches.
    """
    workers = int(args.dataloader_num_workers)
    ahead = workers * int(args.dataloader_prefetch_factor or 2) + 1
    return math.ceil(ahead / int(args.gradient_accumulation_steps))


def _file(folder: Path, rank: int) -> Path:
    return folder / f"cuvee-rank-{rank}.safetensors"

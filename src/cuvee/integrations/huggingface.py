"""`Steering`: cuvee's controller in the Hugging Face `Trainer`.

    steer = Steering(corpus, policy="ac_odm", interval=50, sequence_length=1024)
    args = steer.arguments(TrainingArguments("out", max_steps=10_000))
    trainer = Trainer(model, args, **steer.trainer_kwargs())
    trainer.train(resume_from_checkpoint=steer.resume("out"))        # None if there is no checkpoint yet

It uses the host's public extension points only: a map-style dataset, a collator, a loss function, a callback, and a hook
on the bare model. Nothing of the host is assigned to.

The dataset's rows are read in order. Data-loader workers draw them ahead of training and hear of decisions through a
file, so a decision is taken some steps before it takes effect: see `cuvee.integrations.controller` on lag.
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
from cuvee.core.registry import METHODS
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller, Record
from cuvee.integrations.lane_rows import IGNORED, LaneRows, collate, take_rows
from cuvee.integrations.step import Step
from cuvee.policies.guard.guard import Limits
from cuvee.training.distributed import Ranks


class Steering:
    """What a `Trainer` needs to train on `corpus` under a policy that decides every `interval` optimizer steps.

    `policy` is the name of a method that needs no proxy runs, with its default options, or a policy, such as
    `load_policy(folder)`. `lag` is by default the least that the host's workers allow. `record` takes what the store
    keeps of each interval.
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
    ) -> None:
        self.corpus = corpus
        self.interval = interval
        self.lag = lag
        self.policy = _policy(policy, corpus) if isinstance(policy, str) else policy
        self._length = sequence_length
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
        """Its trajectory has every interval so far. Exists once training has begun."""
        assert self._controller is not None, "training has not begun"
        return self._controller

    # What the host is given

    def arguments(self, args: TrainingArguments) -> TrainingArguments:
        """A copy of `args` with which rows are read in order, after checking what steering depends on.

        Raises `ConfigError` for settings that cannot be steered under, before anything is trained.
        """
        least = least_lag(args)
        lag = least if self.lag is None else self.lag
        if lag < least:
            raise ConfigError(
                f"lag is {lag}, but with {args.dataloader_num_workers} workers rows are drawn up to {least} steps ahead: "
                f"use a lag of {least} or more, or fewer workers"
            )
        if args.max_steps < 1:
            raise ConfigError("max_steps is not set: give TrainingArguments the number of steps")
        if args.fp16:
            raise ConfigError("fp16 scales losses, which measurements do not undo: use bf16")
        if args.ignore_data_skip:
            raise ConfigError(
                "ignore_data_skip would read rows again after a restart: leave it off"
            )
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.lag = lag
        self._stream = MixtureStream(
            self.corpus,
            Mixture.natural(self.corpus.domains),
            batch_size=batch,
            sequence_length=self._length,
            seed=self._seed,
        )
        self._rows = LaneRows(self._stream, args.max_steps)
        self._args = dataclasses.replace(
            args, train_sampling_strategy="sequential", remove_unused_columns=False
        )
        return self._args

    def trainer_kwargs(self) -> dict[str, Any]:
        """The arguments of `Trainer` that steering fills: dataset, collator, loss function and a callback."""
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
        """The newest checkpoint in `folder`, or `folder` itself if it is one, for `resume_from_checkpoint`.

        None if there is none. Raises `CheckpointError` for one that was saved without steering or was cut short.
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
                f"{saved} is missing: {path} was saved without steering or was cut short. Resume from an earlier checkpoint"
            )
        self._saved = saved.read_bytes()
        return str(path)

    # What the callback asks for

    def begin(self, model: nn.Module, args: TrainingArguments, done: int) -> Controller:
        """The controller over the host's bare model, restored if the host resumes at step `done`."""
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
            tokenizer=_tokenizer(self.corpus),
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
                f"the host starts at step {done} and the controller at {controller.step_number}: pass "
                "resume_from_checkpoint=steer.resume(folder) to train()"
            )
        return controller


class TrainerHooks(TrainerCallback):  # type: ignore[misc]
    """Drives the controller from the host's events. Its loss is the host's, one number for each position kept."""

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
        if rows is None:  # an evaluation
            return None
        if self._step is None:
            raise ConfigError("rows of the training set may be read in training only")
        self._step.forward(rows)
        self._waiting = True
        return inputs, named

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Σ next-token losses / the counted tokens of the whole batch."""
        # Labels are shifted and not the logits, whose slice would have to be copied.
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
    """⌈(workers · prefetch + 1) / accumulation⌉ steps.

    Workers hold `prefetch` micro-batches each, accelerate looks one more ahead, and a step takes `accumulation`.
    """
    workers = int(args.dataloader_num_workers)
    ahead = workers * int(args.dataloader_prefetch_factor or 2) + 1
    return math.ceil(ahead / int(args.gradient_accumulation_steps))


def _policy(name: str, corpus: Corpus) -> Policy:
    method = METHODS.get(name)()
    if method.propose(corpus, ()):
        raise ConfigError(
            f"{name} learns from proxy runs: run `cuvee search`, then give the policy, as in load_policy(folder)"
        )
    policy: Policy = method.commit(corpus, ())
    return policy


def _tokenizer(corpus: Corpus) -> Any:
    return None if corpus.manifest.tokenizer.sha256 is None else corpus.tokenizer()


def _file(folder: Path, rank: int) -> Path:
    return folder / f"cuvee-rank-{rank}.safetensors"

"""`TitanSteering`: cuvee's controller in torchtitan's `Trainer`, versions 0.2 and 0.3.

    steer = TitanSteering(corpus, policy="ac_odm", interval=50)
    register_train_spec("steered", steer.train_spec(llama3.get_train_spec()))     # 0.2
    def steered() -> Trainer.Config: return steer.config(llama3_debugmodel())     # 0.3

It uses public extension points of torchtitan: the builders of a `TrainSpec` (0.2), or the
configurations of loader and loss and the callables of a `ModelSpec` (0.3), and hooks on the model
and the optimizers. No attribute of the host is replaced. The host's checkpoints hold the state, as
that of its loader. `cuvee.integrations.controller` explains the lag.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.registry import policy_without_proxies
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller, Record, tokenizer_of
from cuvee.integrations.lane_rows import IGNORED, Labels, LaneRows, collate, take_rows
from cuvee.integrations.megatron import LaneBatches
from cuvee.integrations.rows import Rows
from cuvee.integrations.step import Step
from cuvee.policies.guard.guard import Limits
from cuvee.training.distributed import Ranks

Forward = Callable[[Any, Tensor], Tensor]
"""(model, (B, L) tokens) → (B, L, V) logits."""


class TitanSteering:
    """Steers the rows on which torchtitan trains: the policy decides every `interval` steps.

    `policy` is a policy, such as `load_policy(folder)`, or the name of a method that needs no proxy
    runs, with its default options. `workers` processes read ahead, up to `prefetch` batches each,
    and the default `lag` is the smallest that they allow. `record` stores the intervals. `labels`
    masks tokens whose loss does not count (see `lane_rows.Labels`).
    """

    def __init__(
        self,
        corpus: Corpus,
        policy: str | Policy = "ac_odm",
        *,
        interval: int = 50,
        lag: int | None = None,
        limits: Limits | None = None,
        seed: int = 0,
        record: Record | None = None,
        labels: Labels | None = None,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        self.corpus = corpus
        self.interval = interval
        self.workers = workers
        self.prefetch = prefetch if workers else 0
        self._policy = policy_without_proxies(policy, corpus) if isinstance(policy, str) else policy
        self._lag = lag
        self._limits = limits
        self._seed = seed
        self._record = record
        self._labels = labels
        self._training: Any = None
        self._model: _AsTransformers | None = None
        self._handle: Any = None
        self._controller: Controller | None = None
        self._step: Step | None = None
        self._read: deque[Rows] = deque()
        """Rows that the host has read and not yet trained on."""

    @property
    def controller(self) -> Controller:
        """The controller with all intervals so far. It exists once training has begun."""
        assert self._controller is not None, "training has not begun"
        return self._controller

    # What the host is given

    def train_spec(self, spec: Any) -> Any:
        """Return a copy of torchtitan 0.2's `TrainSpec` that reads steered rows and measures."""
        build_optimizers = spec.build_optimizers_fn

        def loader(dp_world_size: int, dp_rank: int, job_config: Any, **_: Any) -> Loader:
            self._follow(job_config.training, job_config.parallelism)
            return Loader(self, dp_rank, dp_world_size)

        def optimizers(model_parts: Sequence[nn.Module], config: Any, *others: Any) -> Any:
            if config.early_step_in_backward:
                raise ConfigError(
                    "early_step_in_backward changes weights before all gradients are measured: "
                    "switch it off"
                )
            built = build_optimizers(model_parts, config, *others)
            self._attach(built, model_parts, lambda model, tokens_BL: model(tokens_BL))
            return built

        return dataclasses.replace(
            spec,
            build_dataloader_fn=loader,
            build_loss_fn=lambda *_, **__: self.sum_of_losses,
            build_optimizers_fn=optimizers,
        )

    def config(self, config: Any) -> Any:
        """Return a copy of torchtitan 0.3's `Trainer.Config` that reads steered rows and measures.

        The loss is computed for the whole batch at once, without a `ChunkedLossWrapper`.
        """
        spec = config.model_spec

        def parallelize(model: nn.Module, **parts: Any) -> nn.Module:
            self._follow(parts["training"], parts["parallelism"])
            changed: nn.Module = spec.parallelize_fn(model, **parts)
            return changed

        def attach(optimizers: Any, model_parts: Sequence[nn.Module], parallel_dims: Any) -> None:
            if spec.post_optimizer_build_fn is not None:
                spec.post_optimizer_build_fn(optimizers, model_parts, parallel_dims)
            self._attach(optimizers, model_parts, forward)

        loader, loss, forward = _parts(self, spec.model)
        return dataclasses.replace(
            config,
            model_spec=dataclasses.replace(
                spec, parallelize_fn=parallelize, post_optimizer_build_fn=attach, pipelining_fn=None
            ),
            dataloader=loader,
            loss=loss,
        )

    def sum_of_losses(self, pred: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of next-token losses, which the host divides by its number of tokens."""
        loss_BL = self._losses(pred, labels)
        total = loss_BL.sum()
        if self._step is not None and torch.is_grad_enabled():
            self._step.losses(loss_BL)
            total.register_hook(self._bind)  # type: ignore[no-untyped-call]
        return total

    def mean_loss(self, pred: Tensor, labels: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the sum of next-token losses, divided by `tokens` if they are given."""
        loss_BL = self._losses(pred, labels)
        if tokens is None:
            return loss_BL.sum()
        if self._step is not None and torch.is_grad_enabled():
            self._step.losses(loss_BL, denominator=tokens)
        return loss_BL.sum() / tokens

    # Called by the host's parts

    def _follow(self, training: Any, parallelism: Any) -> None:
        """Keep the sizes of the run. Raises `ConfigError` where steering is not possible."""
        for name in ("tensor", "context", "pipeline", "expert"):
            degree = getattr(parallelism, f"{name}_parallel_degree")
            if degree > 1:
                raise ConfigError(
                    f"{name}_parallel_degree is {degree}: steering supports data parallelism only"
                )
        if training.enable_cpu_offload:
            raise ConfigError(
                "enable_cpu_offload keeps weights and losses on different devices, which "
                "measurements do not support: switch it off"
            )
        if not getattr(training, "disable_cuda_graphs", True):
            raise ConfigError(
                "CUDA graphs replay steps without calling the loss, so nothing is measured: set "
                "--training.disable_cuda_graphs"
            )
        self._training = training

    def _attach(self, optimizers: Any, model_parts: Sequence[nn.Module], forward: Forward) -> None:
        (model,) = model_parts
        self._model = _AsTransformers(model, forward)
        self._handle = model.register_forward_pre_hook(self._before_forward)
        optimizers.register_step_pre_hook(self._before_update)
        optimizers.register_step_post_hook(self._after_update)

    def begin(self, rank: int, ranks: int, saved: bytes) -> Iterator[tuple[Any, Tensor]]:
        """Begin or resume the run and return its batches for data-parallel rank `rank`."""
        local = self._training.local_batch_size
        size = self._training.global_batch_size
        size = local * ranks if size < 0 else size
        least = math.ceil(self.workers * self.prefetch / (size // (local * ranks)))
        lag = least if self._lag is None else self._lag
        if lag < least:
            raise ConfigError(
                f"lag is {lag}, but with {self.workers} workers rows are drawn up to {least} "
                f"steps ahead: use a lag of {least} or more, or fewer workers"
            )
        stream = MixtureStream(
            self.corpus,
            Mixture.natural(self.corpus.domains),
            batch_size=size,
            sequence_length=self._training.seq_len,
            seed=self._seed,
        )
        rows = LaneRows(stream, self._training.steps, labels=self._labels)
        assert self._model is not None, "the optimizers are built before training begins"
        self._controller = Controller(
            self._policy,
            stream,
            self._model,
            interval=self.interval,
            steps=self._training.steps,
            lag=lag,
            limits=self._limits,
            ranks=Ranks.adopt(),
            tokenizer=tokenizer_of(self.corpus),
            record=self._record,
            on_update=rows.follow,
        )
        if saved:
            self._controller.restore(saved)
            rows.restart(stream)
        else:
            self._controller.begin()
        batches = LaneBatches(
            len(rows),
            batch_size=size,
            micro_batch_size=local,
            rank=rank,
            ranks=ranks,
            consumed=self._controller.step_number * size,
        )
        return self._batches(
            DataLoader(
                rows,
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=self.workers,
                prefetch_factor=self.prefetch or None,
            )
        )

    def _batches(self, loader: DataLoader[Any]) -> Iterator[tuple[Any, Tensor]]:
        """Yield what the host reads: label j is token j + 1."""
        for batch in loader:
            rows = take_rows(batch)
            assert rows is not None, "the rows are those of LaneRows"
            self._read.append(rows)
            tokens_BL = batch["input_ids"]
            labels_BL = functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
            yield {"input": tokens_BL}, labels_BL

    def _before_forward(self, *_: Any) -> None:
        assert self._model is not None
        if self._model.running or not torch.is_grad_enabled():  # a probe, or validation
            return
        if self._step is None:
            self._step = self.controller.begin_step()
        self._step.forward(self._read.popleft())

    def _losses(self, pred: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            pred.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        ).view(labels.shape)

    def _bind(self, gradient: Tensor) -> None:
        """Bind the denominator d: the host's loss is the sum / d, so its gradient is 1 / d."""
        assert self._step is not None
        self._step.bind(1.0 / float(gradient))

    def _before_update(self, *_: Any) -> None:
        assert self._step is not None
        self._step.before_update()

    def _after_update(self, *_: Any) -> None:
        self._step = None
        self.controller.end_step()
        if self.controller.done:
            self.controller.close()
            self._handle.remove()


class Loader:
    """The batches of one data-parallel rank, with the methods of torchtitan's `BaseDataLoader`.

    Reading begins with the first decision, or where the run resumes.
    """

    def __init__(self, steer: TitanSteering, rank: int, ranks: int) -> None:
        self._steer = steer
        self._rank = rank
        self._ranks = ranks
        self._saved = b""

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        return self._steer.begin(self._rank, self._ranks, self._saved)

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state. It is empty before training begins."""
        begun = self._steer._controller
        return {f"rank_{self._rank}": b"" if begun is None else begun.state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._saved = state_dict[f"rank_{self._rank}"]


class _AsTransformers(nn.Module):
    """The host's model, called as models of transformers are, for probes that run it."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.running = False
        self._forward = forward

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        self.running = True
        try:
            return SimpleNamespace(logits=self._forward(self.model, input_ids))
        finally:
            self.running = False


def _parts(steer: TitanSteering, model_config: Any) -> tuple[Any, Any, Forward]:
    """Return the configurations of loader and loss of torchtitan 0.3, and how its model is run."""
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import BaseLoss
    from torchtitan.models.common.attention import FlexAttention, VarlenAttention

    class SteeredLoader(Loader, BaseDataLoader):  # type: ignore[misc]
        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):  # type: ignore[misc]
            pass

        def __init__(self, config: Any, *, dp_rank: int, dp_world_size: int, **_: Any) -> None:
            super().__init__(steer, dp_rank, dp_world_size)

        def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
            for inputs, labels_BL in super().__iter__():
                yield {**inputs, "positions": _positions_BL(labels_BL)}, labels_BL

    class MeasuredLoss(BaseLoss):  # type: ignore[misc]
        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(BaseLoss.Config):  # type: ignore[misc]
            pass

        def __init__(self, config: Any, **_: Any) -> None: ...

        def __call__(
            self, pred: Tensor, labels: Tensor, tokens: Tensor | None = None, **_: Any
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return steer.mean_loss(pred, labels, tokens), {}

    def forward(model: Any, tokens_BL: Tensor) -> Tensor:
        positions_BL = _positions_BL(tokens_BL)
        attention = model_config.first_attention.inner_attention
        masks = {}
        if isinstance(attention, (FlexAttention.Config, VarlenAttention.Config)):
            masks["attention_masks"] = model.get_attention_masks(positions=positions_BL)
        logits_BLV: Tensor = model(tokens_BL, positions=positions_BL, **masks)
        return logits_BLV

    return SteeredLoader.Config(), MeasuredLoss.Config(), forward


def _positions_BL(tokens_BL: Tensor) -> Tensor:
    """Every token attends to all before it in its row, as in cuvee's own trainer."""
    return torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand(tokens_BL.shape)

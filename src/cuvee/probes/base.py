"""The trainer's side of a probe: a `Meter` watches training steps and adds up sums and counts.

A policy declares probes (`cuvee.core.protocols.Probe`). A trainer calls `attach` on each and then
drives the meters (`probes.meters.Meters` does this for any training loop):

    begin_interval                        once an interval, with the current domains
      begin_step                          each optimizer step
        before_forward, after_forward     each micro-batch, around the forward pass
      before_update                       each step, when gradients are complete, before the update
    end_run                               once, after the last step of the run
    sums → one all-reduce over ranks → read    once an interval

Each rank reports one flat vector of sums and counts. The sum of these vectors over ranks is exact,
and one collective serves all meters.

On a model that is split over context, tensor or pipeline ranks, only probes with the attribute
`works_on_parts = True` are attached. `Context.place` says which part a rank has.

The first signals (number 0) are made before any step, by begin_interval, sums and read alone.
A trainer may keep gradients in a buffer of its own, so a meter may add to `weight.grad` but must
never replace it. A trainer may also compute the loss from the last hidden states without calling
the output layer, so hooks on the output layer may never fire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.signals import Measured

FORWARD_SHARE = 1 / 3
"""The forward pass's share of the operations of training; the backward pass has twice as many."""


class TokenLosses(NamedTuple):
    """Losses of N tokens of each of D domains.

    A domain with fewer tokens has uncounted entries at its end.
    """

    losses_DN: Tensor
    """In nats. 0 for tokens that do not count or that another rank read."""
    counted_DN: Tensor
    """Which tokens count; the same on every rank."""
    read: int
    """Tokens that this rank read for it, padding included."""


class ValidText(Protocol):
    """The validation text of a training loop."""

    def has_valid_text(self, domain: str) -> bool: ...

    def valid_token_losses(self, domains: Sequence[str], tokens: int) -> TokenLosses:
        """Return losses on at most `tokens` tokens of each domain, always the same tokens.

        Every rank calls it and reads its share.
        """
        ...


@dataclass(frozen=True)
class Place:
    """The coordinates of one process in a grid of data, context, tensor and pipeline ranks.

    Processes with the same `data_rank` read the same rows. `Place(rank, ranks)` is a process of
    DDP or FSDP2, and `Place()` one that trains alone. Raises `ConfigError` for a coordinate outside
    the grid.

    Example, two data ranks of two pipeline stages, with 16 and 14 layers:

        Place(data_rank=1, data_ranks=2, stage=0, stage_layers=(16, 14))
    """

    data_rank: int = 0
    data_ranks: int = 1
    context_rank: int = 0
    """With context parallelism, each context rank holds some positions of its rows."""
    context_ranks: int = 1
    tensor_rank: int = 0
    tensor_ranks: int = 1
    stage: int = 0
    stage_layers: tuple[int, ...] = ()
    """The number of transformer layers of each pipeline stage; () without pipeline parallelism."""

    def __post_init__(self) -> None:
        for name, rank, ranks in (
            ("data_rank", self.data_rank, self.data_ranks),
            ("context_rank", self.context_rank, self.context_ranks),
            ("tensor_rank", self.tensor_rank, self.tensor_ranks),
            ("stage", self.stage, self.stages),
        ):
            if not 0 <= rank < ranks:
                raise ConfigError(f"{name} is {rank}: it must lie in 0 … {ranks - 1}")

    @property
    def stages(self) -> int:
        return len(self.stage_layers) or 1

    @property
    def size(self) -> int:
        """The number of processes in the grid."""
        return self.data_ranks * self.context_ranks * self.tensor_ranks * self.stages

    @property
    def counts_losses(self) -> bool:
        """Whether losses and tokens are counted here: on tensor rank 0 of the last stage."""
        return self.tensor_rank == 0 and self.stage == self.stages - 1

    def reports(self, weight: Tensor) -> bool:
        """Whether this process is the one that reports `weight` of its stage.

        Data and context ranks hold the same weights. Tensor ranks do too, except for those that
        Megatron marks with `tensor_model_parallel`, of which each holds a part.
        """
        return (self.data_rank, self.context_rank) == (0, 0) and (
            self.tensor_rank == 0 or is_tensor_part(weight)
        )


def is_tensor_part(weight: Tensor) -> bool:
    """Whether Megatron has split this weight over tensor ranks."""
    return bool(getattr(weight, "tensor_model_parallel", False))


@dataclass(frozen=True)
class Context:
    """What a meter may use of the training loop."""

    model: nn.Module
    """The bare model, without its DDP or compiled wrapper."""
    device: torch.device
    place: Place = Place()
    tokenizer: Any | None = None
    """A `tokenizers.Tokenizer`. Only probes that read text of their own need it."""
    compute: torch.dtype = torch.float32
    """The type of the trainer's forward passes. If it is not float32, they run under autocast."""
    interval_tokens: int | None = None
    """Training tokens of one interval over all ranks. `EvaluationSet` takes its budget from it."""
    flops_per_token: float = 0.0
    """Operations of training on one token, forward and backward; 0 if they are not counted."""
    valid_text: ValidText | None = None
    """Only probes that measure on validation text need it."""
    valid_tokens: Callable[[], Mapping[str, npt.NDArray[Any]]] | None = None
    """Returns the tokens of the validation text of each present domain, by name."""
    row_tokens: int = 256
    """Tokens of one training row."""


@dataclass(eq=False)
class MicroBatch:
    """One forward pass over B rows of L tokens.

    The trainer calls `backward` on exactly Σ (counted token losses) / `denominator`. Every other
    factor on the loss is part of `denominator`, such as the world size (DDP averages over ranks)
    or an fp16 loss scale. Example: a trainer that divides by the N tokens of all ranks and
    multiplies by W ranks has the denominator N / W.
    """

    tokens_BL: Tensor
    domain_BL: Tensor
    """int64 (B, L): the index of the domain to which the loss at each position belongs."""
    counted_BL: Tensor
    """bool (B, L): the positions whose next-token loss counts."""
    denominator: float | None = None
    """It may be None during the forward pass. Set it before `backward`."""

    def bound(self) -> float:
        """Return the denominator; called in the backward pass. `TrainingError` if it is not set."""
        if self.denominator is None:
            raise TrainingError(
                "the backward pass began before the micro-batch had a denominator: set "
                "`denominator` before `backward`"
            )
        return self.denominator


class Meter:
    """Base class of all meters. It measures nothing; a meter overrides the methods it needs."""

    def begin_interval(self, domains: tuple[Domain, ...]) -> None: ...

    def begin_step(self, step: int) -> None: ...

    def before_forward(self, batch: MicroBatch) -> None: ...

    def after_forward(self, batch: MicroBatch, loss_BL: Tensor) -> None:
        """`loss_BL` is the detached next-token loss at each position, 0 where it is not counted."""

    def before_update(self) -> None: ...

    def end_run(self) -> None:
        """Called after the last step of a run, before the last `sums`. Every rank calls it."""

    def sums(self) -> Tensor:
        """This rank's sums and counts of the interval: one flat float64 vector.

        It has the same length on every rank.
        """
        return torch.zeros(0, dtype=torch.float64)

    def flops(self) -> float:
        """Operations that measuring took on this rank in the interval, beyond those of training.

        Called after `sums`. Work done once per weight and step is too small to count; work done
        for each token counts.
        """
        return 0.0

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        """Return the interval's measurements by signal name, from the sums over all ranks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that a run needs to resume between intervals, such as the last norms."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def interval_state(self) -> dict[str, Any]:
        """A copy of this rank's sums so far, for a checkpoint inside an interval."""
        return {}

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        """Restore `interval_state`. Call `begin_interval` first."""

    def close(self) -> None:
        """Remove all hooks from the model."""


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded `DTensor`; any other tensor is returned unchanged.

    For a `DTensor` this is a collective: every rank of its mesh must call it.
    """
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()

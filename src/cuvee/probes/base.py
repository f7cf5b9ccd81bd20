"""What a probe is on the trainer's side: a `Meter` that watches training steps and adds up sums and counts.

A policy declares probes (`cuvee.core.protocols.Probe`); a trainer calls `attach` on each and drives the meters:

    begin_interval                                  once an interval, with the domains as they are now
      begin_step                                    each optimizer step
        before_forward, after_forward               each micro-batch, around the forward pass
      before_update                                 each optimizer step, gradients complete, weights not yet changed
    end_run                                         once, after the last step of the run
    sums → one all-reduce over ranks → read         once an interval

Everything a rank knows leaves it as one flat vector of sums and counts, so that ranks are combined by adding, exactly, in
one collective for all meters together.

Signals number 0 come from begin_interval, sums and read alone, before any step. A trainer may keep gradients in a buffer of
its own: add to `weight.grad`, never replace it. It may also take the loss from the last hidden states without calling the
output layer, so that hooks there may never fire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cuvee.core.domain import Domain
from cuvee.core.errors import TrainingError
from cuvee.core.signals import Measured

FORWARD_SHARE = 1 / 3
"""Of the operations of training on a token, those of the forward pass alone; the backward pass has twice as many."""


class TokenLosses(NamedTuple):
    """Losses of N tokens of each of D domains; a domain with fewer tokens has uncounted entries at its end."""

    losses_DN: Tensor
    """In nats. 0 for uncounted tokens and for those that another rank read."""
    counted_DN: Tensor
    """The same on every rank."""
    read: int
    """How many tokens this rank read for it, padding included."""


class ValidText(Protocol):
    """The validation text of a training loop."""

    def has_valid_text(self, domain: str) -> bool: ...

    def valid_token_losses(self, domains: Sequence[str], tokens: int) -> TokenLosses:
        """On at most `tokens` tokens of each domain, which never change. Every rank calls it and reads its share."""
        ...


@dataclass(frozen=True)
class Context:
    """What a meter may look at: the bare model (not its DDP or compiled wrapper), where it lives, and this process's rank."""

    model: nn.Module
    device: torch.device
    rank: int = 0
    world_size: int = 1
    tokenizer: Any | None = None
    """A `tokenizers.Tokenizer`, needed only by probes that bring text of their own."""
    compute: torch.dtype = torch.float32
    """What the trainer's forward passes are computed in: if not float32, under autocast."""
    interval_tokens: int | None = None
    """Training tokens of one interval over all ranks, against which probes that cost time of their own keep a budget."""
    flops_per_token: float = 0.0
    """Floating-point operations of training on one token, forward and backward; 0 if the trainer does not count."""
    valid_text: ValidText | None = None
    """Needed only by probes that measure on validation text."""


@dataclass(eq=False)
class MicroBatch:
    """One forward pass. `counted_BL` marks the positions whose next-token loss counts.

    The tensor on which the trainer calls `backward` is exactly Σ counted token losses of this micro-batch / `denominator`.
    Whatever else it multiplies the loss by (the world size, because DDP averages over ranks; a loss scale of fp16) is part
    of `denominator`: a trainer that divides by the N tokens of all ranks and multiplies by W ranks says N / W.
    """

    tokens_BL: Tensor
    domain_BL: Tensor
    """int64 index of each position's domain among the interval's domains: the domain of the loss at that position."""
    counted_BL: Tensor
    denominator: float | None = None
    """May be None during the forward pass; set it before `backward`."""

    def bound(self) -> float:
        """The denominator, asked for during the backward pass. Raises `TrainingError` if it was never set."""
        if self.denominator is None:
            raise TrainingError(
                "the backward pass began before the micro-batch had a denominator: set `denominator` before `backward`"
            )
        return self.denominator


class Meter:
    """Base of all meters: does nothing, reports nothing. A meter overrides the moments that it needs."""

    def begin_interval(self, domains: tuple[Domain, ...]) -> None: ...

    def begin_step(self, step: int) -> None: ...

    def before_forward(self, batch: MicroBatch) -> None: ...

    def after_forward(self, batch: MicroBatch, loss_BL: Tensor) -> None:
        """`loss_BL` is the detached next-token loss at each position, 0 where it is not counted."""

    def before_update(self) -> None: ...

    def end_run(self) -> None:
        """Called after the last step of a run, before the last `sums`. Every rank calls it."""

    def sums(self) -> Tensor:
        """This rank's sums and counts of the interval: one flat float64 vector, of the same length on every rank."""
        return torch.zeros(0, dtype=torch.float64)

    def flops(self) -> float:
        """Floating-point operations that measuring took on this rank in the interval, beyond those of training; asked after
        `sums`. What is done once for each weight and step, and not for each token, is not worth counting."""
        return 0.0

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        """The measurements of the interval, by signal name, from the sums over all ranks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs between intervals, such as the norms that changes are taken against."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def interval_state(self) -> dict[str, Any]:
        """This rank's sums of the interval so far, copied, for a checkpoint between two steps of one interval."""
        return {}

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        """Continues the interval that `interval_state` was called in; follows `begin_interval`."""

    def close(self) -> None:
        """Removes hooks."""


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (`DTensor`), which every rank of its mesh must ask for; any other as it is."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()

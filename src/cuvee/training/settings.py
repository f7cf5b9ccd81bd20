"""`TrainerSettings`: all settings of a training run except model, data and mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cuvee.core.errors import ConfigError
from cuvee.training.lr_schedule import Schedule, learning_rate

Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of `LMTrainer`. Sizes are global: over all ranks and micro-batches.

    Raises `ConfigError` that names a value out of range.
    """

    steps: int = 1000
    """Optimizer steps of the whole run."""
    tokens: int | None = None
    """Training tokens, instead of `steps`. The run takes as many whole batches as reach them."""
    batch_size: int = 16
    """Sequences per step, over all ranks."""
    sequence_length: int = 256
    """Tokens per sequence."""
    micro_batch_size: int | None = None
    """Sequences per forward pass on one rank, with gradient accumulation. None: all at once."""
    learning_rate: float = 1e-3
    """The peak of the schedule."""
    min_lr_ratio: float = 0.1
    """The learning rate of the last step, as a share of the peak."""
    warmup_ratio: float = 0.05
    """The share of the steps over which the learning rate warms up."""
    schedule: Schedule = "cosine"
    decay_ratio: float = 0.2
    """The share of the steps over which "wsd" decays at the end."""
    weight_decay: float = 0.1
    """Decoupled weight decay. It applies to weight matrices, not to norms, biases, embeddings."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    precision: Precision = "auto"
    """"bf16" runs forward and backward passes under autocast; weights stay in float32.

    auto: bf16 on GPUs that support it, else fp32.
    """
    device: Device = "auto"
    compile: bool | Literal["auto"] = "auto"
    """Whether to use torch.compile. auto: on GPUs."""
    interval: int = 10
    """Optimizer steps under one mixture."""
    validate_every: int = 5
    """Intervals between validations. 0 validates only at the start and at the end."""
    validation_tokens: int = 4_096
    """The most tokens of each domain's `valid` split that one validation reads."""
    seed: int = 0
    """Seed of the initial weights and of the randomness inside steps, such as dropout."""
    order_seed: int | None = None
    """Seed of the order of the data. None: `seed`."""

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "batch_size",
            "sequence_length",
            "learning_rate",
            "max_grad_norm",
            "interval",
        )
        for name in positive:
            _require(name, value := getattr(self, name), 0 < value < math.inf, "greater than 0")
        for name in ("tokens", "micro_batch_size"):
            _require(
                name, value := getattr(self, name), value is None or value > 0, "greater than 0"
            )
        for name in ("weight_decay", "validate_every", "validation_tokens", "seed"):
            _require(name, value := getattr(self, name), 0 <= value < math.inf, "0 or more")
        for name in ("min_lr_ratio", "warmup_ratio", "decay_ratio"):
            _require(name, value := getattr(self, name), 0 <= value <= 1, "between 0 and 1")
        _require(
            "sequence_length",
            self.sequence_length,
            self.sequence_length >= 2,
            "2 or more, to have a next token",
        )
        _require(
            "betas",
            self.betas,
            all(0 <= beta < 1 for beta in self.betas),
            "two numbers from 0 to below 1",
        )

    @property
    def total_steps(self) -> int:
        if self.tokens is None:
            return self.steps
        return math.ceil(self.tokens / (self.batch_size * self.sequence_length))

    @property
    def validations(self) -> int:
        """Validations of the run: at the start, every `validate_every` intervals, at the end."""
        intervals = math.ceil(self.total_steps / self.interval)
        every = self.validate_every
        return 1 + (math.ceil(intervals / every) if every else 1)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of optimizer step `step` (0-based)."""
        return learning_rate(
            step,
            total_steps=self.total_steps,
            peak=self.learning_rate,
            schedule=self.schedule,
            warmup_steps=math.ceil(self.warmup_ratio * self.total_steps),
            decay_ratio=self.decay_ratio,
            min_ratio=self.min_lr_ratio,
        )


def _require(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}: it must be {what}")

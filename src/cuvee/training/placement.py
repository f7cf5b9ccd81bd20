"""On which device and in which number format a run computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cuvee.core.errors import ConfigError
from cuvee.training.settings import TrainerSettings


def device_for(settings: TrainerSettings) -> torch.device:
    """Return the device of a run. Raises `ConfigError` if "cuda" is requested without a GPU."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ConfigError("device is cuda but torch sees no GPU here: use device auto or cpu")
    if settings.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Set the number of CPU threads of this process inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_type_for(settings: TrainerSettings, device: torch.device) -> torch.dtype:
    """Return the number format of matrix products.

    Weights, optimizer moments and sums of losses are always float32.
    """
    if settings.precision == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def is_compiled(settings: TrainerSettings, device: torch.device) -> bool:
    return device.type == "cuda" if settings.compile == "auto" else settings.compile

"""Where a run computes, and in which arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cuvee.core.errors import ConfigError
from cuvee.training.settings import TrainerSettings


def device_for(settings: TrainerSettings) -> torch.device:
    """Raises `ConfigError` if a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ConfigError("device is cuda but torch sees no GPU here: use device auto or cpu")
    if settings.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Within, this process computes with so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_type_for(settings: TrainerSettings, device: torch.device) -> torch.dtype:
    """Of matrix products; weights, moments and sums of losses are float32 whatever this is."""
    if settings.precision == "auto":
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def is_compiled(settings: TrainerSettings, device: torch.device) -> bool:
    return device.type == "cuda" if settings.compile == "auto" else settings.compile

"""A probe that measures at every optimizer step, for tests of trainers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter
from cuvee.probes.norms import norm_of


@dataclass(frozen=True)
class GradientNorm:
    """Signal "gradient_norm" (): ‖g‖₂ over all weights before clipping, mean over the steps."""

    name: str = "gradient_norm"

    def attach(self, context: Context) -> GradientNormMeter:
        return GradientNormMeter(self.name, context)


class GradientNormMeter(Meter):
    """Measures gradients after they are summed over ranks, so only rank 0 reports."""

    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self.context = context
        self._sum_and_count = torch.zeros(2, dtype=torch.float64, device=context.device)

    def begin_interval(self, domains: Any) -> None:
        self._sum_and_count.zero_()

    def before_update(self) -> None:
        weights = list(self.context.model.parameters())
        sharded = any(hasattr(weight, "full_tensor") for weight in weights)
        if self.context.place.data_rank > 0 and not sharded:
            return
        norm = norm_of([weight.grad for weight in weights if weight.grad is not None])
        if self.context.place.data_rank == 0:
            self._sum_and_count[0] += norm
            self._sum_and_count[1] += 1

    def sums(self) -> Tensor:
        return self._sum_and_count.clone()

    def interval_state(self) -> dict[str, Any]:
        return {"sum_and_count": self._sum_and_count.cpu().numpy().copy()}

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        self._sum_and_count.copy_(torch.from_numpy(state["sum_and_count"]))

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        total, steps = sums.cpu().numpy()
        return {self.name: Measured.mean(total, steps)}

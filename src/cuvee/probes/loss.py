"""`LossByDomain`: the training loss of each domain, from the forward passes of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cuvee.core.domain import Domain
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, MicroBatch


@register_probe("loss")
@dataclass(frozen=True)
class LossByDomain:
    """Signal "loss" (K,): each domain's mean next-token loss in the interval, in nats per token.

    Every counted position adds its loss and a 1 to its own domain. The result is exact for batches
    that mix domains, packed rows, gradient accumulation and any number of ranks. A domain without
    a counted token is absent. A trainer always measures it and reports it as `Signals.loss`, so a
    policy does not need to declare it.
    """

    name: str = "loss"

    def attach(self, context: Context) -> LossMeter:
        return LossMeter(self.name, context.device)


class LossMeter(Meter):
    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self._sums_2K = torch.zeros(2, 0, dtype=torch.float64, device=device)

    def begin_interval(self, domains: tuple[Domain, ...]) -> None:
        self._sums_2K = torch.zeros(2, len(domains), dtype=torch.float64, device=self.device)

    def after_forward(self, batch: MicroBatch, loss_BL: Tensor) -> None:
        values = torch.stack([loss_BL.flatten().double(), batch.counted_BL.flatten().double()])
        self._sums_2K.index_add_(1, batch.domain_BL.flatten(), values)

    def sums(self) -> Tensor:
        return self._sums_2K.flatten()

    def interval_state(self) -> dict[str, Any]:
        return {"sums": self._sums_2K.cpu().numpy().copy()}

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        self._sums_2K.copy_(torch.from_numpy(state["sums"]))

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        loss_K, count_K = sums.view(2, -1).cpu().numpy()
        return {self.name: Measured.mean(loss_K, count_K)}

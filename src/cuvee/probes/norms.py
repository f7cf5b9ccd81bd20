"""`WeightNorms`: the norm of each transformer layer's weights, and its change per interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cuvee.core.errors import ConfigError
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, whole


@register_probe("weight_norms")
@dataclass(frozen=True)
class WeightNorms:
    """Signals "weight_norms" (layers,) and "weight_norm_changes" (layers,).

    The norm is ‖w_l‖₂ over all weights of transformer layer l at the end of the interval. The
    change is Δ‖w_l‖ since the end of the interval before; it is absent in the first interval.
    Both are in the state of AC-ODM and HDS (arXiv 2505.23878, 2606.24133). Only the norms are kept
    between intervals, never a copy of the weights.
    """

    name: str = "weight_norms"

    def attach(self, context: Context) -> WeightNormMeter:
        return WeightNormMeter(self.name, context)


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a decoder: the first `ModuleList` that is not empty.

    Raises `ConfigError` if the model has none.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            return list(module)
    raise ConfigError(
        f"{type(model).__name__} has no list of layers, so norms by layer cannot be measured"
    )


class WeightNormMeter(Meter):
    """Measures the norms. The weights are equal on all ranks, so only rank 0 reports them."""

    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self.rank = context.rank
        self.layers = transformer_layers(context.model)
        self._last: np.ndarray[Any, Any] | None = None

    @torch.no_grad()
    def sums(self) -> Tensor:
        norms = torch.stack([norm_of(list(layer.parameters())) for layer in self.layers]).double()
        return norms if self.rank == 0 else torch.zeros_like(norms)

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        norms = sums.cpu().numpy()
        last = self._last
        self._last = norms
        changes = Measured.absent(norms.shape) if last is None else Measured.all(norms - last)
        return {self.name: Measured.all(norms), "weight_norm_changes": changes}

    def state_dict(self) -> dict[str, Any]:
        return {} if self._last is None else {"last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last = state.get("last")


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return ‖·‖₂ over all `tensors`. If they are sharded, every rank must call it."""
    return whole(torch.nn.utils.get_total_norm(tensors))

"""`WeightNorms`: the norm of each transformer layer's weights, and its change per interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cuvee.core.errors import ConfigError
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, is_tensor_part, whole


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
    works_on_parts: ClassVar[bool] = True

    def attach(self, context: Context) -> WeightNormMeter:
        return WeightNormMeter(self.name, context)


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a decoder: the first `ModuleList` or `ModuleDict` that is not empty.

    Raises `ConfigError` if the model has none.
    """
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and len(module):
            return list(module.children())
    raise ConfigError(
        f"{type(model).__name__} has no list of layers, so norms by layer cannot be measured"
    )


class WeightNormMeter(Meter):
    """Measures the norms. Each weight's square is reported by one rank (`Place.reports`)."""

    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self.layers = transformer_layers(context.model)
        self._place = context.place
        by_stage = self._place.stage_layers or (len(self.layers),)
        if len(self.layers) != by_stage[self._place.stage]:
            raise ConfigError(
                f"stage_layers says {by_stage[self._place.stage]} layers in stage "
                f"{self._place.stage}, but the model there has {len(self.layers)}"
            )
        self._first = sum(by_stage[: self._place.stage])
        self._layers = sum(by_stage)
        self._last: np.ndarray[Any, Any] | None = None

    @torch.no_grad()
    def sums(self) -> Tensor:
        """(layers of all stages,) the squares that this rank reports."""
        squares_L = torch.zeros(self._layers, dtype=torch.float64)
        for number, layer in enumerate(self.layers, self._first):
            squares_L[number] = self._square(list(layer.parameters()))
        return squares_L

    def _square(self, weights: Sequence[Tensor]) -> float:
        # All ranks compute both norms, because the norm of sharded weights is a collective.
        parts = [weight for weight in weights if is_tensor_part(weight)]
        others = [weight for weight in weights if not is_tensor_part(weight)]
        groups = [(norm_of(group), group) for group in (parts, others) if group]
        return sum(float(norm) ** 2 for norm, group in groups if self._place.reports(group[0]))

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        norms = np.sqrt(sums.cpu().numpy())
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

"""`GradientAlignment`: the K × K Gram matrix of per-domain gradients.

It is computed from the backward pass of training, without extra passes. For a linear layer y = Wx,
the gradient of a loss is ∂/∂W = Σ_t δ_t x_tᵀ over positions t, with δ = ∂loss/∂y. The same sum over
the positions of one domain is the gradient of that domain. Both factors exist in the backward pass.
So all K gradients together cost one more product of the size of the layer's own weight gradient,
for any K, and batches may mix domains freely.

    S_i = Σ over measured micro-batches of denominator · Σ_{t in domain i} δ_t x_tᵀ
    g_i = S_i / n_i                       n_i counted tokens: the gradient of domain i's mean loss
    G_ij = Σ over layers of ⟨g_i, g_j⟩    reported as "alignment"

S and n are sums over positions, so they add up over micro-batches, steps and ranks.

AC-ODM (arXiv 2505.23878), HDS (arXiv 2606.24133) and DoGE (arXiv 2310.15393) use this matrix.
Their released code runs separate micro-batches for each domain instead. Their
W_i = ⟨g_i, Σ_{j≠i} v_j g_j⟩ is computed from G where it is used.

The gradients of the interval's measured steps are averaged before the inner product. This keeps
what the steps have in common and averages out noise; the weights change little within an interval.
To measure single steps, use intervals of one step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, MicroBatch
from cuvee.probes.domain_runs import DomainRuns
from cuvee.probes.layer_taps import Listener, Tap, check_heard, find_layers
from cuvee.probes.sketch import GradientSums

NAME = "alignment"
_FLOAT = 4
_STRETCH = 4096


@register_probe("alignment")
@dataclass(frozen=True)
class GradientAlignment:
    """Settings of the probe that reports "alignment" (K, K), in squared loss per squared weight.

    Rows and columns of domains without a token are absent.

    Exact for the MLP of the last layer in any batch. In earlier layers, δ of a position includes
    gradient from later positions of its row. There, each row (or each document, if attention does
    not cross documents) must belong to a single domain.
    """

    layers: Literal["last_mlp"] | tuple[str, ...] = "last_mlp"
    """The down-projection of the last MLP, or names or shell-style patterns of linear layers.

    Example: `("*.mlp.down_proj",)`.
    """
    stride: int = 5
    """Every `stride`-th step of an interval is measured, beginning with the first.

    The other steps have no extra cost.
    """
    sketch: int | None = None
    """Numbers stored per domain. The estimates have standard error ≤ √(2/sketch)·‖g_i‖‖g_j‖.

    None: exact if that fits in `memory`, else the largest sketch that does (`probes/sketch.py`).
    """
    memory: int = 16 * 2**20
    """Bytes for the sums of all domains and layers together."""
    name: str = field(default=NAME, init=False)

    def __post_init__(self) -> None:
        if self.layers != "last_mlp" and isinstance(self.layers, str):
            raise ConfigError(
                f'layers is {self.layers!r}: it must be "last_mlp" or a list of layer names and '
                "patterns"
            )
        for name in ("stride", "sketch", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be 1 or more")

    def attach(self, context: Context) -> AlignmentMeter:
        """Return the meter of this probe on `context.model`.

        Raises `TrainingError` if the model has no layer that matches `layers`.
        """
        return AlignmentMeter(self, context)


class AlignmentMeter(Meter):
    """Keeps S_K for each layer and n_K of the current interval. `begin_interval` clears them."""

    def __init__(self, probe: GradientAlignment, context: Context) -> None:
        self._probe = probe
        self._device = context.device
        self._ranks = context.place.data_ranks
        found = find_layers(context.model, None if probe.layers == "last_mlp" else probe.layers)
        self._heard = dict.fromkeys(found, 0)
        self._layers: dict[str, GradientSums] = {}
        self._tokens_K = torch.zeros(0)
        self._domains = 0
        self._steps = 0
        self._measuring = False
        self._flops = 0.0
        self._batch: tuple[DomainRuns, MicroBatch] | None = None
        self._taps = [
            Tap(name, layer, partial(self._listener, name)) for name, layer in found.items()
        ]

    def begin_interval(self, domains: tuple[Domain, ...]) -> None:
        if len(domains) != self._domains:
            self._domains = len(domains)
            sizes = self._sizes()
            self._layers = {
                tap.name: GradientSums(self._domains, tap.shape, sizes[tap.name], self._device)
                for tap in self._taps
            }
        for sums in self._layers.values():
            sums.reset()
        self._tokens_K = torch.zeros(self._domains, dtype=torch.float64, device=self._device)
        self._steps = 0
        self._measuring = False
        self._batch = None
        self._flops = 0.0

    def begin_step(self, step: int) -> None:
        self._measuring = self._steps % self._probe.stride == 0
        self._steps += 1
        self._heard = dict.fromkeys(self._heard, 0)

    def before_forward(self, batch: MicroBatch) -> None:
        if not self._measuring:
            return
        self._batch = DomainRuns.of(batch.domain_BL), batch
        domain_T = batch.domain_BL.reshape(-1).to(self._device)
        self._tokens_K.index_add_(0, domain_T, batch.counted_BL.reshape(-1).to(self._tokens_K))

    def before_update(self) -> None:
        if self._measuring and self._batch:
            check_heard(self._heard, "alignment")
        self._measuring = False
        self._batch = None

    def sums(self) -> Tensor:
        """S_K of each layer and n_K, flat. With one rank, ⟨S_i, S_j⟩ takes the place of S."""
        if self._ranks == 1:
            blocks = [self._gram_KK(layer.sums_KM for layer in self._layers.values())]
        else:
            blocks = [layer.sums_KM for layer in self._layers.values()]
        return torch.cat(
            [block.reshape(-1).to(torch.float64) for block in [*blocks, self._tokens_K]]
        )

    def flops(self) -> float:
        """2·out·in per measured position and layer, and 2·K² per number for inner products."""
        return self._flops + 2.0 * self._domains**2 * sum(
            layer.size for layer in self._layers.values()
        )

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        K = self._domains
        sizes = (
            [K * K, K]
            if self._ranks == 1
            else [*(K * layer.size for layer in self._layers.values()), K]
        )
        blocks = torch.split(sums, sizes)
        gram_KK = (
            blocks[0].view(K, K)
            if self._ranks == 1
            else self._gram_KK(block.view(K, -1) for block in blocks[:-1])
        )
        return {NAME: _mean(gram_KK.cpu().numpy(), blocks[-1].cpu().numpy())}

    def interval_state(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "flops": self._flops,
            "tokens": self._tokens_K.cpu().numpy().copy(),
            "layers": {
                name: layer.sums_KM.cpu().numpy().copy() for name, layer in self._layers.items()
            },
        }

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        self._steps = int(state["steps"])
        self._flops = float(state["flops"])
        self._tokens_K.copy_(torch.from_numpy(state["tokens"]))
        for name, layer in self._layers.items():
            layer.sums_KM.copy_(torch.from_numpy(state["layers"][name]))

    def close(self) -> None:
        for tap in self._taps:
            tap.remove()

    def _gram_KK(self, layers: Iterable[Tensor]) -> Tensor:
        """Σ over layers of S Sᵀ.

        Products of blocks of 4096 columns are added in float64, which is about as accurate as
        float64 throughout.
        """
        device = self._tokens_K.device
        gram_KK = torch.zeros(self._domains, self._domains, dtype=torch.float64, device=device)
        for sum_KM in layers:
            for part_KM in torch.split(sum_KM, _STRETCH, dim=1):
                gram_KK += part_KM @ part_KM.t()
        return gram_KK

    def _sizes(self) -> dict[str, int | None]:
        """Numbers per domain for each layer, in proportion to its weights; None where exact."""
        weights = {tap.name: math.prod(tap.shape) for tap in self._taps}
        total = sum(weights.values())
        fits = self._probe.memory // (_FLOAT * self._domains)
        wanted = self._probe.sketch if self._probe.sketch is not None else fits
        if wanted >= total:
            return dict.fromkeys(weights)
        return {name: wanted * weight // total for name, weight in weights.items()}

    def _listener(self, name: str) -> Listener | None:
        """The listener for the micro-batch whose forward pass is running, or None.

        It is also used when activations of that micro-batch are recomputed.
        """
        if self._batch is None:
            return None
        runs, batch = self._batch

        def listen(delta_BLO: Tensor, x_BLI: Tensor) -> None:
            denominator = batch.bound()
            layer = self._layers[name]
            if delta_BLO.shape[:-1].numel() != runs.positions:
                raise TrainingError(
                    f"{name} received {delta_BLO.shape[:-1].numel()} positions of a micro-batch of "
                    f"{runs.positions}: alignment needs layers that receive every position in "
                    "order, which mixture-of-experts layers do not"
                )
            delta_TO, x_TI = runs.flat(delta_BLO), runs.flat(x_BLI)
            for domain, start, stop in runs.runs:
                layer.add(domain, delta_TO[start:stop], x_TI[start:stop], denominator)
            self._heard[name] += 1
            self._flops += 2.0 * runs.positions * math.prod(layer.shape)

        return listen


def _mean(gram_KK: np.ndarray, tokens_K: np.ndarray) -> Measured:
    """⟨S_i, S_j⟩ / (n_i n_j), absent where either count is 0."""
    present_K = tokens_K > 0
    return Measured(
        gram_KK / np.maximum(np.outer(tokens_K, tokens_K), 1.0), np.outer(present_K, present_K)
    )

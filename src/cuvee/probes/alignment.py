"""`GradientAlignment`: the K × K Gram matrix of per-domain gradients, out of the backward pass that training does anyway.

For a linear layer y = Wx the gradient of any loss is ∂/∂W = Σ_t δ_t x_tᵀ over positions t, with δ = ∂loss/∂y. Summed over the
positions of one domain only, it is that domain's gradient. Both factors are at hand in the backward pass, so K gradients
cost one more product of the size of the layer's own weight gradient, whatever K is, in batches that mix domains freely.

    S_i = Σ over measured micro-batches of denominator · Σ_{t in domain i} δ_t x_tᵀ
    g_i = S_i / n_i                       n_i counted tokens: the gradient of domain i's mean loss
    G_ij = Σ over layers of ⟨g_i, g_j⟩    reported as "alignment"

S and n are sums over positions, so they add over micro-batches, steps and ranks.

It serves AC-ODM (arXiv 2505.23878), HDS (arXiv 2606.24133) and DoGE (arXiv 2310.15393), whose released code runs separate
micro-batches for each domain. Their W_i = ⟨g_i, Σ_{j≠i} v_j g_j⟩ is a view of G and made where it is used.

With `halves`, the rows of each domain go in turn to two halves a and b, whose gradients share θ but no noise, and

    U_ij = ½ (⟨g_i^a, g_j^b⟩ + ⟨g_i^b, g_j^a⟩)    is reported as "alignment_unbiased".

Off the diagonal U estimates the same as G. On it, G_ii = ‖∇ℓ_i‖² + noise, and with a few rows a domain the noise is many
times the rest, so only U can say how much a domain helps itself.

Gradients of the interval's measured steps are averaged before the inner product is taken: that keeps the part in which
steps agree and averages out the rest, while the weights hardly move. For one step's matrix, train intervals of one step.
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
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, MicroBatch
from cuvee.probes.domain_runs import DomainRuns
from cuvee.probes.layer_taps import Listener, Tap, find_layers
from cuvee.probes.sketch import GradientSums

NAME = "alignment"
UNBIASED = "alignment_unbiased"
_FLOAT = 4
_STRETCH = 4096


@dataclass(frozen=True)
class GradientAlignment:
    """Reports "alignment" (K, K), in squared loss per squared weight; rows and columns of domains without a token are absent.

    With `halves` also "alignment_unbiased" (K, K), absent for domains with less than two rows in the measured steps.

    Exact for the last layer's MLP in any batch. In earlier layers a position's δ holds what later positions of its row got
    from it, so there a row (or a document, where attention does not cross documents) must belong to one domain.
    """

    layers: Literal["last_mlp"] | tuple[str, ...] = "last_mlp"
    """The down-projection of the last MLP, or names or shell-style patterns of linear layers: `("*.mlp.down_proj",)`."""
    stride: int = 5
    """Steps between measured ones. An interval's first step is always measured; on the others nothing is done."""
    sketch: int | None = None
    """Numbers kept a domain: estimates with standard error ≤ √(2/sketch)·‖g_i‖‖g_j‖ (`probes/sketch.py`). None: exact if it
    fits in `memory`, else the largest sketch that does."""
    memory: int = 16 * 2**20
    """Bytes for the sums of all domains and layers together."""
    halves: bool = False
    """Whether to report the unbiased matrix too. Hardly any time; twice the sums, so twice the memory, or, where `memory` sets
    the size of the sketch, half as many numbers in it."""
    name: str = field(default=NAME, init=False)

    def __post_init__(self) -> None:
        if self.layers != "last_mlp" and isinstance(self.layers, str):
            raise ConfigError(
                f'layers is {self.layers!r}: it must be "last_mlp" or a list of layer names and patterns'
            )
        for name in ("stride", "sketch", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be 1 or more")

    def attach(self, context: Context) -> AlignmentMeter:
        """Raises `TrainingError` if the model has no such layer."""
        return AlignmentMeter(self, context)


class AlignmentMeter(Meter):
    """Keeps S_K for each layer and n_K. Everything it knows of an interval it forgets when the next one begins."""

    def __init__(self, probe: GradientAlignment, context: Context) -> None:
        self._probe = probe
        self._device = context.device
        self._ranks = context.world_size
        found = find_layers(context.model, None if probe.layers == "last_mlp" else probe.layers)
        self._heard = dict.fromkeys(found, 0)
        self._layers: dict[str, GradientSums] = {}
        self._tokens_K = torch.zeros(0)
        self._domains = 0
        self._steps = 0
        self._measuring = False
        self._halves = 2 if probe.halves else 1
        self._rows_K = np.zeros(0, dtype=np.int64)
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
                tap.name: GradientSums(self._parts, tap.shape, sizes[tap.name], self._device)
                for tap in self._taps
            }
        for sums in self._layers.values():
            sums.reset()
        self._tokens_K = torch.zeros(self._parts, dtype=torch.float64, device=self._device)
        self._rows_K = np.zeros(len(domains), dtype=np.int64)
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
        domain_BL = self._halved(batch.domain_BL) if self._halves == 2 else batch.domain_BL
        self._batch = DomainRuns.of(domain_BL), batch
        domain_T = domain_BL.reshape(-1).to(self._device)
        self._tokens_K.index_add_(0, domain_T, batch.counted_BL.reshape(-1).to(self._tokens_K))

    @property
    def _parts(self) -> int:
        """P: what sums are kept of, domain k as k, and its second half as K + k."""
        return self._halves * self._domains

    def _halved(self, domain_BL: Tensor) -> Tensor:
        """The rows of each domain in turn to its two halves; a row belongs where its first position does."""
        first_B = domain_BL[:, 0].cpu().numpy()
        half_B = np.empty_like(first_B)
        for row, domain in enumerate(first_B):
            half_B[row] = self._rows_K[domain] % 2
            self._rows_K[domain] += 1
        return domain_BL + self._domains * torch.from_numpy(half_B).to(domain_BL.device)[:, None]

    def before_update(self) -> None:
        deaf = [name for name, times in self._heard.items() if times == 0]
        if self._measuring and self._batch and deaf:
            raise TrainingError(
                f"no gradient came back through {deaf[0]}, on which alignment is to be measured: the layer is not used or "
                "nothing before it is trained, or the model was compiled and run before the probe was attached"
            )
        self._measuring = False
        self._batch = None

    def sums(self) -> Tensor:
        """S_K of each layer and n_K; ⟨S_i, S_j⟩ already if no other rank has anything to add to S."""
        if self._ranks == 1:
            blocks = [self._gram_PP(layer.sums_KM for layer in self._layers.values())]
        else:
            blocks = [layer.sums_KM for layer in self._layers.values()]
        return torch.cat(
            [block.reshape(-1).to(torch.float64) for block in [*blocks, self._tokens_K]]
        )

    def flops(self) -> float:
        """2·out·in for each position and layer measured, and 2·K² for each number kept, for the inner products."""
        return self._flops + 2.0 * self._parts**2 * sum(
            layer.size for layer in self._layers.values()
        )

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        P = self._parts
        sizes = (
            [P * P, P]
            if self._ranks == 1
            else [*(P * layer.size for layer in self._layers.values()), P]
        )
        blocks = torch.split(sums, sizes)
        gram_PP = (
            blocks[0].view(P, P)
            if self._ranks == 1
            else self._gram_PP(block.view(P, -1) for block in blocks[:-1])
        )
        halves = (self._halves, self._domains)
        gram_HKHK = gram_PP.cpu().numpy().reshape(halves * 2)
        tokens_HK = blocks[-1].cpu().numpy().reshape(halves)
        found = {
            NAME: _mean(gram_HKHK.sum(axis=(0, 2)), tokens_HK.sum(axis=0), tokens_HK.sum(axis=0))
        }
        if self._halves == 2:
            across = _mean(gram_HKHK[0, :, 1], tokens_HK[0], tokens_HK[1])
            found[UNBIASED] = Measured(
                0.5 * (across.values + across.values.T), across.present & across.present.T
            )
        return found

    def interval_state(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "flops": self._flops,
            "rows": self._rows_K.copy(),
            "tokens": self._tokens_K.cpu().numpy().copy(),
            "layers": {
                name: layer.sums_KM.cpu().numpy().copy() for name, layer in self._layers.items()
            },
        }

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        self._steps = int(state["steps"])
        self._flops = float(state["flops"])
        self._rows_K = np.array(state["rows"])
        self._tokens_K.copy_(torch.from_numpy(state["tokens"]))
        for name, layer in self._layers.items():
            layer.sums_KM.copy_(torch.from_numpy(state["layers"][name]))

    def close(self) -> None:
        for tap in self._taps:
            tap.remove()

    def _gram_PP(self, layers: Iterable[Tensor]) -> Tensor:
        """Σ over layers of S Sᵀ. Products of short stretches are added up in float64, which is as good as all in float64."""
        gram_PP = torch.zeros(
            self._parts, self._parts, dtype=torch.float64, device=self._tokens_K.device
        )
        for sum_PM in layers:
            for part_PM in torch.split(sum_PM, _STRETCH, dim=1):
                gram_PP += part_PM @ part_PM.t()
        return gram_PP

    def _sizes(self) -> dict[str, int | None]:
        """Numbers a domain for each layer, None for exact: in proportion to the layers' weights."""
        weights = {tap.name: math.prod(tap.shape) for tap in self._taps}
        total = sum(weights.values())
        fits = self._probe.memory // (_FLOAT * self._parts)
        wanted = self._probe.sketch if self._probe.sketch is not None else fits
        if wanted >= total:
            return dict.fromkeys(weights)
        return {name: wanted * weight // total for name, weight in weights.items()}

    def _listener(self, name: str) -> Listener | None:
        """For the micro-batch whose forward pass is under way, also when its activations are being recomputed."""
        if self._batch is None:
            return None
        runs, batch = self._batch

        def listen(delta_BLO: Tensor, x_BLI: Tensor) -> None:
            denominator = batch.bound()
            layer = self._layers[name]
            if delta_BLO.shape[:-1].numel() != runs.positions:
                raise TrainingError(
                    f"{name} saw {delta_BLO.shape[:-1].numel()} positions of a micro-batch of {runs.positions}: alignment needs "
                    "layers that see every position, in order, which experts of a mixture do not"
                )
            delta_TO, x_TI = runs.flat(delta_BLO), runs.flat(x_BLI)
            for domain, start, stop in runs.runs:
                layer.add(domain, delta_TO[start:stop], x_TI[start:stop], denominator)
            self._heard[name] += 1
            self._flops += 2.0 * runs.positions * math.prod(layer.shape)

        return listen


def _mean(gram_KK: np.ndarray, left_K: np.ndarray, right_K: np.ndarray) -> Measured:
    """⟨S_i, S_j⟩ / (n_i n_j), absent where either count is 0."""
    return Measured(
        gram_KK / np.maximum(np.outer(left_K, right_K), 1.0), np.outer(left_K > 0, right_K > 0)
    )

"""`TargetGain`: how much a step on each training row lowers the loss of a target set, to first order.

    G    gradient of the target loss Σ_j v_j ℓ_j / Σ_j v_j on a few rows of validation text
    D    1 / (√s + ε), where s is a running mean of the squared batch gradient: Adam's divisor
    x_r  = ⟨D ∘ G, ∇ℓ_r⟩, the gain of training row r

Products are summed over the tapped layers. G is taken at the weights of the step and averaged over
refreshes. The gradient of a row is never formed: with the output gradient δ and the input x that a
tap of a linear layer sees, ⟨G, δᵀx⟩ = Σ_t δ_t · (G x_t). That is one product of the size of the
layer for the whole batch, whatever the number of domains.

Given G, the rows of a domain are independent, so their mean has a standard error. The rows of the
target set are not trained on. Their noise therefore does not move the weights at which training
rows are measured, and products are unbiased also for the target's own domain and for intervals of
several steps. Products of two halves of an interval are not.

A row belongs to the domain of its first position. The probe reports, over the rows of an interval:

    target_gain         (K,) mean of x, absent where no row was read
    target_gain_square  (K,) mean of x², absent where no row was read
    target_gain_rows    (K,) number of rows

x is divided by its root mean square over all rows of the interval. Intervals can then be added up
although gradients shrink during training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.registry import register_probe
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Meter, MicroBatch, whole
from cuvee.probes.layer_taps import Listener, Tap, check_heard, find_layers

NAME = "target_gain"
SQUARE, ROWS = f"{NAME}_square", f"{NAME}_rows"
_SQUARES_KEPT = 0.95  # a step, as Adam's second beta
_EPSILON = 1e-8


@register_probe(NAME)
@dataclass(frozen=True)
class TargetGain:
    """Measures the gain towards the validation text of the domains that count.

    - `objective`: weight v by name of domain. Without it, all domains with validation text have
      weight 1.
    - `rows`, `every`: number of rows that are read for G, at most every so many steps.
    - `share`: tokens read for G are at most this share of the tokens that this rank trains on, so
      small batches are read for less often than every `every` steps. The first step is exempt.
    - `kept`: share of the running mean of G that a refresh keeps.
    - `layers`: as in `GradientAlignment`.
    - `precondition`: whether G is divided by what Adam divides by.
    """

    objective: Mapping[str, float] = field(default_factory=dict)
    rows: int = 8
    every: int = 4
    share: float = 1 / 16
    kept: float = 0.8
    layers: Literal["last_mlp"] | tuple[str, ...] = "last_mlp"
    precondition: bool = True
    name: str = NAME

    def __post_init__(self) -> None:
        if min(self.rows, self.every) < 1 or not 0 <= self.kept < 1:
            raise ConfigError(
                f"rows {self.rows} and every {self.every} must be 1 or more, and kept {self.kept} "
                "at least 0 and below 1"
            )
        if not 0 < self.share <= 1:
            raise ConfigError(f"share {self.share} must be above 0 and at most 1")

    def check(self, valid_tokens: Mapping[str, int], row_tokens: int) -> list[str]:
        """Return the domains that count and have a row of validation text, of tokens by domain.

        Raises `ConfigError` if there is none.
        """
        found = [
            name
            for name, tokens in valid_tokens.items()
            if tokens >= row_tokens and (self.objective.get(name, 0.0) if self.objective else 1) > 0
        ]
        if not found:
            raise ConfigError(
                f"no domain of the objective has a row of {row_tokens} tokens of validation text: "
                "name other domains in `objective`, or build the corpus with more validation text"
            )
        return found

    def attach(self, context: Context) -> TargetGainMeter:
        """Raise `ConfigError` if there is no validation text of a domain that counts."""
        if context.valid_tokens is None:
            raise ConfigError(
                "target_gain needs validation text: set Context.valid_tokens in the training loop"
            )
        meter = TargetGainMeter(self, context)
        meter.texts()
        return meter


class TargetGainMeter(Meter):
    """Keeps G and s of each layer between intervals, and count, Σx and Σx² of each domain."""

    def __init__(self, probe: TargetGain, context: Context) -> None:
        self._probe, self._context = probe, context
        found = find_layers(context.model, None if probe.layers == "last_mlp" else probe.layers)
        self._layers = found
        self._heard = dict.fromkeys(found, 0)
        self._target: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._towards: dict[str, Tensor] = {}
        self._refreshes = 0
        self._trained = 0
        self._read = 0
        self._sums_3K = torch.zeros(3, 0, dtype=torch.float64)
        self._batch: MicroBatch | None = None
        self._gain_B = torch.zeros(0)
        self._flops = 0.0
        self._taps = [
            Tap(name, layer, partial(self._listener, name)) for name, layer in found.items()
        ]

    def begin_interval(self, domains: tuple[Domain, ...]) -> None:
        self._sums_3K = torch.zeros(
            3, len(domains), dtype=torch.float64, device=self._context.device
        )
        self._read = 0
        self._flops = 0.0

    def begin_step(self, step: int) -> None:
        self._heard = dict.fromkeys(self._heard, 0)
        if not self._target or (step % self._probe.every == 0 and self._affords_refresh()):
            self._refresh()
        self._towards = {name: self._preconditioned(name) for name in self._target}

    def before_forward(self, batch: MicroBatch) -> None:
        self._settle()
        self._batch = batch
        self._trained += batch.tokens_BL.numel()
        self._gain_B = torch.zeros(len(batch.tokens_BL), device=self._context.device)

    def before_update(self) -> None:
        if self._batch:
            check_heard(self._heard, NAME)
        self._settle()
        if not self._probe.precondition:
            return
        for name, layer in self._layers.items():
            weight = layer.get_parameter("weight")
            if weight.grad is not None:
                gradient = whole(weight.grad).float()
                if gradient.ndim != 2:
                    raise TrainingError(
                        f"the gradient of {name} has shape {tuple(gradient.shape)}, so this rank has "
                        "a part of it (FSDP1) and target_gain needs the whole: use FSDP2 or DDP"
                    )
                square = (gradient if isinstance(layer, nn.Linear) else gradient.t()).square()
                old = self._squares.get(name)
                self._squares[name] = (
                    square if old is None else old.lerp_(square, 1 - _SQUARES_KEPT)
                )

    def _settle(self) -> None:
        """Add the rows of the last micro-batch to the sums."""
        batch = self._batch
        self._batch = None
        if batch is None:
            return
        counted_B = batch.counted_BL.sum(dim=1)
        read_B = counted_B > 0
        gain_B = (self._gain_B * batch.bound() / counted_B.clamp(min=1)).double()[read_B]
        domain_B = batch.domain_BL[:, 0].to(gain_B.device)[read_B]
        self._sums_3K.index_add_(
            1, domain_B, torch.stack([torch.ones_like(gain_B), gain_B, gain_B.square()])
        )

    def _affords_refresh(self) -> bool:
        """Whether enough was trained on since the last refresh."""
        needed = self._probe.rows * self._context.row_tokens
        return self._fewest_trained() * self._probe.share >= needed

    def _fewest_trained(self) -> int:
        """Tokens since the last refresh on the rank with the fewest.

        Ranks refresh together: they need the same G, and with FSDP2 they must run the model together.
        """
        weight = next(iter(self._layers.values())).get_parameter("weight")
        groups: list[Any] = []
        if isinstance(weight, DTensor):
            mesh = weight.device_mesh
            groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
        elif distributed.is_initialized():
            # Other processes of the host's group may not train.
            groups = [None] if distributed.get_world_size() == self._context.place.size > 1 else []
        if not groups:
            return self._trained
        trained = torch.tensor(self._trained, device=self._context.device)
        for group in groups:
            distributed.all_reduce(trained, distributed.ReduceOp.MIN, group=group)
        return int(trained)

    def _refresh(self) -> None:
        """Add the target's gradient at the present weights to the running mean.

        The `grad` of the weights is not touched.
        """
        context = self._context
        tokens_BL = self._draw().to(context.device)
        autocast = torch.autocast(
            context.device.type, dtype=context.compute, enabled=context.compute != torch.float32
        )
        uses: dict[str, list[tuple[Tensor, Tensor]]] = {tap.name: [] for tap in self._taps}
        for tap in self._taps:
            tap.uses = uses[tap.name]
        devices = [context.device] if context.device.type == "cuda" else []
        try:  # dropout must not move the generators of training
            with torch.random.fork_rng(devices=devices), torch.enable_grad(), autocast:
                logits = context.model(input_ids=tokens_BL, use_cache=False).logits[:, :-1]
        finally:
            for tap in self._taps:
                tap.uses = None
        if missed := [name for name, used in uses.items() if not used]:
            raise TrainingError(
                f"target_gain saw no pass through {', '.join(missed)} with gradients: if the model "
                "was compiled and run before the probe was attached, attach it first; use activation "
                "checkpointing with use_reentrant=False; do not freeze all that is before the layer"
            )
        loss = functional.cross_entropy(logits.float().mT, tokens_BL[:, 1:])
        outputs = [output for used in uses.values() for _, output in used]
        deltas = iter(torch.autograd.grad(loss, outputs))
        kept = min(self._probe.kept, 1 - 1 / (self._refreshes + 1))
        for name, used in uses.items():
            gradient = sum(_outer(next(deltas), x) for x, _ in used)
            assert isinstance(gradient, Tensor)
            old = self._target.get(name)
            self._target[name] = gradient if old is None else old.lerp_(gradient, 1 - kept)
        self._refreshes += 1
        self._trained = 0
        self._read += tokens_BL.numel()

    def texts(self) -> dict[str, npt.NDArray[Any]]:
        """Return the validation tokens of each domain that counts and has at least one row.

        Raises `ConfigError` if there is none.
        """
        assert self._context.valid_tokens is not None
        texts = self._context.valid_tokens()
        lengths = {name: len(tokens) for name, tokens in texts.items()}
        counting = self._probe.check(lengths, self._context.row_tokens)
        return {name: texts[name] for name in counting}

    def _draw(self) -> Tensor:
        """Return (B, L) rows of validation text, of each domain in proportion to its weight.

        Each refresh reads other rows. All runs read the same ones.
        """
        texts = self.texts()
        length = self._context.row_tokens
        rng = np.random.default_rng(self._refreshes)
        weight_D = np.array([self._probe.objective.get(name, 1.0) for name in texts])
        edges = np.cumsum([rng.uniform(), *(weight_D / weight_D.sum() * self._probe.rows)])
        counts_D = np.diff(np.floor(edges + 1e-9)).astype(int).tolist()
        rows: list[npt.NDArray[np.int64]] = []
        for text, count in zip(texts.values(), counts_D, strict=True):
            for window in rng.integers(len(text) // length, size=count).tolist():
                rows.append(text[window * length : (window + 1) * length].astype(np.int64))
        return torch.from_numpy(np.stack(rows))

    def _preconditioned(self, name: str) -> Tensor:
        """Return D ∘ G of a layer, (out, in)."""
        square = self._squares.get(name)
        target = self._target[name]
        return target if square is None else target / (square.sqrt() + _EPSILON)

    def _listener(self, name: str) -> Listener | None:
        """Listen to the present training micro-batch, also when activations are recomputed."""
        if self._batch is None:
            return None

        def listen(delta_BLO: Tensor, x_BLI: Tensor) -> None:
            self._heard[name] += 1
            projected_BLO = x_BLI.float() @ self._towards[name].t()
            self._gain_B += (projected_BLO * delta_BLO.float()).flatten(1).sum(dim=1)
            self._flops += 2.0 * delta_BLO.shape[:-1].numel() * math.prod(self._towards[name].shape)

        return listen

    def sums(self) -> Tensor:
        return self._sums_3K.reshape(-1)

    def flops(self) -> float:
        return self._flops + self._read * self._context.flops_per_token

    def read(self, sums: Tensor) -> Mapping[str, Measured]:
        rows_K, sum_K, square_K = sums.view(3, -1).cpu().numpy()
        mean, square = Measured.mean(sum_K, rows_K), Measured.mean(square_K, rows_K)
        scale = math.sqrt(max(float(square_K.sum()) / max(float(rows_K.sum()), 1.0), 1e-300))
        return {
            self._probe.name: Measured(mean.values / scale, mean.present),
            f"{self._probe.name}_square": Measured(square.values / scale**2, square.present),
            f"{self._probe.name}_rows": Measured.all(rows_K),
        }

    def state_dict(self) -> dict[str, Any]:
        parts = {"target": self._target, "squares": self._squares}
        kept = {
            part: {name: one.cpu().numpy().copy() for name, one in held.items()}
            for part, held in parts.items()
        }
        return {"refreshes": self._refreshes, "trained": self._trained, **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._refreshes = int(state["refreshes"])
        self._trained = int(state.get("trained", 0))
        older = "trained" not in state  # then a Conv1D's arrays are (in, out), as its weight
        for part, held in (("target", self._target), ("squares", self._squares)):
            held.clear()
            held.update(
                {
                    name: torch.tensor(
                        one.T if older and not isinstance(self._layers[name], nn.Linear) else one,
                        device=self._context.device,
                    )
                    for name, one in state[part].items()
                }
            )

    def interval_state(self) -> dict[str, Any]:
        return {"sums": self._sums_3K.cpu().numpy(), "read": self._read, "flops": self._flops}

    def load_interval_state(self, state: Mapping[str, Any]) -> None:
        self._sums_3K = torch.tensor(state["sums"], device=self._context.device)
        self._read = int(state["read"])
        self._flops = float(state["flops"])

    def close(self) -> None:
        for tap in self._taps:
            tap.remove()


def _outer(delta: Tensor, x: Tensor) -> Tensor:
    """Return Σ_t δ_t x_tᵀ (out, in), the gradient of a linear layer's weight."""
    return delta.flatten(0, -2).float().t() @ x.flatten(0, -2).float()

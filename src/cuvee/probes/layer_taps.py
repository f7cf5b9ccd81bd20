"""Taps: what a linear layer saw in the forward pass and got back in the backward pass, handed to whoever listens.

A tap is an identity in autograd behind the layer's output. It saves the layer's input the way autograd saves it, so the
two share memory, and activation checkpointing and offloading treat it like any saved tensor. It changes no bit of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cuvee.core.errors import TrainingError
from cuvee.probes.base import whole

Listener = Callable[[Tensor, Tensor], None]
"""Takes output gradient δ (…, out) and input x (…, in) of one use of a layer; runs inside the backward pass."""

_MLP_NAMES = {"mlp", "feed_forward", "ffn", "feedforward"}


class Tap:
    """A forward hook on `layer`. On each forward pass it asks `listener` who wants this pass's gradient; None means nobody."""

    def __init__(
        self, name: str, layer: nn.Module, listener: Callable[[], Listener | None]
    ) -> None:
        self.name = name
        self.shape = weight_shape(name, layer)
        self._listener = listener
        # Compilers must leave this alone: they would trace the listener's side effects away. It costs them a graph break.
        hook = torch.compiler.disable(self._after_forward)  # type: ignore[no-untyped-call]
        self._handle = layer.register_forward_hook(hook, with_kwargs=True)

    def _after_forward(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Any:
        # Re-entrant activation checkpointing runs the forward pass without gradients first and with gradients later.
        listen = self._listener() if torch.is_grad_enabled() and output.requires_grad else None
        if listen is None:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        return _Identity.apply(output, x.detach(), listen)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        self._handle.remove()


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, listen: Listener) -> Tensor:
        ctx.listen = listen
        ctx.save_for_backward(x)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.autocast(delta.device.type, enabled=False):
            # In the type of the layer's own weight gradient under autocast.
            ctx.listen(whole(delta), whole(x).to(delta.dtype))
        return delta, None, None


def find_layers(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """Linear layers by name: those that match one of `patterns`, or the down-projection of the last MLP.

    Raises `TrainingError` if a pattern matches no linear layer, or if the model names no MLP.
    """
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
    if patterns is None:
        inside = [name for name in linear if _MLP_NAMES & set(name.lower().split("."))]
        if not inside:
            raise TrainingError(
                "found no MLP in this model to measure gradients on: give `layers` with names or patterns of linear layers, "
                f"such as {list(linear)[-2:]}"
            )
        return {inside[-1]: linear[inside[-1]]}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise TrainingError(
                f"no linear layer is named {pattern!r}: names in this model look like {list(linear)[-2:]}"
            )
    return {
        name: linear[name]
        for name in linear
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def weight_shape(name: str, layer: nn.Module) -> tuple[int, int]:
    """(out, in). A Hugging Face `Conv1D` keeps its weight as (in, out), which inner products cannot tell."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    weight = layer.weight
    assert isinstance(weight, Tensor), name
    return weight.shape[1], weight.shape[0]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    )

"""Taps: pass the input and the output gradient of a linear layer to a listener.

A tap is an identity function in autograd behind the layer's output. It saves the layer's input the
way autograd does, so the two share memory, and activation checkpointing and offloading handle it
like any saved tensor. The results of training are bit-identical with and without taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cuvee.core.errors import TrainingError
from cuvee.probes.base import whole

Listener = Callable[[Tensor, Tensor], None]
"""Receives output gradient δ (…, out) and input x (…, in) of one use of a layer, in backward."""

_MLP_NAMES = {"mlp", "feed_forward", "ffn", "feedforward"}


class Tap:
    """A forward hook on `layer`. Each pass calls `listener`, which returns a `Listener` or None.

    While `uses` is a list, each pass adds its input and its output instead. The output has a
    gradient function, so the gradient of the layer's weight can be computed from it without the
    weight, which FSDP2 keeps in parts.
    """

    def __init__(
        self, name: str, layer: nn.Module, listener: Callable[[], Listener | None]
    ) -> None:
        self.name = name
        self.shape = weight_shape(name, layer)
        self.uses: list[tuple[Tensor, Tensor]] | None = None
        self._listener = listener
        # Otherwise code compiled for one layer is reused for a layer of the same type that has this
        # hook, and the hook never fires.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        # A compiler would trace away the listener's side effects. This costs one graph break.
        hook = torch.compiler.disable(self._after_forward)  # type: ignore[no-untyped-call]
        self._handle = layer.register_forward_hook(hook, with_kwargs=True)

    def _after_forward(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Any:
        # Re-entrant activation checkpointing runs the forward pass first without gradients and
        # later again with gradients. Only the second pass is listened to.
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if self.uses is not None:
            self.uses.append((x.detach(), output))
            return None
        listen = self._listener()
        if listen is None:
            return None
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
            # The type of the layer's own weight gradient under autocast.
            ctx.listen(whole(delta), whole(x).to(delta.dtype))
        return delta, None, None


def check_heard(heard: Mapping[str, int], what: str) -> None:
    """Raise `TrainingError` for a layer whose tap heard no backward pass in a step."""
    for name, times in heard.items():
        if times == 0:
            raise TrainingError(
                f"no gradient reached {name}, where {what} is to be measured. Either the "
                "layer is not used, or nothing before it is trained, or the model was compiled "
                "and run before the probe was attached"
            )


def find_layers(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return linear layers by name: those that match a pattern, or the last MLP's down-projection.

    Raises `TrainingError` if a pattern matches no linear layer, or if `patterns` is None and no
    layer name contains a usual name of an MLP ("mlp", "ffn", …).
    """
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
    if patterns is None:
        inside = [name for name in linear if _MLP_NAMES & set(name.lower().split("."))]
        if not inside:
            raise TrainingError(
                "found no MLP in this model to measure gradients on: set `layers` to names or "
                f"patterns of linear layers, such as {list(linear)[-2:]}"
            )
        return {inside[-1]: linear[inside[-1]]}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise TrainingError(
                f"no linear layer matches {pattern!r}: this model has names such as "
                f"{list(linear)[-2:]}"
            )
    return {
        name: linear[name]
        for name in linear
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def weight_shape(name: str, layer: nn.Module) -> tuple[int, int]:
    """Return (out, in). A Hugging Face `Conv1D` stores its weight as (in, out)."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    weight = layer.weight
    assert isinstance(weight, Tensor), name
    return weight.shape[1], weight.shape[0]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    )

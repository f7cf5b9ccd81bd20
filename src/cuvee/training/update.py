"""One optimizer step: one gradient buffer, one sum over ranks, clipping, AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from cuvee.core.errors import CheckpointError
from cuvee.training.distributed import Ranks
from cuvee.training.settings import TrainerSettings

_ALIGNMENT = 64  # elements; each weight's gradient begins at a multiple, for vector instructions
_NAMED = 8  # differences that an error lists


class OptimizerStep:
    """AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101).

    It updates the trainable weights of a model. Each `weight.grad` is a view of one flat buffer,
    and the last element of the buffer is the loss of the step. So one sum over ranks, one norm and
    one check for finite values cover all of them.
    """

    def __init__(self, model: nn.Module, settings: TrainerSettings) -> None:
        self.weights = trained_weights(model)
        self.max_grad_norm = settings.max_grad_norm
        self._place_gradients()
        embeddings = {
            id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
        }
        matrices = [
            weight
            for weight in self.weights.values()
            if weight.ndim >= 2 and id(weight) not in embeddings
        ]
        decayed = {id(weight) for weight in matrices}
        others = [weight for weight in self.weights.values() if id(weight) not in decayed]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )

    def _place_gradients(self) -> None:
        sizes = [
            math.ceil(weight.numel() / _ALIGNMENT) * _ALIGNMENT for weight in self.weights.values()
        ]
        device = next(iter(self.weights.values())).device
        self.buffer = torch.zeros(sum(sizes) + 1, device=device)
        start = 0
        for weight, size in zip(self.weights.values(), sizes, strict=True):
            weight.grad = self.buffer[start : start + weight.numel()].view_as(weight)
            start += size
        self._gradients = [weight.grad for weight in self.weights.values()]

    def begin(self) -> None:
        self.buffer.zero_()

    def reduce(
        self, loss: torch.Tensor, ranks: Ranks, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum gradients and `loss` over ranks. Return loss and gradient norm of the whole batch."""
        in_place = all(
            w.grad is g for w, g in zip(self.weights.values(), self._gradients, strict=True)
        )
        assert in_place, "something replaced a weight's gradient instead of adding to it"
        self.buffer[-1] = loss
        ranks.sum(self.buffer, f"the sum of gradients of step {step}")
        return self.buffer[-1], self.buffer[:-1].norm()

    def apply(self, norm: torch.Tensor, learning_rate: float) -> None:
        """Clip the gradients to `max_grad_norm` and update the weights."""
        self.buffer.mul_(torch.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights and both moments by weight name, in float32. No moments before the first step."""
        state: dict[str, Any] = {
            "weights": {name: _copy(weight) for name, weight in self.weights.items()},
            "steps": 0,
        }
        for name, weight in self.weights.items():
            if moments := self.optimizer.state.get(weight):
                state["steps"] = int(moments["step"].item())
                state.setdefault("mean", {})[name] = _copy(moments["exp_avg"])
                state.setdefault("variance", {})[name] = _copy(moments["exp_avg_sq"])
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises `CheckpointError` as `load_weights` does.
        """
        load_weights(self.weights, state["weights"])
        for name, weight in self.weights.items():
            if state["steps"]:
                self.optimizer.state[weight] = {
                    "step": torch.tensor(float(state["steps"]), device=weight.device),
                    "exp_avg": torch.from_numpy(np.array(state["mean"][name])).to(weight.device),
                    "exp_avg_sq": torch.from_numpy(np.array(state["variance"][name])).to(
                        weight.device
                    ),
                }
            else:
                self.optimizer.state.pop(weight, None)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that training changes, by name. A shared weight is there once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def load_weights(
    weights: Mapping[str, torch.Tensor], saved: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Copy the arrays of a checkpoint into the weights of the same names.

    A weight that two modules share has one name. Raises `CheckpointError`, before anything is
    copied, if names or shapes differ or if an array is not finite.
    """
    if faults := _differences(weights, saved):
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise CheckpointError(
            f"the checkpoint is of another model: {'; '.join(faults[:_NAMED])}{more}"
        )
    for name, array in saved.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{name} is not finite in the checkpoint: resume from an earlier checkpoint"
            )
    for name, weight in weights.items():
        weight.copy_(torch.from_numpy(saved[name]))


def _differences(
    weights: Mapping[str, torch.Tensor], saved: Mapping[str, np.ndarray[Any, Any]]
) -> list[str]:
    both = [name for name in weights if name in saved]
    shapes = [(name, saved[name].shape, tuple(weights[name].shape)) for name in both]
    return [
        *(f"it lacks {name}" for name in weights if name not in saved),
        *(f"it has {name}, which the model lacks" for name in saved if name not in weights),
        *(f"{name} has shape {a} there and {b} here" for name, a, b in shapes if a != b),
    ]


def _copy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    copied: np.ndarray[Any, Any] = tensor.detach().float().cpu().numpy().copy()
    return copied

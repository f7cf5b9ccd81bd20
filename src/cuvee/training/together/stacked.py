"""`StackedModel`: runs several models of one architecture as one program, each on its own rows.

The program is a copy of the first model, called on the rows of all members at once. Its modules
with weights are replaced. A linear layer becomes one batched product over the members' stacked
weights. A root-mean-square norm uses stacked scales. Any other module runs member by member.
Modules without weights (attention, activations, residuals, rotations) just get a larger batch.

Each member keeps its own weights. The forward pass stacks them, and the backward pass adds to each
member's `weight.grad`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class StackedModel:
    """Several models of one architecture as one program.

    Call it with the numbers of some members and the tokens_BL of each. It returns the last hidden
    states of each, (B·L, H).
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        shared = {id(weight): weight for weight in models[0].parameters()}
        self._program = copy.deepcopy(models[0], shared)
        self._leaves: list[_Leaf] = []
        replaced: list[str] = []
        for name, module in models[0].named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in replaced)
            if name and not inside and any(True for _ in module.parameters(recurse=False)):
                leaf = _leaf_for([model.get_submodule(name) for model in models])
                parent, _, attribute = name.rpartition(".")
                setattr(self._program.get_submodule(parent), attribute, leaf)
                self._leaves.append(leaf)
                replaced.append(name)

    def __call__(self, members: Sequence[int], tokens: Sequence[Tensor]) -> list[Tensor]:
        for leaf in self._leaves:
            leaf.members = members
        hidden_BLH = self._program(
            input_ids=torch.cat(list(tokens)), use_cache=False
        ).last_hidden_state
        return [hidden.flatten(0, 1) for hidden in hidden_BLH.chunk(len(members))]

    @torch.no_grad()
    def agrees_with(self, models: Sequence[nn.Module]) -> bool:
        """Whether the program gives the same hidden states as the models, tried on a few tokens.

        False with dropout, or if the rows of a batch affect each other. Any error also gives False,
        because a model may contain any code.
        """
        device = next(models[0].parameters()).device
        tokens = list(
            torch.arange(16 * len(models), device=device).remainder(31).view(len(models), 2, 8)
        )
        try:
            together = self(range(len(models)), tokens)
            apart = [
                model(input_ids=own, use_cache=False).last_hidden_state
                for model, own in zip(models, tokens, strict=True)
            ]
        except Exception:
            return False
        return all(
            torch.allclose(a, b.flatten(0, 1), rtol=1e-4, atol=1e-5)
            for a, b in zip(together, apart, strict=True)
        )


class _Leaf(nn.Module):
    """Takes the place of one module of every member.

    Its input is the concatenation of all members' rows along the first dimension.
    """

    members: Sequence[int] = ()

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._of = tuple(modules)  # in a tuple, so that they are not registered as submodules

    def stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(self._of[member], name) for member in self.members])


class _Linear(_Leaf):
    def forward(self, x: Tensor) -> Tensor:
        x_NRH = x.reshape(len(self.members), -1, x.shape[-1])
        weight = self.stacked("weight").mT
        y = torch.bmm(x_NRH, weight)
        if self._of[0].bias is not None:
            y = y + self.stacked("bias")[:, None]
        return y.view(*x.shape[:-1], -1)


class _Scale(_Leaf):
    """A norm that multiplies by its weight last: it runs with ones, then each member scales.

    Only the scaling is reshaped, so gradients are added in the same order as in a single model.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self._ones = {
            "weight": torch.ones_like(modules[0].get_parameter("weight"), requires_grad=False)
        }

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional_call(self._of[0], self._ones, x)
        return (y.view(len(self.members), -1, y.shape[-1]) * self.stacked("weight")[:, None]).view(
            y.shape
        )


class _Apart(_Leaf):
    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.members, x.chunk(len(self.members)), strict=True)
        return torch.cat([self._of[member](part) for member, part in parts])


def _leaf_for(modules: Sequence[nn.Module]) -> _Leaf:
    if isinstance(modules[0], nn.Linear):
        return _Linear(modules)
    written_out = type(modules[0]).__name__.endswith("RMSNorm") and not isinstance(
        modules[0], nn.RMSNorm
    )
    names = [name for name, _ in modules[0].named_parameters()]
    return _Scale(modules) if written_out and names == ["weight"] else _Apart(modules)

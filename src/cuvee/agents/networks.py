"""Building blocks of actors and critics.

An MLP works for a fixed K, a Transformer over domains for any K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cuvee.core.errors import PolicyError


@dataclass(frozen=True)
class Architecture:
    """Kind and size of a network.

    An `mlp` works for one K and one order of the domains. A `transformer` works for any K, and the
    order does not matter. `hidden` is the width of the layers.
    """

    kind: Literal["mlp", "transformer"] = "mlp"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    layer_norm: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "transformer"):
            raise PolicyError(
                f"architecture {self.kind!r} is not known: use 'mlp' or 'transformer'"
            )
        if min(self.hidden, self.layers, self.heads) < 1 or (
            self.kind == "transformer" and self.hidden % self.heads
        ):
            raise PolicyError(
                f"hidden {self.hidden}, layers {self.layers} and heads {self.heads} must be "
                "positive, and the heads of a transformer must divide its hidden width"
            )


@dataclass(frozen=True)
class Shape:
    """Sizes of what an agent sees: K domains with F features each, and G global features.

    With `vector`, rewards and values have one entry per domain. `reference` is the index of the
    feature that holds the logits of the reference mixture: an untrained actor plays it, and
    `kl_coef` penalises the divergence from it. Without it, the reference is uniform. `scale` is the
    index of the feature that the actor's logits are multiplied by, before the reference is added:
    where it is 0, the agent cannot leave the reference. A transformer
    acts at any K; it uses `domains` only to check the transitions of its replay buffer.
    """

    domains: int
    features: int
    globals: int
    vector: bool = False
    reference: int | None = None
    scale: int | None = None


def mlp(inputs: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    """Return an MLP with `layers` hidden layers.

    The last layer starts near zero, so that initial policies are uniform and initial values are 0.
    """
    stages: list[nn.Module] = []
    for layer in range(architecture.layers):
        stages.append(nn.Linear(inputs if layer == 0 else architecture.hidden, architecture.hidden))
        if architecture.layer_norm:
            stages.append(nn.LayerNorm(architecture.hidden))
        stages.append(nn.GELU())  # smooth, because the actor follows the critic's gradient
    stages.append(near_zero(nn.Linear(architecture.hidden, outputs)))
    return nn.Sequential(*stages)


def near_zero(linear: nn.Linear) -> nn.Linear:
    """Scale the weights of `linear` by 0.01, set its bias to 0, and return it."""
    with torch.no_grad():
        linear.weight.mul_(0.01)
        linear.bias.zero_()
    return linear


class DomainTransformer(nn.Module):
    """A Transformer over domains: (…, K, F) and (…, G) → (…, K, hidden).

    There are no positions: permuting the domains permutes the output.
    """

    def __init__(self, features: int, globals_: int, architecture: Architecture) -> None:
        super().__init__()
        self.embed = nn.Linear(features + globals_, architecture.hidden)
        self.blocks = nn.ModuleList(_Block(architecture) for _ in range(architecture.layers))

    def forward(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        shared = globals_BG[..., None, :].expand(*domains_BKF.shape[:-1], -1)
        x: Tensor = self.embed(torch.cat([domains_BKF, shared], -1))
        for block in self.blocks:
            x = block(x)
        return x


class _Block(nn.Module):
    """A pre-norm Transformer block: attention over domains, then a feed-forward network."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.hidden
        self.heads = architecture.heads
        self.norm_attention = nn.LayerNorm(width)
        self.norm_forward = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.forward_in = nn.Linear(width, 2 * width)
        self.forward_out = nn.Linear(2 * width, width)

    def forward(self, x_BKH: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm_attention(x_BKH))
            .unflatten(-1, (3, self.heads, -1))
            .movedim(-3, 0)
            .transpose(-2, -3)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        x_BKH = x_BKH + self.out(attended)
        inner = nn.functional.gelu(self.forward_in(self.norm_forward(x_BKH)))
        result: Tensor = x_BKH + self.forward_out(inner)
        return result

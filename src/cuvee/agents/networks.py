"""Actors and critics over domains: an MLP for a fixed K, and a Transformer over domain tokens for any K.

An actor maps an observation to P numbers a domain (a logit, and for stochastic policies a log spread). A critic first
encodes the observation, which is dear, and then values any number of mixtures against it, which is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cuvee.core.errors import PolicyError

_ACTION_CHANNELS = 2


@dataclass(frozen=True)
class Architecture:
    """`mlp` is tied to one K and to the order of the domains; `transformer` to neither. `hidden` is the layer width."""

    kind: Literal["mlp", "transformer"] = "mlp"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    layer_norm: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "transformer"):
            raise PolicyError(f"architecture {self.kind!r} is not known: use 'mlp' or 'transformer'")
        if min(self.hidden, self.layers, self.heads) < 1 or (self.kind == "transformer" and self.hidden % self.heads):
            raise PolicyError(
                f"hidden {self.hidden}, layers {self.layers} and heads {self.heads} must be positive, and the heads "
                "of a transformer must divide its hidden width"
            )


@dataclass(frozen=True)
class Shape:
    """K domains with F features each and G numbers for the run; `vector` says that rewards, and values, are one a domain.

    A transformer uses `domains` for nothing but the buffer it learns from: it acts at any K.
    """

    domains: int
    features: int
    globals: int
    vector: bool = False


class Critic(Protocol):
    """Values (…, R) of mixtures in a state, R = K for a vector critic and 1 for a scalar one."""

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        """What `value` needs to know of the state, (B, …)."""
        ...

    def value(self, encoded: Tensor, action_BK: Tensor) -> Tensor:
        """`action_BK` is (*draws, B, K), any number of mixtures for each encoded state; returns (*draws, B, R)."""
        ...


def action_channels(action_BK: Tensor) -> Tensor:
    """(…, K) → (…, K, 2): the weight relative to uniform, plainly and as ln(1 + Kα), of order 1 at any K."""
    relative = action_BK * action_BK.shape[-1]
    return torch.stack([relative - 1, relative.log1p() - math.log(2)], -1)


def bounded(x: Tensor, limit: float = 8.0) -> Tensor:
    """limit·tanh(x / limit): logits that a wrong critic cannot drive away; e^8 leaves 0.03 % for each of the others."""
    return limit * torch.tanh(x / limit)


def mlp(inputs: int, outputs: int, architecture: Architecture) -> nn.Sequential:
    """`layers` hidden layers; the last layer starts near zero, so that policies start uniform and values at 0."""
    stages: list[nn.Module] = []
    for layer in range(architecture.layers):
        stages.append(nn.Linear(inputs if layer == 0 else architecture.hidden, architecture.hidden))
        if architecture.layer_norm:
            stages.append(nn.LayerNorm(architecture.hidden))
        stages.append(nn.GELU())  # smooth: the actor climbs its derivative
    stages.append(_near_zero(nn.Linear(architecture.hidden, outputs)))
    return nn.Sequential(*stages)


def _near_zero(linear: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        linear.weight.mul_(0.01)
        linear.bias.zero_()
    return linear


class _MLPActor(nn.Module):
    def __init__(self, shape: Shape, architecture: Architecture, outputs: int) -> None:
        super().__init__()
        self.outputs, self.domains = outputs, shape.domains
        self.body = mlp(shape.domains * shape.features + shape.globals, shape.domains * outputs, architecture)

    def forward(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        if domains_BKF.shape[-2] != self.domains:
            raise PolicyError(
                f"this policy's MLP was built for {self.domains} domains, got {domains_BKF.shape[-2]}: "
                "use the transformer, which takes any number"
            )
        flat = torch.cat([domains_BKF.flatten(-2), globals_BG], -1)
        out: Tensor = self.body(flat).unflatten(-1, (self.domains, self.outputs))
        return out


class _MLPCritic(nn.Module):
    def __init__(self, shape: Shape, architecture: Architecture) -> None:
        super().__init__()
        inputs = shape.domains * (shape.features + _ACTION_CHANNELS) + shape.globals
        self.body = mlp(inputs, shape.domains if shape.vector else 1, architecture)

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        return torch.cat([domains_BKF.flatten(-2), globals_BG], -1)

    def value(self, encoded: Tensor, action_BK: Tensor) -> Tensor:
        state = encoded.expand(*action_BK.shape[:-1], -1)
        out: Tensor = self.body(torch.cat([state, action_channels(action_BK).flatten(-2)], -1))
        return out


class DomainTransformer(nn.Module):
    """(…, K, F) and (…, G) → (…, K, hidden). Attention over domains without positions: permuting them permutes the output."""

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
    """Pre-norm attention and feed-forward."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.hidden
        self.heads = architecture.heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_in, self.forward_out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BKH: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm_attention(x_BKH)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        x_BKH = x_BKH + self.out(attended)
        inner = nn.functional.gelu(self.forward_in(self.norm_forward(x_BKH)))
        result: Tensor = x_BKH + self.forward_out(inner)
        return result


class _TransformerActor(nn.Module):
    def __init__(self, shape: Shape, architecture: Architecture, outputs: int) -> None:
        super().__init__()
        self.body = DomainTransformer(shape.features, shape.globals, architecture)
        self.head = nn.Sequential(
            nn.LayerNorm(architecture.hidden), _near_zero(nn.Linear(architecture.hidden, outputs))
        )

    def forward(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(domains_BKF, globals_BG))
        return out


class _TransformerCritic(nn.Module):
    """Encodes the state by attention; values a mixture by a network on each domain's token and weight and their average.

    The scalar value is the mean over domains, so it does not grow with K.
    """

    def __init__(self, shape: Shape, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.hidden
        self.vector = shape.vector
        self.body = DomainTransformer(shape.features, shape.globals, architecture)
        self.norm = nn.LayerNorm(width)
        self.with_action = nn.Linear(width + _ACTION_CHANNELS, width)
        self.with_others = nn.Linear(3 * width, width)
        self.head = _near_zero(nn.Linear(width, 1))

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.body(domains_BKF, globals_BG))
        return tokens

    def value(self, encoded: Tensor, action_BK: Tensor) -> Tensor:
        tokens = encoded.expand(*action_BK.shape, -1)
        own = nn.functional.gelu(self.with_action(torch.cat([tokens, action_channels(action_BK)], -1)))
        mean = own.mean(-2, keepdim=True).expand_as(own)
        mixed = (own * action_BK[..., None]).sum(-2, keepdim=True).expand_as(own)
        value_BK: Tensor = self.head(nn.functional.gelu(self.with_others(torch.cat([own, mean, mixed], -1))))[..., 0]
        return value_BK if self.vector else value_BK.mean(-1, keepdim=True)


def build_actor(shape: Shape, architecture: Architecture, outputs: int) -> nn.Module:
    """observation → (…, K, outputs)."""
    kind = _MLPActor if architecture.kind == "mlp" else _TransformerActor
    return kind(shape, architecture, outputs)


def build_critic(shape: Shape, architecture: Architecture) -> nn.Module:
    """A module that implements `Critic`."""
    return _MLPCritic(shape, architecture) if architecture.kind == "mlp" else _TransformerCritic(shape, architecture)


class Twin(nn.Module):
    """Two critics that differ in their first weights, for the lesser of two opinions."""

    def __init__(self, shape: Shape, architecture: Architecture) -> None:
        super().__init__()
        self.critics = nn.ModuleList(build_critic(shape, architecture) for _ in range(2))

    @property
    def _both(self) -> Iterable[Any]:
        return self.critics

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> tuple[Tensor, ...]:
        return tuple(critic.encode(domains_BKF, globals_BG) for critic in self._both)

    def values(self, encoded: tuple[Tensor, ...], action_BK: Tensor) -> tuple[Tensor, ...]:
        """Each critic's values (*draws, B, R)."""
        return tuple(critic.value(part, action_BK) for critic, part in zip(self._both, encoded, strict=True))

"""Actors and critics that see one timestep.

An actor maps an observation to P outputs per domain: a logit and, for stochastic policies, a log
std. A critic first encodes the observation, which is expensive. It can then value any number of
mixtures for that observation, which is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cuvee.agents.networks import Architecture, DomainTransformer, Shape, mlp, near_zero
from cuvee.core.errors import PolicyError

_ACTION_CHANNELS = 2


def action_channels(action_BK: Tensor) -> Tensor:
    """Return two features of each weight, (…, K) → (…, K, 2), of order 1 at any K.

    They are Kα − 1 and ln(1 + Kα) − ln 2. Both are 0 at the uniform mixture.
    """
    relative = action_BK * action_BK.shape[-1]
    return torch.stack([relative - 1, relative.log1p() - math.log(2)], -1)


def bounded(x: Tensor, limit: float = 8.0) -> Tensor:
    """Return limit·tanh(x / limit), to keep logits bounded when a critic is wrong.

    With the default limit and one logit at the bound, each other domain keeps a weight of about
    e^−8 = 0.03 %.
    """
    return limit * torch.tanh(x / limit)


class _MLPActor(nn.Module):
    def __init__(self, shape: Shape, architecture: Architecture, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.domains = shape.domains
        self.body = mlp(
            shape.domains * shape.features + shape.globals, shape.domains * outputs, architecture
        )

    def forward(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        if domains_BKF.shape[-2] != self.domains:
            raise PolicyError(
                f"this policy's MLP was built for {self.domains} domains, got "
                f"{domains_BKF.shape[-2]}: use the transformer, which takes any number"
            )
        flat = torch.cat([domains_BKF.flatten(-2), globals_BG], -1)
        out: Tensor = self.body(flat).unflatten(-1, (self.domains, self.outputs))
        return out


class _Logits(nn.Module):
    """Bounds the logits of another actor, scales them, and adds a reference logit to them.

    The logits are the first output. Scale and reference are features of each domain, see `Shape`.
    """

    def __init__(self, actor: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.actor = actor
        self.reference = shape.reference
        self.scale = shape.scale

    def forward(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        out: Tensor = self.actor(domains_BKF, globals_BG)
        logits_BK1 = bounded(out[..., :1])
        if self.scale is not None:
            logits_BK1 = logits_BK1 * domains_BKF[..., self.scale, None]
        if self.reference is not None:
            logits_BK1 = logits_BK1 + domains_BKF[..., self.reference, None]
        return torch.cat([logits_BK1, out[..., 1:]], -1)


class _MLPCritic(nn.Module):
    def __init__(self, shape: Shape, architecture: Architecture) -> None:
        super().__init__()
        inputs = shape.domains * (shape.features + _ACTION_CHANNELS) + shape.globals
        self.body = mlp(inputs, shape.domains + 1 if shape.vector else 1, architecture)

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        return torch.cat([domains_BKF.flatten(-2), globals_BG], -1)

    def value(self, encoded: Tensor, action_BK: Tensor) -> Tensor:
        state = encoded.expand(*action_BK.shape[:-1], -1)
        out: Tensor = self.body(torch.cat([state, action_channels(action_BK).flatten(-2)], -1))
        return out


class _TransformerActor(nn.Module):
    def __init__(self, shape: Shape, architecture: Architecture, outputs: int) -> None:
        super().__init__()
        self.body = DomainTransformer(shape.features, shape.globals, architecture)
        self.head = nn.Sequential(
            nn.LayerNorm(architecture.hidden), near_zero(nn.Linear(architecture.hidden, outputs))
        )

    def forward(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(domains_BKF, globals_BG))
        return out


class _TransformerCritic(nn.Module):
    """Encodes the observation by attention over domains.

    Each domain's token is combined with its weight. A small network then maps it, with the mean and
    the α-weighted mean over domains, to the domain's outputs. A scalar value is the mean over
    domains, so it does not grow with K. The value after the interval is the α-weighted mean.
    """

    def __init__(self, shape: Shape, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.hidden
        self.vector = shape.vector
        self.body = DomainTransformer(shape.features, shape.globals, architecture)
        self.norm = nn.LayerNorm(width)
        self.with_action = nn.Linear(width + _ACTION_CHANNELS, width)
        self.with_others = nn.Linear(3 * width, width)
        self.head = near_zero(nn.Linear(width, 2 if shape.vector else 1))

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.body(domains_BKF, globals_BG))
        return tokens

    def value(self, encoded: Tensor, action_BK: Tensor) -> Tensor:
        tokens = encoded.expand(*action_BK.shape, -1)
        own = nn.functional.gelu(
            self.with_action(torch.cat([tokens, action_channels(action_BK)], -1))
        )
        mean = own.mean(-2, keepdim=True).expand_as(own)
        mixed = (own * action_BK[..., None]).sum(-2, keepdim=True).expand_as(own)
        out_BKO: Tensor = self.head(
            nn.functional.gelu(self.with_others(torch.cat([own, mean, mixed], -1)))
        )
        if not self.vector:
            return out_BKO.mean(-2)
        after_B1 = (action_BK * out_BKO[..., 1]).sum(-1, keepdim=True)
        return torch.cat([out_BKO[..., 0], after_B1], -1)


def build_actor(shape: Shape, architecture: Architecture, outputs: int) -> nn.Module:
    """Return an actor: observation → (…, K, outputs). The first output holds bounded logits."""
    kind = _MLPActor if architecture.kind == "mlp" else _TransformerActor
    return _Logits(kind(shape, architecture, outputs), shape)


def build_critic(shape: Shape, architecture: Architecture) -> _MLPCritic | _TransformerCritic:
    """Return a critic, a module with two methods.

    `encode(domains_BKF, globals_BG)` encodes observations, (B, …). `value(encoded, action_BK)`
    returns the values (*draws, B, R) of mixtures (*draws, B, K), for any number of mixtures per
    observation.

    R is 1 for a scalar critic: the return. R is K + 1 for a vector critic: the reward of each
    domain in this interval, and the return after this interval. Each interval thus gives K rewards
    to learn from, and the return is still that of the mixture. A return for each domain would be
    wrong: Σ α_i Q_i values the present mixture as if it were played for ever.
    """
    return (
        _MLPCritic(shape, architecture)
        if architecture.kind == "mlp"
        else _TransformerCritic(shape, architecture)
    )


class Twin(nn.Module):
    """Two critics with different initial weights; the lower of their values is used."""

    def __init__(self, shape: Shape, architecture: Architecture) -> None:
        super().__init__()
        self.critics = nn.ModuleList(build_critic(shape, architecture) for _ in range(2))

    @property
    def _both(self) -> Iterable[Any]:
        return self.critics

    def encode(self, domains_BKF: Tensor, globals_BG: Tensor) -> tuple[Tensor, ...]:
        return tuple(critic.encode(domains_BKF, globals_BG) for critic in self._both)

    def values(self, encoded: tuple[Tensor, ...], action_BK: Tensor) -> tuple[Tensor, ...]:
        """Return the values (*draws, B, R) of each critic."""
        return tuple(
            critic.value(part, action_BK) for critic, part in zip(self._both, encoded, strict=True)
        )

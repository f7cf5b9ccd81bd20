"""Networks that see a whole run: a Transformer over the grid of timesteps × domains.

It works for any number of timesteps and domains. Each block has three parts. First, the domains of
one timestep attend to each other, without positions, so that permuting the domains permutes the
output. Then each domain attends to its own past. Last comes a feed-forward network.

Attention over time has the bias −slope·distance (ALiBi, Press et al. 2022, arXiv:2108.12409). It
works in runs that are longer than the training runs; rotary and learned positions do not. Attention
spans `window` timesteps, which limits memory and compute. The fraction of the run that is over is a
feature, not a position.

The agent of Data Mixing Agent (arXiv:2507.15640) is a Transformer of about 2.1M parameters that is
tied to 52 domains. Its layout is not published. Our preset `full` has about 1M parameters in the
actor and as many in the critic; `small` is for CPUs.

    T timesteps, K domains, F features per domain, G global features, H hidden width
    forward   (B, T, K, F), (B, T, G) → (B, T, K, H)    all timesteps at once, to learn
    step      (K, F), (G,) and a `Memory` → (K, H)      one timestep, to decide
    unroll    (B, K, F), (B, G) and a `Past` → (B, K, H)    one timestep, differentiable
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from cuvee.agents.actor_critic import bounded
from cuvee.agents.networks import near_zero
from cuvee.agents.simplex import LogisticNormal
from cuvee.core.errors import PolicyError

STD_RANGE = (0.02, 1.5)
_CHANNELS = 3


@dataclass(frozen=True)
class HistoryArchitecture:
    """Size of a `HistoryNet` and of the critic.

    `hidden` is the width of a token. `expansion` is the width of the feed-forward network relative
    to it. `action` is the width of the critic's layers that see the mixture. `window` is the number
    of timesteps that attention over time spans.
    """

    hidden: int = 32
    layers: int = 2
    heads: int = 2
    expansion: int = 2
    action: int = 16
    window: int = 256

    def __post_init__(self) -> None:
        numbers = (self.hidden, self.layers, self.heads, self.expansion, self.action, self.window)
        if min(numbers) < 1 or self.hidden % self.heads:
            raise PolicyError(
                f"hidden {self.hidden}, layers {self.layers}, heads {self.heads}, expansion "
                f"{self.expansion}, action {self.action} and window {self.window} must be "
                "positive, and the heads must divide the hidden width"
            )


PRESETS = {
    "small": HistoryArchitecture(),
    "full": HistoryArchitecture(hidden=128, layers=4, heads=4, expansion=4, action=64),
}


class Memory:
    """Keys and values of past timesteps, for each block. `HistoryNet.step` changes it in place.

    Each buffer is (2, K, heads, capacity, D) and holds the timesteps up to `end`. When a buffer is
    full, timesteps outside the window are dropped. If there are none, its capacity is doubled. So
    it is never much larger than the window and is rarely copied.
    """

    def __init__(self, architecture: HistoryArchitecture, domains: int, like: Tensor) -> None:
        self.domains = domains
        self.end = 0
        self._window = architecture.window
        shape = (
            2,
            domains,
            architecture.heads,
            min(64, 2 * self._window),
            architecture.hidden // architecture.heads,
        )
        self.buffers = [like.new_empty(shape) for _ in range(architecture.layers)]

    @property
    def start(self) -> int:
        """Index of the first timestep to which the next one, at index `end`, may attend."""
        return max(0, self.end + 1 - self._window)

    def make_room(self) -> None:
        """Make sure that the buffers have room for one more timestep."""
        if self.end < self.buffers[0].shape[-2]:
            return
        kept = [buffer[..., self.start : self.end, :] for buffer in self.buffers]
        spare = self.end if self.start == 0 else math.ceil(self._window / 4)
        self.end -= self.start
        self.buffers = [pad(part, (0, 0, 0, spare)) for part in kept]


Past = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (B·K, heads, t, D) of past timesteps, for each block. Gradients flow through
them.
"""


class HistoryNet(nn.Module):
    """The Transformer over timesteps × domains."""

    slopes: Tensor

    def __init__(self, features: int, globals_: int, architecture: HistoryArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embed = nn.Linear(features, architecture.hidden)
        self.embed_globals = nn.Linear(globals_, architecture.hidden, bias=False)
        self.blocks = nn.ModuleList(_Block(architecture) for _ in range(architecture.layers))
        exponents = torch.arange(1, architecture.heads + 1) * (-8.0 / architecture.heads)
        self.register_buffer("slopes", exponents.exp2(), persistent=False)

    def forward(self, domains_BTKF: Tensor, globals_BTG: Tensor) -> Tensor:
        """Return tokens (B, T, K, H). Each depends on its own timestep and earlier ones only."""
        x = self._embedded(domains_BTKF, globals_BTG)
        bias = self._time_bias(x.shape[1]).to(x.dtype)
        for block in self.blocks:
            assert isinstance(block, _Block)
            x = block(x, bias)
        return x

    def step(
        self, memory: Memory | None, domains_KF: Tensor, globals_G: Tensor
    ) -> tuple[Tensor, Memory]:
        """Return the tokens (K, H) of the next timestep, and `memory` extended by it.

        With `memory` None, this is the first timestep.
        """
        x = self._embedded(domains_KF, globals_G)
        if memory is None:
            memory = Memory(self.architecture, len(domains_KF), x)
        assert memory.domains == len(domains_KF), "a memory belongs to one set of domains"
        memory.make_room()
        seen = memory.end + 1 - memory.start
        bias = (self.slopes[:, None] * torch.arange(1 - seen, 1, device=x.device))[
            None, :, None
        ].to(x.dtype)
        for block, buffer in zip(self.blocks, memory.buffers, strict=True):
            assert isinstance(block, _Block)
            x = block.step(x, buffer, slice(memory.start, memory.end + 1), bias)
        memory.end += 1
        return x, memory

    def unroll(
        self, past: Past | None, domains_BKF: Tensor, globals_BG: Tensor
    ) -> tuple[Tensor, Past]:
        """`step` for a batch of runs, differentiable.

        Returns the tokens (B, K, H) of the next timestep, and `past` extended by it. Used to learn
        where the action at one timestep changes the observation at the next. Spans at most `window`
        timesteps.
        """
        x = self._embedded(domains_BKF, globals_BG)
        seen = 1 if past is None else past[0][0].shape[-2] + 1
        assert seen <= self.architecture.window, "unroll spans at most `window` timesteps"
        bias = (self.slopes[:, None] * torch.arange(1 - seen, 1, device=x.device))[
            None, :, None
        ].to(x.dtype)
        now: list[tuple[Tensor, Tensor]] = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            x, kept = block.unroll(x, past[number] if past else None, bias)
            now.append(kept)
        return x, now

    def _embedded(self, domains: Tensor, globals_: Tensor) -> Tensor:
        embedded: Tensor = self.embed(domains) + self.embed_globals(globals_)[..., None, :]
        return embedded

    def _time_bias(self, timesteps: int) -> Tensor:
        """Return the attention bias (1, heads, T, T).

        It is −slope·distance for past timesteps within the window, and −∞ elsewhere.
        """
        time_T = torch.arange(timesteps, device=self.slopes.device)
        distance_TT = time_T[:, None] - time_T
        hidden = (distance_TT < 0) | (distance_TT >= self.architecture.window)
        bias = -self.slopes[:, None, None] * distance_TT
        return bias.masked_fill(hidden, -math.inf)[None]


class _Block(nn.Module):
    """A pre-norm block: attention over domains, attention over time, feed-forward."""

    def __init__(self, architecture: HistoryArchitecture) -> None:
        super().__init__()
        width = architecture.hidden
        inner = width * architecture.expansion
        self.heads = architecture.heads
        self.norm_domains, self.norm_time, self.norm_forward = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.qkv_domains = nn.Linear(width, 3 * width)
        self.out_domains = nn.Linear(width, width)
        self.qkv_time = nn.Linear(width, 3 * width)
        self.out_time = nn.Linear(width, width)
        self.forward_in = nn.Linear(width, inner)
        self.forward_out = nn.Linear(inner, width)

    def forward(self, x_BTKH: Tensor, bias: Tensor) -> Tensor:
        B, T, K, H = x_BTKH.shape
        x = self._over_domains(x_BTKH.reshape(B * T, K, H))
        # One transposition here and one back is the cheapest layout.
        x = x.view(B, T, K, H).transpose(1, 2).reshape(B * K, T, H)
        qkv = self.qkv_time(self.norm_time(x))
        x = self._feed(x + self.out_time(self._attended(qkv, bias)))
        return x.view(B, K, T, H).transpose(1, 2)

    def step(self, x_KH: Tensor, buffer: Tensor, seen: slice, bias: Tensor) -> Tensor:
        """Return the next x (K, H). Writes keys and values to the last place of `seen`."""
        x = self._over_domains(x_KH[None])[0]
        q, k, v = self.qkv_time(self.norm_time(x)).view(len(x), 3, self.heads, -1).unbind(1)
        buffer[0, :, :, seen.stop - 1] = k
        buffer[1, :, :, seen.stop - 1] = v
        keys, values = buffer[..., seen, :]
        attended = scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=bias)
        return self._feed(x + self.out_time(attended.flatten(1)))

    def unroll(
        self, x_BKH: Tensor, past: tuple[Tensor, Tensor] | None, bias: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the next x (B, K, H), and `past` extended by one timestep."""
        x = self._over_domains(x_BKH)
        B, K, H = x.shape
        q, k, v = (
            self.qkv_time(self.norm_time(x))
            .view(B * K, 3, self.heads, -1, 1)
            .transpose(-1, -2)
            .unbind(1)
        )
        keys, values = (
            (k, v) if past is None else (torch.cat([past[0], k], -2), torch.cat([past[1], v], -2))
        )
        attended = scaled_dot_product_attention(q, keys, values, attn_mask=bias)
        return self._feed(x + self.out_time(attended.reshape(B, K, H))), (keys, values)

    def _over_domains(self, x_NKH: Tensor) -> Tensor:
        qkv = self.qkv_domains(self.norm_domains(x_NKH))
        result: Tensor = x_NKH + self.out_domains(self._attended(qkv))
        return result

    def _attended(self, qkv_NLD: Tensor, bias: Tensor | None = None) -> Tensor:
        """Self-attention of N sequences of length L. `bias` is added to the scores."""
        parts = qkv_NLD.view(*qkv_NLD.shape[:2], 3, self.heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

    def _feed(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.forward_out(gelu(self.forward_in(self.norm_forward(x))))
        return result


class HistoryActor(nn.Module):
    """An actor that returns a mixture for each timestep, as logits relative to uniform.

        logits = ref + g (last − ref) + 4 tanh(δ / 4),    g in (0, 1)

    ref and last are ln(Kα) of a reference mixture and of the current mixture. The encoder gives
    half of each, clipped to ±3, as features 0 and 1. The network outputs g, how much of the current
    mixture each domain keeps, and δ, a correction.

    Both outputs start near zero. An untrained actor therefore moves half of the way, in log
    weights, from the current mixture to the reference, at any K, and a domain with weight 0 gets
    weight again. With the current mixture alone as base, errors would accumulate and a domain at
    weight 0 would stay there. With the reference alone, the network would have to learn every
    smooth path from scratch. The bounds, ±10 in total, limit how far a wrong critic can move the
    logits; they do not distort the reference.
    """

    def __init__(
        self, features: int, globals_: int, architecture: HistoryArchitecture, std: float = 0.3
    ) -> None:
        super().__init__()
        self.std = std
        self.net = HistoryNet(features, globals_, architecture)
        self.norm = nn.LayerNorm(architecture.hidden)
        self.head = near_zero(nn.Linear(architecture.hidden, 3))

    def forward(self, domains_BTKF: Tensor, globals_BTG: Tensor) -> Tensor:
        """Return the logits (B, T, K), within ±10."""
        return _blended(domains_BTKF, self.head(self.norm(self.net(domains_BTKF, globals_BTG))))

    def policy(self, domains_BTKF: Tensor, globals_BTG: Tensor) -> LogisticNormal:
        """Return the distribution over mixtures at every timestep.

        All domains have the same deviation, which starts at `std`.
        """
        out = self.head(self.norm(self.net(domains_BTKF, globals_BTG)))
        logits_BTK = _blended(domains_BTKF, out)
        std_BT1 = (self.std * out[..., 2].mean(-1, keepdim=True).exp()).clamp(*STD_RANGE)
        return LogisticNormal(logits_BTK, std_BT1.expand_as(logits_BTK))

    def step(
        self, memory: Memory | None, domains_KF: Tensor, globals_G: Tensor
    ) -> tuple[Tensor, Memory]:
        """Return the logits (K,) of the next timestep, and `memory` extended by it."""
        tokens_KH, memory = self.net.step(memory, domains_KF, globals_G)
        return _blended(domains_KF, self.head(self.norm(tokens_KH))), memory

    def unroll(
        self, past: Past | None, domains_BKF: Tensor, globals_BG: Tensor
    ) -> tuple[Tensor, Past]:
        """Return the logits (B, K) of the next timestep, and `past` extended by it.

        See `HistoryNet.unroll`.
        """
        tokens_BKH, past = self.net.unroll(past, domains_BKF, globals_BG)
        return _blended(domains_BKF, self.head(self.norm(tokens_BKH))), past


def _blended(domains: Tensor, out: Tensor) -> Tensor:
    reference = 2 * domains[..., 0]
    last = 2 * domains[..., 1]
    return reference + out[..., 0].sigmoid() * (last - reference) + bounded(out[..., 1], 4.0)


class HistoryCritic(nn.Module):
    """Two critics that share the network that reads the run.

    Only the small part that sees the mixture differs between them:

        h_k = gelu(W token_k + V channels(α_k)),    Q = MLP(mean_k h_k, Σ_k α_k h_k, mean_k token_k)

    Neither the mean nor the weighted sum grows with K. Two separate networks would cost half as
    much again. min(Q₁, Q₂) corrects values that are too high for some mixture of a state, and these
    errors arise in the part that differs.
    """

    def __init__(self, features: int, globals_: int, architecture: HistoryArchitecture) -> None:
        super().__init__()
        width = architecture.hidden
        both = 2 * architecture.action  # the two critics side by side
        self.net = HistoryNet(features, globals_, architecture)
        self.norm = nn.LayerNorm(width)
        self.of_token = nn.Linear(width, both)
        self.of_weight = nn.Linear(_CHANNELS, both, bias=False)
        self.of_state = nn.Linear(width, both)
        self.of_pooled = nn.ModuleList(
            nn.Linear(both, architecture.action, bias=False) for _ in range(2)
        )
        self.heads = nn.ModuleList(near_zero(nn.Linear(architecture.action, 1)) for _ in range(2))

    def encode(self, domains_BTKF: Tensor, globals_BTG: Tensor) -> Tensor:
        """Return tokens (B, T, K, H), the input of `values`."""
        tokens: Tensor = self.norm(self.net(domains_BTKF, globals_BTG))
        return tokens

    def step(
        self, memory: Memory | None, domains_KF: Tensor, globals_G: Tensor
    ) -> tuple[Tensor, Memory]:
        """Return the tokens (K, H) of the next timestep, and `memory` extended by it."""
        tokens_KH, memory = self.net.step(memory, domains_KF, globals_G)
        return self.norm(tokens_KH), memory

    def values(self, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (*draws, …) of both critics.

        `actions` are mixtures (*draws, …, K) at the timesteps with `tokens` (…, K, H).
        """
        even = torch.full_like(tokens[..., 0], 1 / tokens.shape[-2])
        seen = gelu(self.of_token(tokens) + self.of_weight(action_channels(actions)))
        # (*draws, …, 2, 2·action)
        pooled = torch.stack([even.expand_as(actions), actions], -2) @ seen
        state = self.of_state(even[..., None, :] @ tokens)[..., 0, :]
        first, second = (
            head(gelu(part(by_twin.flatten(-2)) + of_state))[..., 0]
            for head, part, by_twin, of_state in zip(
                self.heads, self.of_pooled, pooled.chunk(2, -1), state.chunk(2, -1), strict=True
            )
        )
        return first, second


def action_channels(actions: Tensor) -> Tensor:
    """Return three features of each weight, (…, K) → (…, K, 3).

    They are ln(1 + Kα) − ln 2 and Kα / (1 + Kα) − ½, both 0 at uniform, and α itself.
    `actor_critic.action_channels` uses Kα − 1 instead. That is 25 if one of 52 domains has half of
    the batch, which is an ordinary mixture here. These features are bounded, and together they
    resolve both small and large weights.
    """
    relative = actions * actions.shape[-1]
    return torch.stack(
        [relative.log1p() - math.log(2), relative / (1 + relative) - 0.5, actions], -1
    )

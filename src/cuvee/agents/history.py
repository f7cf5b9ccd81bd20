"""Networks that read a whole run: a Transformer over the grid of time × domains, for any number of either.

Each block lets the domains of one moment attend to each other (no positions, so permuting domains permutes the output), then
lets each domain attend to its own past, then applies a feed-forward network. Attention over time is biased by −slope·distance
(ALiBi, Press et al. 2022, arXiv:2108.12409), which holds up in runs longer than those learned from, as rotary and learned
positions do not; what share of the run is over is a feature. It looks back over `window` moments, which bounds memory and time.

The agent of Data Mixing Agent (arXiv:2507.15640) is a Transformer of about 2.1M parameters tied to 52 domains; its layout is
not published. Ours is the preset `full`; `small` is for CPUs.

    moments        T, time; K, domains; F features a domain; G features of the run; H hidden
    forward        (B, T, K, F), (B, T, G) → (B, T, K, H), every moment at once, for learning
    step           (K, F), (G,) and the memory of the moments before → (K, H), for deciding
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
    """`hidden` is the width of a token, `expansion` that of the feed-forward network relative to it, `action` the width in which
    a critic looks at mixtures, `window` the number of moments that attention over time spans."""

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
                f"hidden {self.hidden}, layers {self.layers}, heads {self.heads}, expansion {self.expansion}, action "
                f"{self.action} and window {self.window} must be positive, and the heads must divide the hidden width"
            )


PRESETS = {
    "small": HistoryArchitecture(),
    "full": HistoryArchitecture(hidden=128, layers=4, heads=4, expansion=4, action=64),
}


class Memory:
    """Keys and values of the moments seen, for each block. `HistoryNet.step` writes to it in place: use only the newest.

    Each buffer is (2, K, heads, capacity, D) and holds moments up to `end`. A full one is doubled while moments still fall into
    the window, and else emptied of those that do not, so that it is never much larger than the window and seldom copied.
    """

    def __init__(self, architecture: HistoryArchitecture, domains: int, like: Tensor) -> None:
        self.domains, self._window, self.end = domains, architecture.window, 0
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
        """Of the moments that the next one may attend to, the first, if the next one is to be at `end`."""
        return max(0, self.end + 1 - self._window)

    def make_room(self) -> None:
        if self.end < self.buffers[0].shape[-2]:
            return
        kept = [buffer[..., self.start : self.end, :] for buffer in self.buffers]
        spare = self.end if self.start == 0 else math.ceil(self._window / 4)
        self.end -= self.start
        self.buffers = [pad(part, (0, 0, 0, spare)) for part in kept]


Past = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (B·K, heads, t, D) of the moments before, for each block, that gradients may flow through."""


class HistoryNet(nn.Module):
    """The grid Transformer."""

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
        """Tokens (B, T, K, H), each a function of its own moment and of those before."""
        x = self._embedded(domains_BTKF, globals_BTG)
        bias = self._time_bias(x.shape[1]).to(x.dtype)
        for block in self.blocks:
            assert isinstance(block, _Block)
            x = block(x, bias)
        return x

    def step(
        self, memory: Memory | None, domains_KF: Tensor, globals_G: Tensor
    ) -> tuple[Tensor, Memory]:
        """Tokens (K, H) of the moment after those in `memory`, and the memory that now holds it too."""
        x = self._embedded(domains_KF, globals_G)
        if memory is None:
            memory = Memory(self.architecture, len(domains_KF), x)
        assert memory.domains == len(domains_KF), "a memory is of one set of domains"
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
        """`step` for a batch of runs, differentiable: tokens (B, K, H) of the moment after `past`, and what is then past.

        For learning where what is done at one moment decides what is seen at the next. Spans `window` moments at most.
        """
        x = self._embedded(domains_BKF, globals_BG)
        seen = 1 if past is None else past[0][0].shape[-2] + 1
        assert seen <= self.architecture.window, "unrolling keeps all that is past"
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
        """(1, heads, T, T): −slope·distance to the past within the window, −∞ to all else."""
        time_T = torch.arange(timesteps, device=self.slopes.device)
        distance_TT = time_T[:, None] - time_T
        hidden = (distance_TT < 0) | (distance_TT >= self.architecture.window)
        bias = -self.slopes[:, None, None] * distance_TT
        return bias.masked_fill(hidden, -math.inf)[None]


class _Block(nn.Module):
    """Pre-norm: over domains, over time, feed-forward."""

    def __init__(self, architecture: HistoryArchitecture) -> None:
        super().__init__()
        width, inner = architecture.hidden, architecture.hidden * architecture.expansion
        self.heads = architecture.heads
        self.norm_domains, self.norm_time, self.norm_forward = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.qkv_domains, self.out_domains = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.qkv_time, self.out_time = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_in, self.forward_out = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x_BTKH: Tensor, bias: Tensor) -> Tensor:
        B, T, K, H = x_BTKH.shape
        x = self._over_domains(x_BTKH.reshape(B * T, K, H))
        x = (
            x.view(B, T, K, H).transpose(1, 2).reshape(B * K, T, H)
        )  # once here and once back costs least
        qkv = self.qkv_time(self.norm_time(x))
        x = self._feed(x + self.out_time(self._attended(qkv, bias)))
        return x.view(B, K, T, H).transpose(1, 2)

    def step(self, x_KH: Tensor, buffer: Tensor, seen: slice, bias: Tensor) -> Tensor:
        """Writes this moment's keys and values to the last place of `seen` in `buffer`."""
        x = self._over_domains(x_KH[None])[0]
        q, k, v = self.qkv_time(self.norm_time(x)).view(len(x), 3, self.heads, -1).unbind(1)
        buffer[0, :, :, seen.stop - 1], buffer[1, :, :, seen.stop - 1] = k, v
        keys, values = buffer[..., seen, :]
        attended = scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=bias)
        return self._feed(x + self.out_time(attended.flatten(1)))

    def unroll(
        self, x_BKH: Tensor, past: tuple[Tensor, Tensor] | None, bias: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
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
        """N sequences of length L, each attending to itself, with `bias` added to the scores."""
        parts = qkv_NLD.view(*qkv_NLD.shape[:2], 3, self.heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

    def _feed(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.forward_out(gelu(self.forward_in(self.norm_forward(x))))
        return result


class HistoryActor(nn.Module):
    """Every moment → the mixture to play next, as logits relative to uniform.

        logits = ref + g (last − ref) + 4 tanh(δ / 4),    g in (0, 1)

    ref and last are ln(Kα) of a reference mixture and of the mixture in force; the encoder gives half of each, within ±3, as
    features 0 and 1. The network says how much of the mixture in force each domain keeps (g), and where it leans (δ). Both
    heads start near zero, so that an untrained actor goes half of the way, on the logarithmic scale, from whatever is in force
    to the reference, at any K, and a domain with no weight rises. A residual on the mixture in force alone would add up its
    errors and starve for good what has once been starved; one on the reference alone would have to learn every smooth path anew.
    The bounds, ±10 in all, are on what a wrong critic can drive away, and leave the reference as it is.
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
        """Logits (B, T, K) within ±10."""
        return _blended(domains_BTKF, self.head(self.norm(self.net(domains_BTKF, globals_BTG))))

    def policy(self, domains_BTKF: Tensor, globals_BTG: Tensor) -> LogisticNormal:
        """The distribution over mixtures at every moment. Domains share one deviation, `std` at first."""
        out = self.head(self.norm(self.net(domains_BTKF, globals_BTG)))
        logits_BTK = _blended(domains_BTKF, out)
        std_BT1 = (self.std * out[..., 2].mean(-1, keepdim=True).exp()).clamp(*STD_RANGE)
        return LogisticNormal(logits_BTK, std_BT1.expand_as(logits_BTK))

    def step(
        self, memory: Memory | None, domains_KF: Tensor, globals_G: Tensor
    ) -> tuple[Tensor, Memory]:
        """Logits (K,) of the moment after those in `memory`, and the memory that holds it too."""
        tokens_KH, memory = self.net.step(memory, domains_KF, globals_G)
        return _blended(domains_KF, self.head(self.norm(tokens_KH))), memory

    def unroll(
        self, past: Past | None, domains_BKF: Tensor, globals_BG: Tensor
    ) -> tuple[Tensor, Past]:
        """Logits (B, K) of the moment after `past`, and what is then past; see `HistoryNet.unroll`."""
        tokens_BKH, past = self.net.unroll(past, domains_BKF, globals_BG)
        return _blended(domains_BKF, self.head(self.norm(tokens_BKH))), past


def _blended(domains: Tensor, out: Tensor) -> Tensor:
    reference, last = 2 * domains[..., 0], 2 * domains[..., 1]
    return reference + out[..., 0].sigmoid() * (last - reference) + bounded(out[..., 1], 4.0)


class HistoryCritic(nn.Module):
    """Twin critics that share what reads the run and differ in what looks at a mixture, which is light.

        h_k = gelu(W token_k + V channels(α_k)),    Q = MLP(mean_k h_k, Σ_k α_k h_k, mean_k token_k)

    Neither sum grows with K. To have twins with nothing in common would cost half as much again; what min(Q₁, Q₂) is
    against, values that are too high for some mixture in a state, arises in what differs.
    """

    def __init__(self, features: int, globals_: int, architecture: HistoryArchitecture) -> None:
        super().__init__()
        width, both = architecture.hidden, 2 * architecture.action
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
        """Tokens (B, T, K, H), which hold all that `values` needs to know of a moment."""
        tokens: Tensor = self.norm(self.net(domains_BTKF, globals_BTG))
        return tokens

    def step(
        self, memory: Memory | None, domains_KF: Tensor, globals_G: Tensor
    ) -> tuple[Tensor, Memory]:
        """Tokens (K, H) of the moment after those in `memory`, and the memory that holds it too."""
        tokens_KH, memory = self.net.step(memory, domains_KF, globals_G)
        return self.norm(tokens_KH), memory

    def values(self, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Both critics' values (*draws, …) of mixtures `actions` (*draws, …, K) at the moments of `tokens` (…, K, H)."""
        even = torch.full_like(tokens[..., 0], 1 / tokens.shape[-2])
        seen = gelu(self.of_token(tokens) + self.of_weight(action_channels(actions)))
        pooled = (
            torch.stack([even.expand_as(actions), actions], -2) @ seen
        )  # (*draws, …, 2, 2·action)
        state = self.of_state(even[..., None, :] @ tokens)[..., 0, :]
        first, second = (
            head(gelu(part(by_twin.flatten(-2)) + of_state))[..., 0]
            for head, part, by_twin, of_state in zip(
                self.heads, self.of_pooled, pooled.chunk(2, -1), state.chunk(2, -1), strict=True
            )
        )
        return first, second


def action_channels(actions: Tensor) -> Tensor:
    """(…, K) → (…, K, 3): ln(1 + Kα) − ln 2 and Kα / (1 + Kα) − ½, both 0 at uniform, and α itself.

    Kα − 1, which `actor_critic.action_channels` has in the first place, is 25 where one domain of 52 has half of the
    batch, an ordinary mixture here; these are bounded and between them resolve small weights and large ones.
    """
    relative = actions * actions.shape[-1]
    return torch.stack(
        [relative.log1p() - math.log(2), relative / (1 + relative) - 0.5, actions], -1
    )

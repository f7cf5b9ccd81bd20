"""The grid Transformer: any number of domains and timesteps, equivariant, causal and cached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cuvee.agents.history import HistoryActor, HistoryArchitecture, HistoryCritic, Memory
from cuvee.agents.learning import seeded

F, G = 4, 3
ARCHITECTURE = HistoryArchitecture(hidden=16, layers=2, heads=2, action=8)
NARROW = HistoryArchitecture(hidden=8, layers=2, heads=2, action=4, window=5)
CLOSE: Any = {"atol": 1e-5, "rtol": 1e-4}


def spoken(net: nn.Module) -> Any:
    """Heads that start near zero would hide every difference: all weights of order 1/√width."""
    for parameter in net.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return net.requires_grad_(False)


ACTOR = seeded(0, lambda: spoken(HistoryActor(F, G, ARCHITECTURE)))
CRITIC = seeded(1, lambda: spoken(HistoryCritic(F, G, ARCHITECTURE)))
NARROW_ACTOR = seeded(2, lambda: spoken(HistoryActor(F, G, NARROW)))


def grid(seed: int, B: int, T: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of domains and run, and mixtures."""
    generator = torch.Generator().manual_seed(seed)
    domains, globals_ = (
        torch.randn(shape, generator=generator) for shape in ((B, T, K, F), (B, T, G))
    )
    return domains, globals_, torch.randn(B, T, K, generator=generator).softmax(-1)


def moments(most: int = 12) -> Any:
    return st.integers(1, most)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), moments(), st.integers(1, 20))
def test_permuting_domains_permutes_the_answers(seed: int, T: int, K: int) -> None:
    domains, globals_, actions = grid(seed, 2, T, K)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    turned = domains[:, :, order]
    torch.testing.assert_close(
        ACTOR(turned, globals_), ACTOR(domains, globals_)[..., order], **CLOSE
    )
    tokens, turned_tokens = CRITIC.encode(domains, globals_), CRITIC.encode(turned, globals_)
    torch.testing.assert_close(turned_tokens, tokens[:, :, order], **CLOSE)
    for mine, theirs in zip(
        CRITIC.values(tokens, actions),
        CRITIC.values(turned_tokens, actions[..., order]),
        strict=True,
    ):
        torch.testing.assert_close(theirs, mine, **CLOSE)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 6), st.data())
def test_the_future_changes_nothing(seed: int, T: int, K: int, data: st.DataObject) -> None:
    now = data.draw(st.integers(1, T - 1))
    domains, globals_, _ = grid(seed, 2, T, K)
    other, other_globals, _ = grid(seed + 1, 2, T, K)
    other[:, :now], other_globals[:, :now] = domains[:, :now], globals_[:, :now]
    assert torch.equal(ACTOR(domains, globals_)[:, :now], ACTOR(other, other_globals)[:, :now])
    assert torch.equal(
        CRITIC.encode(domains, globals_)[:, :now], CRITIC.encode(other, other_globals)[:, :now]
    )
    assert not torch.equal(ACTOR(domains, globals_)[:, now:], ACTOR(other, other_globals)[:, now:])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), moments(), st.integers(1, 6), st.integers(1, 3))
def test_timesteps_after_the_end_change_nothing(seed: int, T: int, K: int, later: int) -> None:
    """Shorter runs of a batch are padded at their ends."""
    domains, globals_, actions = grid(seed, 2, T + later, K)
    torch.testing.assert_close(
        ACTOR(domains, globals_)[:, :T], ACTOR(domains[:, :T], globals_[:, :T]), **CLOSE
    )
    long = CRITIC.values(CRITIC.encode(domains, globals_)[:, :T], actions[:, :T])
    short = CRITIC.values(CRITIC.encode(domains[:, :T], globals_[:, :T]), actions[:, :T])
    for mine, theirs in zip(long, short, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("actor", [ACTOR, NARROW_ACTOR])
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 6))
def test_one_timestep_at_a_time_is_the_same(actor: Any, seed: int, T: int, K: int) -> None:
    domains, globals_, _ = grid(seed, 1, T, K)
    memory: Memory | None = None
    steps = []
    for t in range(T):
        logits, memory = actor.step(memory, domains[0, t], globals_[0, t])
        steps.append(logits)
    torch.testing.assert_close(
        torch.stack(steps), actor(domains, globals_)[0], atol=1e-5, rtol=1e-5
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_logits_are_bounded_whatever_the_network_says(seed: int, K: int) -> None:
    wild = seeded(seed, lambda: HistoryActor(F, G, NARROW)).requires_grad_(False)
    for parameter in wild.parameters():
        parameter.mul_(1e3)
    domains, globals_, _ = grid(seed, 1, 2, K)
    assert float(wild(domains.clamp(-3, 3), globals_).abs().max()) <= 10.0


def test_a_window_forgets_what_lies_before_it() -> None:
    """Two layers of a window of 5 moments reach back 8 moments."""
    domains, globals_, _ = grid(0, 1, 20, 3)
    other = domains.clone()
    other[:, 0] += 1.0
    differs = (NARROW_ACTOR(domains, globals_) - NARROW_ACTOR(other, globals_)).abs().amax(
        (0, 2)
    ) > 1e-7
    assert differs[:9].all()
    assert not differs[9:].any()


def test_memory_outlasts_many_doublings() -> None:
    domains, globals_, _ = grid(3, 1, 300, 2)
    memory: Memory | None = None
    for t in range(300):
        logits, memory = ACTOR.step(memory, domains[0, t], globals_[0, t])
    torch.testing.assert_close(logits, ACTOR(domains, globals_)[0, -1], **CLOSE)

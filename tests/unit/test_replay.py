"""The replay buffer: a ring with exact contents, exact state and its own generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.agents.base import Observation, Transition
from cuvee.agents.replay import ReplayBuffer
from cuvee.core.errors import PolicyError
from cuvee.core.state import load_state, save_state


def transition(i: int, vector: bool = False, ended: str = "") -> Transition:
    observation = Observation(np.full((3, 2), i, np.float32), np.full(1, i, np.float32))
    following = Observation(np.full((3, 2), i + 1, np.float32), np.full(1, i + 1, np.float32))
    reward: Any = np.full(3, float(i)) if vector else float(i)
    return Transition(
        observation,
        np.full(3, 1 / 3),
        reward,
        following,
        ended == "terminated",
        ended == "truncated",
    )


@pytest.mark.parametrize("vector", [False, True])
def test_the_oldest_are_overwritten_first(vector: bool) -> None:
    buffer = ReplayBuffer(4, seed=0)
    for i in range(6):
        buffer.add(transition(i, vector))
        assert len(buffer) == min(i + 1, 4)
    held = buffer.take(np.arange(4))
    assert held.reward_BR[:, 0].tolist() == [4, 5, 2, 3]
    assert held.reward_BR.shape == (4, 3 if vector else 1)
    assert (held.next_domains_BKF - held.domains_BKF == 1).all()
    assert buffer.reward_moments() == pytest.approx((3.5, float(np.std([2, 3, 4, 5]))))


def test_ends_are_kept_apart() -> None:
    buffer = ReplayBuffer(4, seed=0)
    buffer.add(transition(0, ended="truncated"))
    assert not buffer.holds_terminal()
    buffer.add(transition(1, ended="terminated"))
    assert buffer.holds_terminal()
    assert buffer.take(np.arange(2)).terminated_B.tolist() == [0, 1]
    arrays = buffer.state_dict()["arrays"]
    assert arrays["truncated_B"].tolist() == [1, 0]


@pytest.mark.parametrize("added", [0, 3, 5, 9])
def test_saved_at_any_fill_it_resumes_exactly(added: int, tmp_path: Path) -> None:
    buffer = ReplayBuffer(5, seed=7)
    for i in range(added):
        buffer.add(transition(i))
        buffer.sample(2)
    save_state(tmp_path / "buffer", buffer.state_dict())
    restored = ReplayBuffer(5, seed=0)
    restored.load_state_dict(load_state(tmp_path / "buffer"))
    for i in range(added, added + 8):
        for each in (buffer, restored):
            each.add(transition(i))
        for ours, theirs in zip(buffer.sample(4), restored.sample(4), strict=True):
            assert (ours == theirs).all()


def test_a_sample_is_a_copy() -> None:
    buffer = ReplayBuffer(2, seed=0)
    buffer.add(transition(1))
    buffer.sample(1).reward_BR.fill_(9.0)
    assert buffer.take(np.zeros(1, np.int64)).reward_BR.item() == 1.0


def test_shapes_of_the_first_transition_bind() -> None:
    buffer = ReplayBuffer(3, seed=0)
    buffer.add(transition(0))
    with pytest.raises(PolicyError, match="reward"):
        buffer.add(transition(1, vector=True))
    assert buffer.added == 1


def test_damaged_state_is_refused() -> None:
    buffer = ReplayBuffer(3, seed=0)
    buffer.add(transition(0))
    state: Any = buffer.state_dict()
    with pytest.raises(PolicyError, match="capacity"):
        ReplayBuffer(4, seed=0).load_state_dict(state)
    with pytest.raises(PolicyError, match="capacity"):
        ReplayBuffer(0, seed=0)
    state["arrays"]["reward_BR"][0] = np.nan
    with pytest.raises(PolicyError, match="damaged"):
        ReplayBuffer(3, seed=0).load_state_dict(state)

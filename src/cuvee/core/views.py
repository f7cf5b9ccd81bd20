"""Views of a trajectory, derived when they are needed and never stored: rewards, returns, transitions, windows.

Trajectories hold raw facts, so the same logs serve any reward, any encoding and any horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.signals import Measured
from cuvee.core.trajectory import Trajectory

Reward = Callable[[Trajectory], float | None]
"""The reward of the last interval of a trajectory; None if what it needs was not measured."""

Encoding = Callable[[Trajectory], npt.NDArray[Any]]
"""What an agent sees at the end of a trajectory, as a vector (S,)."""


def prefixes(trajectory: Trajectory) -> Iterator[Trajectory]:
    """The trajectory as it was before each interval and at its end: T + 1 of them, O(T) in total."""
    so_far = Trajectory.start(trajectory.signals[0])
    yield so_far
    for _, mixture, after in trajectory:
        so_far = so_far.append(mixture, after)
        yield so_far


def rewards(trajectory: Trajectory, reward: Reward) -> Measured:
    """(T,) the reward of each interval, asked for in order; absent where it is None."""
    found = [reward(so_far) for so_far in prefixes(trajectory) if len(so_far)]
    return Measured(
        np.array([value or 0.0 for value in found]),
        np.array([value is not None for value in found], bool),
    )


def returns(rewards_T: npt.ArrayLike, discount: float = 1.0, final: float = 0.0) -> FloatArray:
    """(T,) G_t = r_t + γ G_{t+1}, with G_T = `final`, the value of what comes after."""
    rewards_T = np.asarray(rewards_T, dtype=np.float64)
    returns_T, following = np.zeros(len(rewards_T)), final
    for t in reversed(range(len(rewards_T))):
        following = returns_T[t] = rewards_T[t] + discount * following
    return returns_T


@dataclass(frozen=True, eq=False)
class Transitions:
    """(s, a, r, s′) of the intervals whose reward was measured. `ends_N` marks those after which the run was over."""

    states_NS: npt.NDArray[Any]
    actions_NK: FloatArray
    rewards_N: FloatArray
    next_states_NS: npt.NDArray[Any]
    ends_N: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rewards_N)


def transitions(trajectory: Trajectory, encode: Encoding, reward: Reward) -> Transitions:
    """One transition an interval, but for those without a reward. Actions are over the present domains, see `weights_TK`."""
    states = np.stack([encode(so_far) for so_far in prefixes(trajectory)])
    rewarded = rewards(trajectory, reward)
    kept = np.flatnonzero(rewarded.present)
    return Transitions(
        states_NS=states[kept],
        actions_NK=trajectory.weights_TK()[kept],
        rewards_N=rewarded.values[kept],
        next_states_NS=states[kept + 1],
        ends_N=kept + 1 == len(trajectory),
    )


def windows(trajectory: Trajectory, length: int, stride: int = 1) -> Iterator[Trajectory]:
    """Stretches of `length` intervals as trajectories of their own, every `stride` intervals; none if the run is shorter."""
    assert min(length, stride) > 0, "a window has at least one interval"
    for start in range(0, len(trajectory) - length + 1, stride):
        yield Trajectory(
            trajectory.signals[start : start + length + 1],
            trajectory.mixtures[start : start + length],
        )

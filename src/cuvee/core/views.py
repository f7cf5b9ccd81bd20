"""Quantities derived from a trajectory on demand: rewards and returns.

A trajectory stores raw facts, so the same logs serve any reward, encoding and horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.signals import Measured
from cuvee.core.trajectory import Trajectory

Reward = Callable[[Trajectory], float | None]
"""Return the reward of the last interval of a trajectory, or None if an input is not measured."""

Encoding = Callable[[Trajectory], npt.NDArray[Any]]
"""Return the vector (S,) that an agent observes at the end of a trajectory."""


def prefixes(trajectory: Trajectory) -> Iterator[Trajectory]:
    """Yield the T + 1 prefixes of a trajectory, shortest first, in O(T) in total."""
    so_far = Trajectory.start(trajectory.signals[0])
    yield so_far
    for _, mixture, after in trajectory:
        so_far = so_far.append(mixture, after)
        yield so_far


def rewards(trajectory: Trajectory, reward: Reward) -> Measured:
    """Return the (T,) reward of each interval, absent where `reward` returns None.

    `reward` is called once for each interval, in order.
    """
    found = [reward(so_far) for so_far in prefixes(trajectory) if len(so_far)]
    return Measured(
        np.array([value or 0.0 for value in found]),
        np.array([value is not None for value in found], bool),
    )


def returns(rewards_T: npt.ArrayLike, discount: float = 1.0, final: float = 0.0) -> FloatArray:
    """Return the (T,) discounted returns G_t = r_t + γ G_{t+1}, with G_T = `final`."""
    rewards_T = np.asarray(rewards_T, dtype=np.float64)
    returns_T = np.zeros(len(rewards_T))
    following = final
    for t in reversed(range(len(rewards_T))):
        following = returns_T[t] = rewards_T[t] + discount * following
    return returns_T

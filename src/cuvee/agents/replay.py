"""A replay buffer of the latest transitions, with its own random generator.

Saving and loading is exact, so a resumed agent samples the same batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cuvee.agents.base import Transition, check_shape
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import State


class ReplayBatch(NamedTuple):
    """B transitions as float32 tensors.

    `reward_BR` has R = 1 (scalar reward) or R = K (one reward per domain). Only `terminated_B` ends
    a return. Truncated transitions are not marked, because their next observation has a value.
    """

    domains_BKF: Tensor
    globals_BG: Tensor
    action_BK: Tensor
    reward_BR: Tensor
    next_domains_BKF: Tensor
    next_globals_BG: Tensor
    terminated_B: Tensor


_FIELDS = (*ReplayBatch._fields, "truncated_B")


class ReplayBuffer:
    """Holds at most `capacity` transitions. The oldest is overwritten first.

    The first transition determines the shapes.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        if capacity < 1:
            raise PolicyError(f"a replay buffer needs a capacity of at least 1, got {capacity}")
        self.capacity = capacity
        self.added = 0
        self._arrays: dict[str, npt.NDArray[np.float32]] = {}
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, transition: Transition) -> None:
        """Add a transition that `fault_in` accepted.

        Raises `PolicyError` if its shapes differ from those of the first transition.
        """
        observation, action_K, reward, following, terminated, truncated = transition
        values = (
            observation.domains_KF,
            observation.globals_G,
            action_K,
            np.atleast_1d(reward),
            following.domains_KF,
            following.globals_G,
            terminated,
            truncated,
        )
        row = {
            name: np.asarray(value, dtype=np.float32)
            for name, value in zip(_FIELDS, values, strict=True)
        }
        if not self._arrays:
            self._arrays = {
                name: np.zeros((self.capacity, *value.shape), np.float32)
                for name, value in row.items()
            }
        for name, value in row.items():
            check_shape(name, value, self._arrays[name].shape[1:])
        for name, value in row.items():
            self._arrays[name][self.added % self.capacity] = value
        self.added += 1

    def sample(self, size: int) -> ReplayBatch:
        """Draw `size` transitions with replacement. The buffer must not be empty."""
        return self.take(self._rng.integers(len(self), size=size))

    def take(self, index_B: npt.NDArray[np.int64]) -> ReplayBatch:
        """Return the transitions with the given indices."""
        return ReplayBatch(
            *(torch.from_numpy(self._arrays[name][index_B]) for name in ReplayBatch._fields)
        )

    def reward_moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of all stored rewards, over all domains together."""
        reward = self._arrays["reward_BR"][: len(self)].astype(np.float64)
        return float(reward.mean()), float(reward.std())

    def holds_terminal(self) -> bool:
        """Return whether any stored transition is terminal."""
        return bool(self._arrays["terminated_B"][: len(self)].any())

    def state_dict(self) -> State:
        arrays = {name: array[: len(self)].copy() for name, array in self._arrays.items()}
        return {
            "capacity": self.capacity,
            "added": self.added,
            "arrays": arrays,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        if state["capacity"] != self.capacity:
            raise PolicyError(
                f"the saved replay buffer has capacity {state['capacity']}, this one "
                f"{self.capacity}: use the same capacity"
            )
        held = min(state["added"], self.capacity)
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for name, saved in state["arrays"].items():
            _check_saved(name, saved, held)
            arrays[name] = np.zeros((self.capacity, *saved.shape[1:]), np.float32)
            arrays[name][:held] = saved
        self._rng.bit_generator.state = state["rng"]
        self._arrays = arrays
        self.added = state["added"]


def _check_saved(name: str, saved: npt.NDArray[Any], held: int) -> None:
    if (
        name not in _FIELDS
        or len(saved) != held
        or saved.dtype != np.float32
        or not np.isfinite(saved).all()
    ):
        raise PolicyError(
            f"the saved replay buffer is damaged: {name} must have {held} rows of finite "
            "float32 numbers"
        )

"""What an agent sees and does: `Observation`, `Transition`, the `Agent` protocol, and the gate in front of all its state."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import Metrics, State

LARGEST = 1e6
"""No observation or reward is larger than this in size; what is, such as 1e30, is a fault upstream and is refused."""
_SIMPLEX_TOLERANCE = 1e-4


class Observation(NamedTuple):
    """What is known when a mixture is chosen: F features of each of K domains and G of the whole run, best of order 1."""

    domains_KF: npt.NDArray[Any]
    globals_G: npt.NDArray[Any]


class Transition(NamedTuple):
    """One interval. `reward` is a number, or (K,) one entry a domain.

    `terminated`: nothing follows, a diverged run (the value of what comes next is 0). `truncated`: the record stops here
    but the run could go on, as at the end of a token budget (the value of the next observation counts).
    """

    observation: Observation
    action_K: npt.NDArray[Any]
    reward: float | npt.NDArray[Any]
    next_observation: Observation
    terminated: bool = False
    truncated: bool = False


class Agent(Protocol):
    """Chooses mixtures and learns to choose better. Deterministic given its state, which holds its random generators."""

    def act(self, observation: Observation, explore: bool = False) -> FloatArray:
        """Weights (K,) in float64 that sum to 1. Raises `PolicyError` on an observation that is not finite."""
        ...

    def observe(self, transition: Transition) -> str | None:
        """Remembers a transition; or refuses it, changes nothing, and returns the reason."""
        ...

    def update(self) -> Metrics:
        """One round of learning from what is remembered; {} while that is too little."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def fault_of(name: str, values: npt.ArrayLike) -> str | None:
    """Names the first entry that is not finite or larger than `LARGEST`, or returns None."""
    array = np.asarray(values, dtype=np.float64)
    good = np.abs(array) <= LARGEST  # False for NaN
    if good.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~good)[0])
    return f"{name}{list(index) if index else ''} is {array[index]:.6g}: it must be finite and at most {LARGEST:g} in size"


def fault_in(transition: Transition) -> str | None:
    """Why an agent must not learn from `transition`, or None: the one gate that everything remembered has passed."""
    observation, action_K, reward, following, terminated, truncated = transition
    fault = (
        fault_of("observation.domains", observation.domains_KF)
        or fault_of("observation.globals", observation.globals_G)
        or fault_of("action", action_K)
        or fault_of("reward", reward)
        or fault_of("next_observation.domains", following.domains_KF)
        or fault_of("next_observation.globals", following.globals_G)
    )
    if fault:
        return fault
    action = np.asarray(action_K, dtype=np.float64)
    if action.min() < -_SIMPLEX_TOLERANCE or abs(action.sum() - 1) > _SIMPLEX_TOLERANCE:
        return f"action sums to {action.sum():.6g} with a least weight of {action.min():.6g}: it must be a mixture"
    if terminated and truncated:
        return "a transition cannot be both terminated and truncated"
    return None


def check_observation(observation: Observation) -> None:
    """Raises `PolicyError` naming the first entry that is not finite or too large."""
    fault = fault_of("observation.domains", observation.domains_KF) or fault_of(
        "observation.globals", observation.globals_G
    )
    if fault:
        raise PolicyError(f"{fault}; the agent was left as it was")


def check_shape(name: str, array: npt.NDArray[Any], expected: tuple[int, ...]) -> None:
    """Raises `PolicyError` unless `array` has the shape that the agent was built or first filled with."""
    if array.shape != expected:
        raise PolicyError(
            f"{name} has shape {array.shape}, this agent learns from {expected}: build another agent for it"
        )

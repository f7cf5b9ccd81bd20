"""The interface of agents: `Observation`, `Transition`, `Agent`, and their input checks."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import Metrics, State

LARGEST = 1e6
"""Largest absolute value accepted in an observation or a reward.

A larger value, such as 1e30, comes from a fault elsewhere and is refused.
"""
_SIMPLEX_TOLERANCE = 1e-4


class Observation(NamedTuple):
    """What an agent sees when it chooses a mixture.

    `domains_KF` has F features for each of K domains. `globals_G` has G features of the whole run.
    Features should be of order 1.
    """

    domains_KF: npt.NDArray[Any]
    globals_G: npt.NDArray[Any]


class Transition(NamedTuple):
    """One interval: observation, mixture played, reward, next observation.

    `reward` is a number, or an array (K,) with one reward per domain. `terminated`: the run ended
    for good, for example by divergence. The value of the next observation is then 0. `truncated`:
    the record ends here but the run could continue, as at the end of a token budget. The value of
    the next observation then counts.
    """

    observation: Observation
    action_K: npt.NDArray[Any]
    reward: float | npt.NDArray[Any]
    next_observation: Observation
    terminated: bool = False
    truncated: bool = False


class Agent(Protocol):
    """Chooses mixtures and learns from their results. Register it with `register_agent`.

    It is built as `Kind(shape, settings, seed=0)`: `shape` is a `networks.Shape`, and `settings` an
    instance of the class attribute `settings_type`, a dataclass.

    An agent is deterministic given its state. The state includes its random generators. If the
    state has an entry "buffer", a new agent for another number of domains takes over all entries
    but this one.
    """

    def act(self, observation: Observation, explore: bool = False) -> FloatArray:
        """Return weights (K,), float64, that sum to 1.

        Raises `PolicyError` if the observation has a non-finite or too large entry.
        """
        ...

    def observe(self, transition: Transition) -> str | None:
        """Store a transition. If it is refused, change nothing and return the reason."""
        ...

    def update(self) -> Metrics:
        """Do one round of learning and return its metrics.

        Returns {} while too few transitions are stored.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def fault_of(name: str, values: npt.ArrayLike) -> str | None:
    """Describe the first entry that is not finite or larger than `LARGEST`, or return None."""
    array = np.asarray(values, dtype=np.float64)
    good = np.abs(array) <= LARGEST  # False for NaN
    if good.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~good)[0])
    place = f"{name}{list(index) if index else ''}"
    return f"{place} is {array[index]:.6g}: it must be finite and at most {LARGEST:g} in size"


def fault_in(transition: Transition) -> str | None:
    """Return why an agent must not learn from `transition`, or None if it may.

    Every transition passes this check before it is stored.
    """
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
        return (
            f"action sums to {action.sum():.6g} and its smallest weight is {action.min():.6g}: "
            "it must be a mixture"
        )
    if terminated and truncated:
        return "a transition cannot be both terminated and truncated"
    return None


def check_observation(observation: Observation) -> None:
    """Raise `PolicyError` that names the first non-finite or too large entry, if there is one."""
    fault = fault_of("observation.domains", observation.domains_KF) or fault_of(
        "observation.globals", observation.globals_G
    )
    if fault:
        raise PolicyError(f"{fault}; the agent is unchanged")


def check_shape(name: str, array: npt.NDArray[Any], expected: tuple[int, ...]) -> None:
    """Raise `PolicyError` if `array` does not have the shape `expected`."""
    if array.shape != expected:
        raise PolicyError(
            f"{name} has shape {array.shape}, this agent learns from {expected}: "
            "build another agent for it"
        )

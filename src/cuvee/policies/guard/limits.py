"""`Limits`: the settings of the guard, and the projection onto the allowed mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, natural_K
from cuvee.core.epochs import EpochCaps, epochs_K
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.policies.guard.alarms import AlarmSettings

Bound = float | Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """What a policy may do, when it is stopped, and which mixture is used then.

    - `floor`, `ceiling`: smallest and largest weight, one for all domains or by name (default: 0
      and 1).
    - `max_change`: largest total variation between two decisions, from 0 to 1; 1 is no limit.
    - `epochs`: how often a domain may be read during the run, for all domains or by name (default:
      no cap).
    - `fallback`: shares of the static fallback mixture. They need not sum to 1. Default: natural
      shares.
    - `cooldown`: number of intervals for which the fallback mixture is used after an alarm. None:
      until the end of the run.
    - `shadow`: always use the fallback mixture; the policy only proposes and learns.
    - `decision_seconds`: the longest time in seconds that a decision may take (default: no limit).
    - `alarms`: the thresholds of the alarms.
    """

    floor: Bound = 0.0
    ceiling: Bound = 1.0
    max_change: float = 1.0
    epochs: EpochCaps = None
    fallback: Mapping[str, float] | None = None
    cooldown: int | None = None
    shadow: bool = False
    decision_seconds: float | None = None
    alarms: AlarmSettings = field(default_factory=AlarmSettings)

    def bounds(self, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Return the (K,) floors and (K,) ceilings, without epoch caps.

        Raises `PolicyError` if no mixture satisfies them or another limit is invalid, and
        `ConfigError` for an invalid epoch cap.
        """
        floor_K = _shares("floor", self.floor, names, 0.0)
        ceiling_K = _shares("ceiling", self.ceiling, names, 1.0)
        if (floor_K > ceiling_K).any():
            bad = int(np.flatnonzero(floor_K > ceiling_K)[0])
            raise PolicyError(
                f"the floor of {names[bad]} ({floor_K[bad]:g}) is above its ceiling "
                f"({ceiling_K[bad]:g})"
            )
        if floor_K.sum() > 1.0 + 1e-9:
            raise PolicyError(
                f"the floors of {len(names)} domains sum to {floor_K.sum():g}: "
                "lower them to 1 or less"
            )
        if ceiling_K.sum() < 1.0 - 1e-9:
            raise PolicyError(
                f"the ceilings of {len(names)} domains sum to {ceiling_K.sum():g}: "
                "raise them to 1 or more"
            )
        if not 0.0 < self.max_change <= 1.0:
            raise PolicyError(f"max_change is {self.max_change}: it must be above 0 and at most 1")
        if self.cooldown is not None and self.cooldown < 1:
            raise PolicyError(
                f"cooldown is {self.cooldown}: it must be 1 interval or more; "
                "leave it out for no retry"
            )
        if self.decision_seconds is not None and not 0 < self.decision_seconds <= TIMEOUT_MAX:
            raise PolicyError(
                f"decision_seconds is {self.decision_seconds}: it must be above 0 and at most "
                f"{TIMEOUT_MAX:,.0f}; leave it out for no limit"
            )
        _by_name("fallback", self.fallback or {}, names, 0.0)
        epochs_K(self.epochs, names)
        return floor_K, ceiling_K

    def static(self, domains: Sequence[Domain]) -> Mixture:
        """Return the fallback mixture, before limits are applied."""
        names = [domain.name for domain in domains]
        if self.fallback is None:
            return Mixture.normalise(names, natural_K(domains))
        return Mixture.normalise(names, [self.fallback.get(name, 0.0) for name in names])


def nearest_within(mixture: Mixture, floor_K: FloatArray, ceiling_K: FloatArray) -> Mixture:
    """Return the nearest mixture within the bounds.

    Returns `mixture` itself, unchanged, if it is within the bounds.
    """
    if ((floor_K <= mixture.weights_K) & (mixture.weights_K <= ceiling_K)).all():
        return mixture
    return Mixture.normalise(mixture.names, project_to_box(mixture.weights_K, floor_K, ceiling_K))


def limit_change(
    wanted: Mixture, last: Mixture | None, held: Mixture | None, max_change: float
) -> Mixture:
    """Move from `held` towards `wanted` until the total variation from `last` is `max_change`.

    `last` is the mixture of the last interval. `held` is the nearest mixture to it within the
    bounds; the two differ only if the bounds have changed. `held` and `wanted` are within the
    bounds, which are convex, so every mixture between them is too. If even `held` is further away
    than `max_change`, the result is `held`.
    """
    if last is None or held is None or wanted.total_variation(last) <= max_change:
        return wanted
    left = max_change - held.total_variation(last)
    change = wanted.total_variation(held)
    if left <= 0 or change <= 0:
        return held
    moved_K = held.weights_K + min(1.0, left / change) * (wanted.weights_K - held.weights_K)
    return Mixture.normalise(wanted.names, np.maximum(moved_K, 0.0))


def project_to_box(weights_K: FloatArray, floor_K: FloatArray, ceiling_K: FloatArray) -> FloatArray:
    """Return the point of {floor ≤ x ≤ ceiling, Σx = 1} nearest to `weights_K`.

    It is clip(weights − λ) for the λ at which it sums to 1. λ is found by bisection.
    """
    low = float((weights_K - ceiling_K).min())
    high = float((weights_K - floor_K).max())
    for _ in range(100):  # the sum decreases in λ; 100 halvings reach float64 precision
        middle = 0.5 * (low + high)
        if np.clip(weights_K - middle, floor_K, ceiling_K).sum() > 1.0:
            low = middle
        else:
            high = middle
    return np.clip(weights_K - high, floor_K, ceiling_K)


def _shares(what: str, bound: Bound, names: Sequence[str], default: float) -> FloatArray:
    shares_K = _by_name(what, bound, names, default)
    for name, share in zip(names, shares_K.tolist(), strict=True):
        if not 0.0 <= share <= 1.0:
            raise PolicyError(f"the {what} of {name} is {share}: it must be between 0 and 1")
    return shares_K


def _by_name(what: str, bound: Bound, names: Sequence[str], default: float) -> FloatArray:
    by_name = bound if isinstance(bound, Mapping) else dict.fromkeys(names, bound)
    known = set(names)
    for name in by_name:
        if name not in known:
            raise PolicyError(
                f"{what} names the domain {name!r}, which the run does not have: {', '.join(names)}"
            )
    return np.array([by_name.get(name, default) for name in names], dtype=np.float64)

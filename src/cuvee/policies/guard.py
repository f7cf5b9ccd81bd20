"""`Guard`: wraps every policy that steers a real run. What it lets through is a mixture within stated limits, always.

A proposal is projected onto floor ≤ α ≤ ceiling (the nearest such mixture), then moved towards the last executed mixture until
the change is within `max_change`. A proposal that cannot be made (a non-finite weight, a policy that raises) is refused and the
last good mixture stays; before there is one, the fallback acts. Each decision is one audit record, logged with the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.domain import natural_shares
from cuvee.core.errors import CuveeError, PolicyError
from cuvee.core.mixture import FloatArray, Mixture
from cuvee.core.protocols import Metrics, Policy, Probe, State
from cuvee.core.trajectory import Trajectory

Bound = float | Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """`floor` and `ceiling` are one share for all domains or a share by name (unnamed: 0 and 1); `max_change` is the largest
    total variation between two decisions, 1 for no limit."""

    floor: Bound = 0.0
    ceiling: Bound = 1.0
    max_change: float = 1.0

    def bounds(self, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """(K,) floors and (K,) ceilings. Raises `PolicyError` if no mixture satisfies them."""
        floor_K, ceiling_K = _by_name("floor", self.floor, names, 0.0), _by_name("ceiling", self.ceiling, names, 1.0)
        if (floor_K > ceiling_K).any():
            bad = int(np.flatnonzero(floor_K > ceiling_K)[0])
            raise PolicyError(f"the floor of {names[bad]} ({floor_K[bad]:g}) is above its ceiling ({ceiling_K[bad]:g})")
        if floor_K.sum() > 1.0 + 1e-9:
            raise PolicyError(f"the floors of {len(names)} domains sum to {floor_K.sum():g}: lower them to 1 or less")
        if ceiling_K.sum() < 1.0 - 1e-9:
            raise PolicyError(
                f"the ceilings of {len(names)} domains sum to {ceiling_K.sum():g}: raise them to 1 or more"
            )
        if not 0.0 < self.max_change <= 1.0:
            raise PolicyError(f"max_change is {self.max_change}: it must be above 0 and at most 1")
        return floor_K, ceiling_K


class Guard:
    """Executes `policy` within `limits`. `fallback` acts until there is a first good mixture (default: natural shares)."""

    def __init__(self, policy: Policy, limits: Limits | None = None, fallback: Mixture | None = None) -> None:
        self._policy, self._limits, self._fallback = policy, limits or Limits(), fallback
        self._decision: dict[str, Any] = {}

    @property
    def probes(self) -> Sequence[Probe]:
        return self._policy.probes

    @property
    def policy(self) -> Policy:
        return self._policy

    def mixture(self, so_far: Trajectory) -> Mixture:
        floor_K, ceiling_K = self._limits.bounds(so_far.names)
        last = so_far.last_mixture
        last = last.to(so_far.names) if last is not None else None
        proposed, refusal = self._ask(so_far)
        wanted = proposed or last or self._fallback_for(so_far)
        executed = self._limit_change(_within(wanted, floor_K, ceiling_K), last)
        self._decision = {
            "step": so_far.last.step,
            "proposed": proposed.as_dict() if proposed else None,
            "verdict": "refused" if refusal else "accepted" if executed == proposed else "limited",
            "reason": refusal,
            "change": executed.total_variation(last) if last else None,
        }
        return executed

    def _ask(self, so_far: Trajectory) -> tuple[Mixture | None, str | None]:
        try:
            return self._policy.mixture(so_far).to(so_far.names), None
        except (CuveeError, FloatingPointError) as error:
            return None, f"{type(error).__name__}: {error}"

    def _fallback_for(self, so_far: Trajectory) -> Mixture:
        return (self._fallback or Mixture.of(natural_shares(so_far.domains))).to(so_far.names)

    def _limit_change(self, wanted: Mixture, last: Mixture | None) -> Mixture:
        """Both ends lie within the bounds, which are convex, so any point between them does too."""
        change = wanted.total_variation(last) if last else 0.0
        if last is None or change <= self._limits.max_change:
            return wanted
        share = self._limits.max_change / change
        return Mixture.normalise(wanted.names, last.weights_K + share * (wanted.weights_K - last.weights_K))

    def learn(self, so_far: Trajectory) -> Metrics:
        return {**self._policy.learn(so_far), "guard": self._decision}

    def state_dict(self) -> State:
        return {"policy": self._policy.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._policy.load_state_dict(state["policy"])


def _within(mixture: Mixture, floor_K: FloatArray, ceiling_K: FloatArray) -> Mixture:
    """The nearest mixture within the bounds; `mixture` itself, bit for bit, if it is there already."""
    if ((floor_K <= mixture.weights_K) & (mixture.weights_K <= ceiling_K)).all():
        return mixture
    return Mixture.normalise(mixture.names, project_to_box(mixture.weights_K, floor_K, ceiling_K))


def project_to_box(weights_K: FloatArray, floor_K: FloatArray, ceiling_K: FloatArray) -> FloatArray:
    """The point of {floor ≤ x ≤ ceiling, Σx = 1} nearest to `weights_K`: clip(weights − λ) for the one λ that sums to 1."""
    low, high = float((weights_K - ceiling_K).min()), float((weights_K - floor_K).max())
    for _ in range(100):  # the sum falls as λ rises; a hundred halvings exhaust a float
        middle = 0.5 * (low + high)
        if np.clip(weights_K - middle, floor_K, ceiling_K).sum() > 1.0:
            low = middle
        else:
            high = middle
    return np.clip(weights_K - high, floor_K, ceiling_K)


def _by_name(what: str, bound: Bound, names: Sequence[str], default: float) -> FloatArray:
    by_name = bound if isinstance(bound, Mapping) else dict.fromkeys(names, bound)
    for name, value in by_name.items():
        if name not in names:
            raise PolicyError(f"{what} names the domain {name!r}, which the run does not have: {', '.join(names)}")
        if not 0.0 <= value <= 1.0:
            raise PolicyError(f"the {what} of {name} is {value}: it must lie between 0 and 1")
    return np.array([by_name.get(name, default) for name in names], dtype=np.float64)

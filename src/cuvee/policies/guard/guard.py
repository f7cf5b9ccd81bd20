"""`Guard`: wraps every policy that steers a real run. What it lets through is a mixture within stated limits, always.

A proposal is projected onto floor ≤ α ≤ ceiling, with ceilings lowered to keep within epoch caps (`policies.guard.epochs`), then
moved towards the last executed mixture until the change is within `max_change`. A proposal that cannot be made is refused and
the last mixture stays. Nothing unbelievable is learned from (`policies.guard.sanitizer`), and learning that raises leaves the policy as it
was. When an alarm sounds (`policies.guard.alarms`), and in shadow mode, a static mixture steers, and the policy goes on deciding and
learning from what was executed. Each decision is one audit record, logged with the interval.

In the first interval a `PolicyError` or `ConfigError` of the policy is a mistake in how the run was set up, and ends it. Later
a policy ends it only by failing to learn in such a way that it cannot be put back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.epochs import epochs_K
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Policy, Probe, State
from cuvee.core.state import digest
from cuvee.core.trajectory import Trajectory
from cuvee.policies.guard.alarms import Alarms, Timestep
from cuvee.policies.guard.epochs import EpochBudget, capped_ceilings
from cuvee.policies.guard.limits import Limits, nearest_within, within_reach
from cuvee.policies.guard.sanitizer import SignalSanitizer

__all__ = ["Guard", "Limits"]


class Bounds(NamedTuple):
    """(K,) each: the floors and ceilings that were asked for, and those that hold now, since an epoch cap wins over both."""

    asked_floor_K: FloatArray
    asked_ceiling_K: FloatArray
    floor_K: FloatArray
    ceiling_K: FloatArray


class Guard:
    """Executes `policy` within `limits`. `first_interval` is how many tokens that will read, if known: see `policies.guard.epochs`."""

    def __init__(
        self, policy: Policy, limits: Limits | None = None, first_interval: int | None = None
    ) -> None:
        self._policy, self._limits = policy, limits or Limits()
        self._alarms = Alarms(self._limits.alarms)
        self._view, self._ledger = SignalSanitizer(), EpochBudget(first_interval)
        self._fallback: dict[str, Any] | None = None
        self._refused = {"proposals": 0, "lessons": 0}
        self._decision: dict[str, Any] = {}
        self._proposed: Mixture | None = None

    @property
    def probes(self) -> Sequence[Probe]:
        return self._policy.probes

    @property
    def policy(self) -> Policy:
        return self._policy

    # Deciding

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Changes no state, so it may be asked twice. Raises `PolicyError` for limits that no mixture satisfies and
        `CorpusExhausted` when the epoch caps leave nothing to read."""
        bounds = self._bounds(so_far)
        last, static = so_far.last_mixture, self._limits.static(so_far.domains)
        view, _ = self._view.of(so_far)
        proposed, refusal = self._ask(view)
        wanted = proposed or last or static
        executed, acted = self._apply(wanted, last, bounds)
        verdict = "refused" if refusal else "accepted" if executed == proposed else "limited"
        own: dict[str, Any] | None = None
        if self._fallback or self._limits.shadow:
            own = {"verdict": verdict, "limits": acted, "executed": executed.as_dict()}
            executed, acted = self._apply(static, last, bounds)
            verdict = "shadow" if self._limits.shadow else "fallback"
        self._proposed = proposed
        self._decision = {
            "step": so_far.last.step,
            "progress": so_far.last.progress,
            "loss": dict(zip(view.names, view.last.loss.to_json(), strict=True)),
            "tokens": dict(zip(so_far.names, so_far.last.tokens_K.tolist(), strict=True)),
            **self._explained(view),
            "proposed": proposed.as_dict() if proposed else None,
            "executed": executed.as_dict(),
            "verdict": verdict,
            "limits": acted,
            "reason": refusal,
            "fallback": self._fallback,
            "change": executed.total_variation(last) if last else None,
            "own": own,
        }
        return executed

    def _bounds(self, so_far: Trajectory) -> Bounds:
        floor_K, ceiling_K = self._limits.bounds(so_far.names)
        caps_K, outlook = epochs_K(self._limits.epochs, so_far.names), self._ledger.outlook(so_far)
        lowered_K = capped_ceilings(caps_K, so_far, outlook, ceiling_K)
        return Bounds(floor_K, ceiling_K, np.minimum(floor_K, lowered_K), lowered_K)

    def _ask(self, view: Trajectory) -> tuple[Mixture | None, str | None]:
        try:
            proposed = self._policy.mixture(view)
            if not isinstance(proposed, Mixture):
                return None, f"the policy returned a {type(proposed).__name__} and no mixture"
            return proposed.to(view.names), None
        except Exception as error:
            if len(view) == 0 and isinstance(error, (PolicyError, ConfigError)):
                raise
            return None, f"{type(error).__name__}: {error}"

    def _apply(
        self, wanted: Mixture, last: Mixture | None, bounds: Bounds
    ) -> tuple[Mixture, list[str]]:
        """What is executed of `wanted`, and which limits made it so."""
        within = nearest_within(wanted, bounds.floor_K, bounds.ceiling_K)
        held = nearest_within(last, bounds.floor_K, bounds.ceiling_K) if last else None
        executed = within_reach(within, last, held, self._limits.max_change)
        if executed == wanted:
            return executed, []
        weights_K = wanted.weights_K
        lowered_K = (bounds.ceiling_K < bounds.asked_ceiling_K) & (bounds.ceiling_K < weights_K)
        acted = {
            "floor": bool((weights_K < bounds.floor_K).any()),
            "ceiling": bool((weights_K > bounds.asked_ceiling_K).any()),
            "epochs": bool(lowered_K.any() or (bounds.floor_K < bounds.asked_floor_K).any()),
            "max_change": executed != within,
        }
        return executed, [name for name, did in acted.items() if did]

    def _explained(self, view: Trajectory) -> dict[str, Any]:
        """What the policy says of the state in which it decides, if it offers `explain(so_far)`."""
        explain = getattr(self._policy, "explain", None)
        if explain is None:
            return {}
        try:
            return {"explained": explain(view)}
        except Exception as error:
            return {"explained": f"{type(error).__name__}: {error}"}

    # Learning

    def learn(self, so_far: Trajectory) -> Metrics:
        assert self._decision, "learn follows mixture"
        view, fault = self._view.of(so_far)
        before = self._policy.state_dict()
        state = digest(before)
        metrics, refusal = self._teach(view, fault, before, state)
        timestep = Timestep(view.last, self._proposed, metrics, refusal, learns=bool(before))
        sounding = self._alarms.update(timestep)
        self._refused["proposals"] += self._proposed is None
        self._refused["lessons"] += refusal is not None
        self._change_over(len(so_far), sounding)
        record = {
            **self._decision,
            "state": state,
            "lesson": refusal or "learned",
            "reward": metrics.get("reward"),
            "terms": metrics.get("terms"),
            "alarms": sounding,
            "refused": dict(self._refused),
        }
        return {**metrics, "guard": record}

    def _teach(
        self, view: Trajectory, fault: str | None, before: State, state: str
    ) -> tuple[Metrics, str | None]:
        """The policy's metrics, or none and why it did not learn; then it is as it was `before`, to the bit."""
        if self._proposed is None:
            return {}, "it made no proposal to learn from"
        if fault:
            return {}, fault
        try:
            return dict(self._policy.learn(view)), None
        except Exception as error:
            if len(view) == 1 and isinstance(error, (PolicyError, ConfigError)):
                raise
            self._policy.load_state_dict(before)
            if digest(self._policy.state_dict()) != state:
                raise PolicyError(
                    f"{type(self._policy).__name__} failed to learn ({type(error).__name__}: {error}) and could not be put back: "
                    "its state_dict must hold copies of everything, and load_state_dict restore it"
                ) from error
            return {}, f"{type(error).__name__}: {error}"

    def _change_over(self, done: int, sounding: dict[str, str]) -> None:
        """`done` intervals are over: whether the static mixture steers the next one."""
        if self._fallback is None:
            if sounding:
                reason = "; ".join(f"{name}: {why}" for name, why in sounding.items())
                self._fallback = {"after": done, "alarms": list(sounding), "reason": reason}
        elif (
            self._limits.cooldown is not None
            and done - self._fallback["after"] >= self._limits.cooldown
        ):
            self._fallback = None
            self._alarms.calm()

    # State

    def state_dict(self) -> State:
        own = {
            "alarms": self._alarms.state_dict(),
            "fallback": self._fallback,
            "refused": dict(self._refused),
        }
        return {"policy": self._policy.state_dict(), "guard": own}

    def load_state_dict(self, state: State) -> None:
        self._policy.load_state_dict(state["policy"])
        own = state["guard"]
        self._alarms.load_state_dict(own["alarms"])
        self._fallback, self._refused = own["fallback"], dict(own["refused"])
        self._decision, self._proposed = {}, None

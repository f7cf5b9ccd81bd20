"""`Guard`: wraps every policy that steers a real run, and keeps its mixtures within limits.

For each decision:

1. The policy proposes a mixture. It sees sanitized signals only (`guard.sanitizer`). If it raises
   an error, returns no mixture or takes longer than `decision_seconds`, the proposal is refused
   and the last mixture stays.
2. The proposal is projected onto floor ≤ α ≤ ceiling. Ceilings are lowered to stay within epoch
   caps (`guard.epochs`).
3. The change from the last executed mixture is limited to `max_change`.

After an alarm (`guard.alarms`) and in shadow mode, a static mixture is used instead. The policy
still proposes mixtures and learns from what was executed. The policy does not learn from signals
with a fault. If learning raises an error, the policy's state is restored. Each decision is one
audit record, which is logged with the interval.

In the first interval, a `PolicyError` or `ConfigError` of the policy means that the run is set up
wrongly, and ends the run. Later, a policy can end the run only if it fails to learn and its state
cannot be restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from cuvee.policies.guard.deadline import Deadline, TooLate
from cuvee.policies.guard.epochs import EpochBudget, capped_ceilings
from cuvee.policies.guard.limits import Limits, limit_change, nearest_within
from cuvee.policies.guard.operator import Operator
from cuvee.policies.guard.sanitizer import SignalSanitizer

__all__ = ["Guard", "Limits"]


class Bounds(NamedTuple):
    """Floors and ceilings, (K,) each: as configured, and as they hold now.

    They differ where an epoch cap lowers them.
    """

    asked_floor_K: FloatArray
    asked_ceiling_K: FloatArray
    floor_K: FloatArray
    ceiling_K: FloatArray


class Guard:
    """Executes `policy` within `limits`.

    `first_interval` is the number of tokens of the first interval, if known (see `guard.epochs`).
    """

    @classmethod
    def around(
        cls, policy: Policy, limits: Limits | None = None, first_interval: int | None = None
    ) -> Guard:
        """Return `policy` with a guard, which may be its own.

        Raises `ConfigError` if it has a guard already and `limits` are given too.
        """
        if not isinstance(policy, Guard):
            return cls(policy, limits, first_interval)
        if limits is not None:
            raise ConfigError(
                "limits are given for a policy that has a guard already: give them to that guard, "
                "as in Guard(policy, limits)"
            )
        return policy

    def __init__(
        self, policy: Policy, limits: Limits | None = None, first_interval: int | None = None
    ) -> None:
        self._policy = policy
        self.operator = Operator()
        """Give it a source of requests before the run begins or is resumed."""
        self._limits = limits or Limits()
        self._alarms = Alarms(self._limits.alarms)
        self._sanitizer = SignalSanitizer()
        self._budget = EpochBudget(first_interval)
        self._in_time = Deadline(self._limits.decision_seconds)
        self.late_at: int | None = None
        """The newest timestep whose decision was late. Asked again for it, the policy is refused
        again. It is no part of the state: decisions come after it."""
        self.recorded: dict[int, bool] = {}
        """Whether a decision was late, by timestep, where a resumed run repeats a recorded interval.
        The clock must not decide it again: the policy is refused as before, or gets all its time."""
        self._fallback: dict[str, Any] | None = None
        self._refused = {"proposals": 0, "lessons": 0}
        self._decision: dict[str, Any] = {}
        self._proposed: Mixture | None = None

    @property
    def probes(self) -> Sequence[Probe]:
        return self._policy.probes

    @property
    def policy(self) -> Policy:
        """The wrapped policy."""
        return self._policy

    # Deciding

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the mixture to execute.

        It can be called again: the policy's state does not change, and a decision that was late
        stays late. Raises `PolicyError` for limits that no mixture satisfies, and `CorpusExhausted`
        when the epoch caps leave too few tokens.
        """
        view, _ = self._sanitizer.of(so_far, self.operator.added)
        so_far = self.operator.extended(so_far)
        bounds = self._bounds(so_far)
        last = so_far.last_mixture
        with_added = partial(self.operator.with_added, names=so_far.names)
        static = with_added(self._limits.static(so_far.domains))
        proposed, refusal, explained = self._ask(view)
        wanted = with_added(proposed) if proposed else last or static
        executed, acted = self._apply(wanted, last, bounds)
        verdict = "refused" if refusal else "accepted" if executed == wanted else "limited"
        own: dict[str, Any] | None = None
        ordered = self.operator.mixture(wanted, last)
        if ordered or self._fallback or self._limits.shadow:
            own = {"verdict": verdict, "limits": acted, "executed": executed.as_dict()}
            executed, acted = self._apply(ordered or static, last, bounds)
            verdict = "shadow" if self._limits.shadow else "fallback"
            verdict = "operator" if ordered else verdict
        self._proposed = proposed
        self._decision = {
            "step": so_far.last.step,
            "progress": so_far.last.progress,
            "loss": dict(zip(view.names, view.last.loss.to_json(), strict=True)),
            "tokens": dict(zip(so_far.names, so_far.last.tokens_K.tolist(), strict=True)),
            **explained,
            "proposed": proposed.as_dict() if proposed else None,
            "executed": executed.as_dict(),
            "verdict": verdict,
            "limits": acted,
            "reason": refusal,
            "late": self.late_at == len(so_far),
            "fallback": self._fallback,
            "operator": self.operator.record(),
            "change": executed.total_variation(last) if last else None,
            "own": own,
        }
        return executed

    def _bounds(self, so_far: Trajectory) -> Bounds:
        floor_K, ceiling_K = self._limits.bounds(so_far.names)
        caps_K = epochs_K(self._limits.epochs, so_far.names)
        lowered_K = capped_ceilings(caps_K, so_far, self._budget.forecast(so_far), ceiling_K)
        return Bounds(floor_K, ceiling_K, np.minimum(floor_K, lowered_K), lowered_K)

    def _ask(self, view: Trajectory) -> tuple[Mixture | None, str | None, dict[str, Any]]:
        """Return the proposal, why there is none, and the policy's explanation."""
        recorded = self.recorded.get(len(view))
        if recorded:
            self.late_at = len(view)
        if self.late_at == len(view):  # asked again: the clock must not decide twice
            return None, "TooLate: this decision was late before", {}
        explained: dict[str, Any] = {}
        try:
            in_time = self._in_time if recorded is None else Deadline(None)
            proposed, explained = in_time(lambda: self._decided(view))
            if not isinstance(proposed, Mixture):
                kind = type(proposed).__name__
                return None, f"the policy returned a {kind}, not a mixture", explained
            return proposed.to(view.names), None, explained
        except Exception as error:
            if len(view) == 0 and isinstance(error, (PolicyError, ConfigError)):
                raise
            if isinstance(error, TooLate):
                self.late_at = len(view)
            return None, f"{type(error).__name__}: {error}", explained

    def _decided(self, view: Trajectory) -> tuple[Mixture, dict[str, Any]]:
        mixture = self._policy.mixture(view)
        return mixture, self._explained(view)

    def _apply(
        self, wanted: Mixture, last: Mixture | None, bounds: Bounds
    ) -> tuple[Mixture, list[str]]:
        """Return the executed mixture, and the names of the limits that changed `wanted`."""
        within = nearest_within(wanted, bounds.floor_K, bounds.ceiling_K)
        held = nearest_within(last, bounds.floor_K, bounds.ceiling_K) if last else None
        executed = limit_change(within, last, held, self._limits.max_change)
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
        """Return what `policy.explain(so_far)` says, if the policy has this method.

        It describes the state in which the policy decides.
        """
        explain = getattr(self._policy, "explain", None)
        if explain is None:
            return {}
        try:
            return {"explained": explain(view)}
        except Exception as error:
            return {"explained": f"{type(error).__name__}: {error}"}

    # Learning

    def learn(self, so_far: Trajectory) -> Metrics:
        """Let the policy learn, update the alarms, and return the metrics with the audit record."""
        assert self._decision, "call mixture before learn"
        self.recorded.pop(len(so_far) - 1, None)
        view, fault = self._sanitizer.of(so_far, self.operator.added)
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
            "takes": self.operator.trainer and self.operator.trainer.vocabulary,
        }
        self._policy = self.operator.obey(len(so_far) + 1, self._policy, so_far.names, self._limits)
        return {**metrics, "guard": record}

    def _teach(
        self, view: Trajectory, fault: str | None, before: State, state: str
    ) -> tuple[Metrics, str | None]:
        """Let the policy learn. Return its metrics, or {} and the reason why it did not learn.

        In the second case, the policy is restored exactly to the state `before`.
        """
        if self._proposed is None:
            return {}, "the policy made no valid proposal"
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
                    f"{type(self._policy).__name__} failed to learn "
                    f"({type(error).__name__}: {error}) and its state could not be restored: "
                    "state_dict must return copies of everything, and load_state_dict restore it"
                ) from error
            return {}, f"{type(error).__name__}: {error}"

    def _change_over(self, done: int, sounding: dict[str, str]) -> None:
        """Decide, after `done` intervals, whether the fallback mixture is used for the next one."""
        if self._fallback is None:
            if sounding:
                reason = "; ".join(f"{name}: {why}" for name, why in sounding.items())
                self._fallback = {"after": done, "alarms": list(sounding), "reason": reason}
        elif (
            self._limits.cooldown is not None
            and done - self._fallback["after"] >= self._limits.cooldown
        ):
            self._fallback = None
            self._alarms.reset()

    # State

    def state_dict(self) -> State:
        own = {
            "alarms": self._alarms.state_dict(),
            "fallback": self._fallback,
            "refused": dict(self._refused),
            "operator": self.operator.state_dict(),
        }
        return {"policy": self._policy.state_dict(), "guard": own}

    def load_state_dict(self, state: State) -> None:
        own = state["guard"]
        self._policy = self.operator.load_state_dict(own.get("operator", {}), self._policy)
        self._policy.load_state_dict(state["policy"])
        self._alarms.load_state_dict(own["alarms"])
        self._fallback = own["fallback"]
        self._refused = dict(own["refused"])
        self._decision = {}
        self._proposed = None

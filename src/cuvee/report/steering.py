"""Who steered a run: its policy, or something in its place. Read from the guard's audit records.

A method gets no credit for a run that the guard's fallback, an operator or a policy's own static
fallback steered for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.core.protocols import Metrics

_IN_PLACE = {
    "fallback": "the guard’s fallback mixture",
    "operator": "an operator",
    "shadow": "the fallback mixture, in shadow mode,",
}


@dataclass(frozen=True)
class Steering:
    """How many of a run's decisions were whose.

    `verdicts` counts the guard's verdicts. `acting` counts what a learned policy says that it let
    act: "history" is the agent, "plan" its plan, and "fallback" a static mixture. `alarms` are the
    alarms' names. `taken` are the intervals, from 0, that something else than the policy decided.
    """

    decisions: int
    verdicts: Mapping[str, int]
    acting: Mapping[str, int]
    alarms: tuple[str, ...] = ()
    taken: tuple[int, ...] = ()

    @property
    def others(self) -> dict[str, int]:
        """Decisions that were not the policy's own, by who decided instead."""
        found = {who: self.verdicts.get(verdict, 0) for verdict, who in _IN_PLACE.items()}
        found["the static mixture of an unsupported policy"] = self.acting.get("fallback", 0)
        return {who: count for who, count in found.items() if count}

    @property
    def planned(self) -> int:
        """Decisions of the plan that a learned policy made beforehand: its own, but no agent's."""
        return self.acting.get("plan", 0)

    @property
    def refused(self) -> int:
        return self.verdicts.get("refused", 0)


def steering(metrics: Sequence[Metrics]) -> Steering | None:
    """Return who steered the run with these metrics of its intervals; None without a guard."""
    records: list[Mapping[str, Any]] = [one["guard"] for one in metrics if one.get("guard")]
    if not records:
        return None
    alarms = dict.fromkeys(name for record in records for name in record.get("alarms") or ())
    taken = [t for t, one in enumerate(metrics) if _is_taken(one)]
    return Steering(
        len(records),
        Counter(str(record.get("verdict")) for record in records),
        Counter(str(one["acts"]) for one in metrics if one.get("acts")),
        tuple(alarms),
        tuple(taken),
    )


def _is_taken(metrics: Metrics) -> bool:
    """Whether something else than the policy decided an interval."""
    record = metrics.get("guard") or {}
    return bool(record) and (
        record.get("verdict") in _IN_PLACE or metrics.get("acts") == "fallback"
    )

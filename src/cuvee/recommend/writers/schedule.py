"""cuvee: the method `schedule` (or `given`, for one stage) in YAML, for `cuvee train`.

Weights are of tokens.
"""

from __future__ import annotations

from typing import Any

import yaml

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, weights


def method(plan: Plan) -> dict[str, Any]:
    """`{name: schedule, points: …}`: two points at one progress make the jump from a stage to the
    next.
    """
    if len(plan.stages) == 1:
        return {"name": "given", "weights": plan.stages[0].mixture.as_dict()}
    points = []
    for stage in plan.stages:
        shares = stage.mixture.as_dict()
        points += [[stage.start, shares], [stage.end, dict(shares)]]
    return {"name": "schedule", "points": points}


def write(plan: Plan, target: Target) -> dict[str, str]:
    for stage in plan.stages:
        weights(stage, plan, target, "tokens")
    return {"schedule.yaml": yaml.safe_dump({"method": method(plan)}, sort_keys=False)}


WRITER = Writer("schedule", "tokens", write)

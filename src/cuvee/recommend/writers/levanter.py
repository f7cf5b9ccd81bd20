"""Levanter: `data.train_weights` in YAML, a dictionary, or a list of [first step, dictionary] for
several stages.

Levanter draws blocks of `mixture_block_size` sequences and gives each domain a whole number of a
block's sequences, so a weight below half a sequence of a block is lost. That is refused here.
Weights are shares of sequences.
"""

from __future__ import annotations

import yaml

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, check_drawable, step_of, weights

_BLOCK = 2048  # Levanter's default


def write(plan: Plan, target: Target) -> dict[str, str]:
    stages = []
    for stage in plan.stages:
        found = weights(stage, plan, target, "sequences")
        check_drawable(found, _BLOCK, "a mixture block")
        every = {name: found.get(name, 0.0) for name in plan.domains}
        first = step_of(stage.start, target, "levanter") if len(plan.stages) > 1 else 0
        stages.append([first, every])
    train_weights = stages if len(stages) > 1 else stages[0][1]
    data = {"data": {"mixture_block_size": _BLOCK, "train_weights": train_weights}}
    return {"levanter.yaml": yaml.safe_dump(data, sort_keys=False)}


WRITER = Writer("levanter", "sequences", write)

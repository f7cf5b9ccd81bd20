"""NeMo: the data section of a pre-training configuration for each stage, `paths` as a flat list of
weights and prefixes.

NeMo passes `paths` on to Megatron Core, so weights are shares of sequences, which are shares of
tokens.
"""

from __future__ import annotations

import yaml

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, per_stage
from cuvee.recommend.writers.megatron import blend


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "nemo", ".yaml"):
        data: dict[str, object] = {"paths": blend(stage, plan, target)}
        if target.sequence_length:
            data["seq_length"] = target.sequence_length
        files[name] = yaml.safe_dump({"data": data}, sort_keys=False)
    return files


WRITER = Writer("nemo", "sequences", write, "one restart for each stage")

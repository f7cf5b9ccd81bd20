"""Megatron-LM: `--data-path` arguments, and the JSON of `--per-split-data-args-path`, for each
stage.

A blend is a flat list of weights and path prefixes. Weights are shares of sequences of fixed
length, so shares of tokens. A run changes its blend only at a restart: load the checkpoint of one
stage with the arguments of the next.
"""

from __future__ import annotations

import json
import shlex

from cuvee.recommend.plan import Plan, Stage
from cuvee.recommend.writers.base import Target, Writer, path_of, per_stage, weights


def blend(stage: Stage, plan: Plan, target: Target) -> list[str]:
    """["0.3", "path/to/web", "0.7", "path/to/code"]"""
    found = weights(stage, plan, target, "sequences")
    return [
        part for name, weight in found.items() for part in (f"{weight:.10g}", path_of(name, target))
    ]


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "megatron", ""):
        found = blend(stage, plan, target)
        files[f"{name}.args"] = f"--data-path {shlex.join(found)}\n"
        files[f"{name}.json"] = json.dumps({"train": found}, indent=2) + "\n"
    return files


WRITER = Writer("megatron", "sequences", write, "one restart for each stage")

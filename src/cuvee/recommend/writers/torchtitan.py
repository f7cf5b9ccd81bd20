"""torchtitan: `[[training.data_stages]]` in TOML, with `dataset_folders` and `dataset_weights` by
optimizer step.

The schema is that of torchtitan's multi-stage data component (`data_stages.py`): stages in order,
without gaps, the last one open. Releases up to 0.3.0 have no such component and ignore the section.
Weights are shares of sequences where each folder is packed by itself.
"""

from __future__ import annotations

import json

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, path_of, step_of, weights


def write(plan: Plan, target: Target) -> dict[str, str]:
    lines = []
    for number, stage in enumerate(plan.stages, start=1):
        found = weights(stage, plan, target, "sequences")
        folders = [path_of(name, target) for name in found]
        lines += [
            "[[training.data_stages]]",
            f'name = "stage{number}"',
            f"start_step = {step_of(stage.start, target, 'torchtitan')}",
        ]
        if stage is not plan.stages[-1]:
            lines.append(f"end_step = {step_of(stage.end, target, 'torchtitan')}")
        lines += [
            # A TOML array of basic strings, in which escaped surrogates would not be valid.
            f"dataset_folders = {json.dumps(folders, ensure_ascii=False)}",
            f"dataset_weights = [{', '.join(f'{weight:.10g}' for weight in found.values())}]",
            "",
        ]
    return {"torchtitan.toml": "\n".join(lines)}


WRITER = Writer("torchtitan", "sequences", write, "needs the multi-stage data component")

"""Hugging Face `datasets`: the keyword arguments of `interleave_datasets` as JSON for each stage,
and the order of datasets.

`interleave_datasets([by_name[name] for name in plan["datasets"]], **plan["arguments"])`.
Probabilities are of samples. `all_exhausted` repeats the smaller datasets until every one has been
read.
"""

from __future__ import annotations

import json

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, path_of, per_stage, weights


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "hf_datasets", ".json"):
        found = weights(stage, plan, target, "samples")
        total = sum(found.values())
        content = {
            "datasets": [path_of(domain, target) for domain in found],
            "arguments": {
                "probabilities": [weight / total for weight in found.values()],
                "stopping_strategy": "all_exhausted",
                "seed": 0,
            },
        }
        files[name] = json.dumps(content, indent=2) + "\n"
    return files


WRITER = Writer("hf_datasets", "samples", write)

"""TRL: the `datasets` of a `DatasetMixtureConfig` in YAML for each stage, each with its `fraction`.

`fraction` is the dataset's share of the mixture's samples (TRL 1.16). TRL concatenates and never
repeats a dataset, so the mixture is as large as the scarcest domain allows.
"""

from __future__ import annotations

import yaml

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, path_of, per_stage, weights


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "trl", ".yaml"):
        found = weights(stage, plan, target, "samples")
        datasets = [
            {"path": path_of(domain, target), "fraction": weight}
            for domain, weight in found.items()
        ]
        files[name] = yaml.safe_dump({"datasets": datasets}, sort_keys=False)
    return files


WRITER = Writer("trl", "samples", write, "without repetition; one restart for each stage")

"""OLMo-core: a `SourceMixtureList` in YAML for each stage (`olmo_core.data.source_mixture`).

`target_ratio` is a share of tokens. `max_repetition_ratio` allows the epochs that the plan needs;
where the tokens of a domain are not known it is 1, and OLMo-core refuses the mixture if it needs
more.
"""

from __future__ import annotations

import math

import yaml

from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, path_of, per_stage, weights


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "olmo_core", ".yaml"):
        found = weights(stage, plan, target, "tokens")
        sources = []
        for domain, weight in found.items():
            budget = (plan.tokens or 0) * (stage.end - stage.start) * weight
            epochs = budget / plan.available[domain] if plan.available.get(domain) else 1.0
            sources.append(
                {
                    "source_name": domain,
                    "target_ratio": weight,
                    "paths": [path_of(domain, target)],
                    "max_repetition_ratio": max(1.0, math.ceil(100 * epochs) / 100),
                }
            )
        files[name] = yaml.safe_dump({"sources": sources}, sort_keys=False)
    return files


WRITER = Writer("olmo_core", "tokens", write, "one restart for each stage")

"""LLaMA-Factory: `dataset`, `mix_strategy` and `interleave_probs` in YAML for each stage.

`interleave_over` draws until every dataset is exhausted and repeats the smaller ones. Probabilities
are of samples.
"""

from __future__ import annotations

import yaml

from cuvee.core.errors import ConfigError
from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, path_of, per_stage, weights


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "llama_factory", ".yaml"):
        found = weights(stage, plan, target, "samples")
        names = [path_of(domain, target) for domain in found]
        if comma := [one for one in names if "," in one]:
            raise ConfigError(f"LLaMA-Factory splits datasets at commas: rename {comma[0]!r}")
        content = {
            "dataset": ",".join(names),
            "mix_strategy": "interleave_over",
            "interleave_probs": ",".join(f"{weight:.10g}" for weight in found.values()),
        }
        files[name] = yaml.safe_dump(content, sort_keys=False)
    return files


WRITER = Writer("llama_factory", "samples", write, "one restart for each stage")

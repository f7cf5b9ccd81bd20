"""axolotl: `datasets` in YAML for each stage, each with `weight`, the share of the dataset's own
samples that is kept.

axolotl's weight is no share of the batch: it is a fraction from 0 to 1 of that dataset (axolotl
pull request 3690; releases without it ignore the key). So the number of samples of each domain must
be known, and a domain cannot be repeated: the largest mixture without repetition is written, or the
budget's samples if these are fewer.
"""

from __future__ import annotations

import yaml

from cuvee.core.errors import ConfigError
from cuvee.recommend.plan import Plan
from cuvee.recommend.writers.base import Target, Writer, check_drawable, path_of, per_stage, weights


def write(plan: Plan, target: Target) -> dict[str, str]:
    files = {}
    for stage, name in per_stage(plan, "axolotl", ".yaml"):
        found = weights(stage, plan, target, "samples")
        missing = [domain for domain in found if not target.samples.get(domain)]
        if missing:
            raise ConfigError(
                "axolotl keeps a fraction of each dataset, so the samples of "
                f"{', '.join(missing[:5])} must be known: "
                "give --samples, a JSON file of samples by domain"
            )
        total = min(target.samples[domain] / weight for domain, weight in found.items())
        check_drawable(found, int(total), "the mixture without repetition")
        datasets = [
            {
                "path": path_of(domain, target),
                "weight": min(1.0, weight * total / target.samples[domain]),
            }
            for domain, weight in found.items()
        ]
        files[name] = yaml.safe_dump({"datasets": datasets}, sort_keys=False)
    return files


WRITER = Writer("axolotl", "samples", write, "a fraction of each dataset, without repetition")

"""What a run will cost: tokens, FLOPs, time, memory, and how often each domain is read.

Time and memory are measured: the run's own trainer and policy train for about two seconds. The
time of validation is added in proportion to its FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.core.domain import Domain, available_K
from cuvee.core.mixture import Mixture
from cuvee.core.registry import TRAINERS
from cuvee.core.trajectory import Cost
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.build import build_policy, build_trainer
from cuvee.recipes.config.schema import CompareConfig, TrainConfig
from cuvee.recipes.preflight import check_writable
from cuvee.recipes.progress.timing import peak_memory, time_training, validated_seconds
from cuvee.training.distributed import Ranks
from cuvee.training.placement import computing_threads

MANY_EPOCHS = 4.0
"""Up to about four epochs, repeated text is worth almost as much as new text.

Source: Muennighoff et al., arXiv 2305.16264.
"""


@dataclass(frozen=True)
class Estimate:
    """The cost of the runs of a configuration.

    `each` is the cost of one run and `total` that of all. FLOPs are of training and validation,
    without probes. `memory` is the peak in bytes of one run: of the device on a GPU, else of the
    process. `epochs` says how often a run would read each domain if it kept the first mixture of
    its policy.
    """

    runs: int
    each: Cost
    steps_timed: int
    memory: int
    epochs: Mapping[str, float]

    @property
    def total(self) -> Cost:
        each = self.each
        return Cost(self.runs * each.tokens, self.runs * each.flops, self.runs * each.seconds)


def estimate(config: TrainConfig | CompareConfig) -> Estimate:
    """Estimate the cost of a run, or of the runs of a comparison, without storing anything.

    The first run of a comparison stands for the others. Raises the same errors as the run would
    raise before its first step.
    """
    runs = [config] if isinstance(config, TrainConfig) else config.runs()
    corpus = Corpus.open(config.corpus)
    check_writable(config.out)
    policies = [build_policy(one, corpus) for one in runs]
    price: Cost = TRAINERS.get(config.trainer).price(config.model, corpus, config.train)
    unvalidated = replace(config.train, validate_every=0, validation_tokens=0)
    bare: Cost = TRAINERS.get(config.trainer).price(config.model, corpus, unvalidated)
    timed = runs[0].model_copy(update={"train": unvalidated})
    with computing_threads(config.threads):
        trainer = build_trainer(timed, corpus, Ranks())
        first, seconds, steps = time_training(trainer, policies[0])
    training = seconds / steps * config.train.total_steps
    each = price + Cost(seconds=validated_seconds(training, price, bare))
    return Estimate(
        len(runs), each, steps, peak_memory(), epochs_read(corpus.domains, first, price.tokens)
    )


def epochs_read(domains: Sequence[Domain], mixture: Mixture, tokens: float) -> dict[str, float]:
    """Return how often `tokens` tokens under `mixture` read each domain; inf for an empty one."""
    share_K = mixture.to([domain.name for domain in domains]).weights_K
    with np.errstate(divide="ignore", invalid="ignore"):
        epochs_K = np.nan_to_num(share_K * tokens / available_K(domains), nan=0.0, posinf=np.inf)
    return dict(zip((domain.name for domain in domains), epochs_K.tolist(), strict=True))

"""`order-test`: trains three arms with equal exposure and paired seeds, and compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.compare import compare
from cuvee.recipes.config.schema import CompareConfig, MethodChoice, RunConfig
from cuvee.recipes.progress.watch import Observer
from cuvee.recommend.checks.order_test import (
    HELD,
    OrderVerdict,
    arms,
    direction_between,
    direction_of_plan,
    direction_of_role,
    judge,
)
from cuvee.recommend.plan import Plan


@dataclass(frozen=True)
class Direction:
    """The direction in which weights move early or late. Exactly one of the fields is given.

    `between` moves weight from the first domain to the second, `role` from source to target
    domains, and `plan` from a plan's last stage to its first.
    """

    between: tuple[str, str] | None = None
    role: bool = False
    plan: Plan | None = None

    def __post_init__(self) -> None:
        given = (self.between is not None) + self.role + (self.plan is not None)
        if given != 1:
            raise ConfigError("give exactly one of --between LESS,MORE, --role and --plan FILE")


def comparison(
    config: RunConfig,
    direction: Direction,
    seeds: int,
    shift: float = 1.0,
    shares: Mapping[str, float] | None = None,
) -> CompareConfig:
    """Return the arms as a comparison. Their mean mixture is `shares`, the plan's, or natural."""
    corpus = Corpus.open(config.corpus)
    names = [domain.name for domain in corpus.domains]
    if shares is not None:
        mean = Mixture.normalise(list(shares), list(shares.values())).to(names)
    elif direction.plan is not None:
        mean = direction.plan.mean.to(names)
    else:
        mean = Mixture.natural(corpus.domains)
    if direction.between is not None:
        towards_K = direction_between(mean, *direction.between)
    elif direction.plan is not None:
        plan = direction.plan
        towards_K = Mixture.uniform(names).weights_K * 0
        for name, step in zip(plan.domains, direction_of_plan(plan), strict=True):
            towards_K[names.index(name)] = step
    else:
        towards_K = direction_of_role(mean, corpus.domains)
    intervals = math.ceil(config.train.total_steps / config.train.interval)
    methods = tuple(
        MethodChoice.model_validate({"name": "schedule", "label": label, "points": points})
        for label, points in arms(mean, towards_K, intervals, shift).items()
    )
    common = {name: getattr(config, name) for name in RunConfig.model_fields}
    return CompareConfig(**common, methods=methods, seeds=tuple(range(seeds)), baseline=HELD)


def order_test(
    wanted: CompareConfig,
    *,
    resume: bool = False,
    workers: int = 1,
    observer: Observer | None = None,
) -> tuple[OrderVerdict, list[Run]]:
    """Train the arms that are not done, and return the verdict and the runs."""
    runs = compare(wanted, resume=resume, workers=workers, observer=observer)
    return judge(runs), runs

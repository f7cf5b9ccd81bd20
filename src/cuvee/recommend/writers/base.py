"""What every writer shares: the target run's figures, weights in the unit of the format, and what
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.recommend.plan import Plan, Stage
from cuvee.recommend.tokens import Unit, to_samples


@dataclass(frozen=True)
class Target:
    """What a trainer's file needs beyond the plan: optimizer `steps`, tokens per sequence, `paths`
    of data by domain, mean
    tokens per sample by domain (`lengths`) and `samples` that each domain has.
    """

    steps: int | None = None
    sequence_length: int | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Writer:
    """`write` returns text by file name.

    `unit` is what the format's weights are shares of, `notes` what to know of it.
    """

    name: str
    unit: Unit
    write: Callable[[Plan, Target], dict[str, str]]
    notes: str = ""


def weights(stage: Stage, plan: Plan, target: Target, unit: Unit) -> dict[str, float]:
    """The weights above 0 by domain, in `unit`.

    Weights of samples are those of tokens where no lengths are given.

    Raises `ConfigError` for a stage of fewer draws than domains, and for a weight that rounds to no
    draw at all.
    """
    mixture = stage.mixture
    if unit == "samples" and target.lengths:
        mixture = to_samples(mixture, target.lengths)
    found = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
    draws = _draws(stage, plan, target, mixture, unit)
    if draws is not None:
        check_drawable(found, draws, "the stage")
    return found


def check_drawable(found: Mapping[str, float], draws: int, where: str) -> None:
    """Raises `ConfigError` if so many draws cannot hold these weights."""
    if draws < len(found):
        raise ConfigError(
            f"{where} has {draws} samples for {len(found)} domains: train longer, or drop domains"
        )
    name, weight = min(found.items(), key=lambda pair: pair[1])
    if weight * draws < 0.5:
        raise ConfigError(
            f"the weight of {name}, {weight:.3g}, is {weight * draws:.3g} of the {draws:,} samples "
            f"of {where}, which rounds "
            f"to none: drop the domain (--cap {name}=0), or raise it (--floor "
            f"{name}={0.5 / draws:.2g})"
        )


def step_of(share: float, target: Target, name: str) -> int:
    """The optimizer step at this share of the budget. Raises `ConfigError` without `steps`."""
    if target.steps is None:
        raise ConfigError(f"{name} switches stages by optimizer step: give the run's --steps")
    return round(share * target.steps)


def path_of(name: str, target: Target) -> str:
    """Where the domain's data lie; the domain's name where no path is given."""
    return target.paths.get(name, name)


def per_stage(plan: Plan, stem: str, suffix: str) -> list[tuple[Stage, str]]:
    """Each stage with its file's name, which has a number where there are several."""
    if len(plan.stages) == 1:
        return [(plan.stages[0], f"{stem}{suffix}")]
    return [(stage, f"{stem}_stage{n}{suffix}") for n, stage in enumerate(plan.stages, start=1)]


def _draws(stage: Stage, plan: Plan, target: Target, mixture: Mixture, unit: Unit) -> int | None:
    """How many sequences, or samples, the stage draws, if that is known."""
    if plan.tokens is None:
        return None
    length: float | None = target.sequence_length
    if unit == "samples" and target.lengths:
        length = sum(w * target.lengths.get(name, 0.0) for name, w in mixture.as_dict().items())
    if not length:
        return None
    return int((stage.end - stage.start) * plan.tokens / length)

"""Does the order of domains matter at fixed exposure?

Three arms with the same mean mixture, on paired seeds.

    held     w̄ all along
    early    w̄ + (1 − s) λ d until the share s of the budget, then w̄ − s λ d
    late     w̄ − (1 − s) λ d until s, then w̄ + s λ d

d is a direction: more of some domains, less of others, Σ d = 0. λ is a share of the largest value
for which no weight of any arm is negative. Each arm has the mean w̄ exactly, so differences between
arms are due to order. The switch is at the interval nearest to the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, nearest
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Run
from cuvee.evaluation.statistics import Estimate, paired_difference
from cuvee.recommend.plan import Plan

HELD, EARLY, LATE = "held", "early", "late"
# The largest difference of a domain's achieved share between arms that counts as the same exposure.
_EXPOSURE = 0.005
_FEW = 5  # seeds below which a bootstrap interval is too narrow


@dataclass(frozen=True)
class OrderVerdict:
    """Differences of the mean validation loss, paired by seed.

    A difference below 0 means that the first arm is better. `by_domain` is late minus early.
    `exposure` is the largest difference between arms of a domain's share of the tokens read.
    """

    late_less_early: Estimate
    early_less_held: Estimate
    late_less_held: Estimate
    by_domain: Mapping[str, Estimate]
    exposure: float

    @property
    def sentences(self) -> list[str]:
        """The verdict in words."""
        main = self.late_less_early
        if main.excludes_zero:
            better = LATE if main.mean < 0 else EARLY
            first = f"Order matters: {better} is better."
        else:
            first = "No effect of order is shown at this exposure."
        sentences = [f"{first} Late less early: {_said(main)} nats over {main.pairs} seeds."]
        sentences.append(
            f"Against the held mixture: early {_said(self.early_less_held)}, late "
            f"{_said(self.late_less_held)}."
        )
        if self.exposure > _EXPOSURE:
            sentences.append(
                f"The arms' exposure differs by up to {self.exposure:.2%} of the tokens of a "
                "domain, so this is no clean test: "
                "use more steps, or an even number of intervals."
            )
        if main.pairs < _FEW:
            sentences.append(f"With fewer than {_FEW} seeds the interval is too narrow: run more.")
        return sentences


def arms(
    mean: Mixture, direction_K: FloatArray, intervals: int, shift: float = 1.0
) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """The points of a schedule for each arm.

    `shift` from 0 to 1 is the share of the largest possible λ.

    Raises `ConfigError` for a run of one interval, and for a direction in which the mixture cannot
    move.
    """
    if intervals < 2:
        raise ConfigError("the run has one interval: lower train.interval, or raise train.steps")
    if not 0 < shift <= 1:
        raise ConfigError(
            f"shift is {shift:g}: give a share of the largest shift, above 0, up to 1"
        )
    switch = (intervals // 2) / intervals
    weights_K = mean.weights_K
    widest = max(switch, 1 - switch) * np.abs(direction_K)
    moving_K = widest > 0
    room = (weights_K[moving_K] / widest[moving_K]).min() if moving_K.any() else 0.0
    if room <= 0:
        raise ConfigError(
            "the mixture cannot move in this direction: a domain of it has no weight, or both "
            "sides are the same"
        )
    step_K = shift * room * direction_K

    def points(first_K: FloatArray, then_K: FloatArray) -> list[tuple[float, dict[str, float]]]:
        one, other = (
            Mixture.normalise(mean.names, np.maximum(w_K, 0.0)).as_dict()
            for w_K in (first_K, then_K)
        )
        return [(0.0, one), (switch, one), (switch, other), (1.0, other)]

    return {
        HELD: points(weights_K, weights_K),
        EARLY: points(weights_K + (1 - switch) * step_K, weights_K - switch * step_K),
        LATE: points(weights_K - (1 - switch) * step_K, weights_K + switch * step_K),
    }


def direction_between(mean: Mixture, less: str, more: str) -> FloatArray:
    """(K,) from one domain to another. "early" then has more of `more` early."""
    for name in (less, more):
        if name not in mean.names:
            raise ConfigError(f"no domain {name!r}{nearest(name, mean.names)}")
    return np.array([float(name == more) - float(name == less) for name in mean.names])


def direction_of_role(mean: Mixture, domains: Sequence[Domain]) -> FloatArray:
    """(K,) from source to target domains, each side in proportion to its weights."""
    target_K = np.array([domain.is_target for domain in domains])
    weights_K = mean.weights_K
    sides = [weights_K * target_K, weights_K * ~target_K]
    if any(side.sum() <= 0 for side in sides):
        raise ConfigError(
            "--role needs domains of both roles with weight: build the corpus with --target NAME"
        )
    return np.asarray(sides[0] / sides[0].sum() - sides[1] / sides[1].sum())


def direction_of_plan(plan: Plan) -> FloatArray:
    """Return the (K,) direction from the plan's last stage to its first.

    The arm "early" then moves weights in the same direction as the plan.
    """
    if len(plan.stages) < 2:
        raise ConfigError(
            "the plan has one stage, and so no order to test: use --between or --role"
        )
    return plan.stages[0].mixture.weights_K - plan.stages[-1].mixture.weights_K


def judge(runs: Sequence[Run]) -> OrderVerdict:
    """From finished runs whose configuration says which arm each is (`method.label`)."""
    losses: dict[str, dict[int, dict[str, float]]] = {HELD: {}, EARLY: {}, LATE: {}}
    read: dict[str, list[Any]] = {HELD: [], EARLY: [], LATE: []}
    for run in runs:
        label = run.config["method"]["label"]
        measured = run.trajectory.last.probes.get("valid_loss")
        if label not in losses or measured is None or run.trajectory.last.progress < 1:
            continue
        there = zip(run.trajectory.names, measured.values, measured.present, strict=True)
        losses[label][run.seed] = {name: float(loss) for name, loss, known in there if known}
        tokens_K = sum(signals.tokens_K for signals in run.trajectory.signals)
        read[label].append(tokens_K / np.sum(tokens_K))
    missing = [label for label, found in losses.items() if not found]
    if missing:
        raise ConfigError(f"no finished run of {', '.join(missing)} with a validation loss")
    shares = np.array([np.mean(found, axis=0) for found in read.values()])
    names = next(iter(losses[HELD].values()))
    return OrderVerdict(
        late_less_early=_difference(losses[LATE], losses[EARLY], tuple(names)),
        early_less_held=_difference(losses[EARLY], losses[HELD], tuple(names)),
        late_less_held=_difference(losses[LATE], losses[HELD], tuple(names)),
        by_domain={name: _difference(losses[LATE], losses[EARLY], (name,)) for name in names},
        exposure=float(np.ptp(shares, axis=0).max()),
    )


def _difference(
    ours: Mapping[int, Mapping[str, float]],
    theirs: Mapping[int, Mapping[str, float]],
    names: Sequence[str],
) -> Estimate:
    means = [
        {seed: float(np.mean([losses[name] for name in names])) for seed, losses in found.items()}
        for found in (ours, theirs)
    ]
    found = paired_difference(*means)
    if found is None:
        raise ConfigError("the arms share no seed: run all arms with the same seeds")
    return found


def _said(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f} (one seed: no interval)"
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"

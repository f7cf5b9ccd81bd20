"""Proxy runs with given schedules, as `cuvee recommend --next` writes them.

The result is the mean mixture of the best run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.methods.regmix.runs import last_losses
from cuvee.policies.fixed import Fixed, Scheduled

_SAME = 1e-6  # largest total variation between a run's mixtures and the given schedule


@register_method("designed")
@dataclass(frozen=True)
class Designed:
    """The method: proposes the given runs and commits to the best one.

    `runs` holds, for each run, the points `[progress, {domain: share}]` of a schedule, as in the
    method `schedule`. The policy is the mean mixture of the logged run with the lowest mean
    validation loss. The main purpose is to log runs that `cuvee recommend` then fits.
    """

    runs: Sequence[Sequence[tuple[float, Mapping[str, float]]]]

    grows: ClassVar[tuple[str, ...]] = ("runs",)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs is empty: give the points of at least one run")
        for points in self.runs:
            Scheduled(points)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        """Return the policies of the runs that are not logged.

        Raises `ConfigError` if a run names an unknown domain.
        """
        names = {domain.name for domain in corpus.domains}
        unknown = sorted(
            {name for points in self.runs for _, shares in points for name in shares} - names
        )
        if unknown:
            raise ConfigError(
                f"runs name {', '.join(unknown)}, but the corpus has {', '.join(sorted(names))}"
            )
        wanted = [Scheduled(points) for points in self.runs]
        return [policy for policy in wanted if not any(_done(policy, run) for run in logged)]

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the static mixture. Raises `PolicyError` if no run has a validation loss."""
        ends: list[tuple[float, Any]] = []
        for run in logged:
            losses = last_losses(run.trajectory.last)
            if losses and len(run.trajectory):
                ends.append((sum(losses.values()) / len(losses), run))
        if not ends:
            raise PolicyError("no run has a validation loss: set train.validation_tokens above 0")
        _, best = min(ends, key=lambda end: end[0])
        mean_K = best.trajectory.weights_TK().mean(axis=0)
        return Fixed(Mixture.normalise(best.trajectory.names, mean_K))


def _done(policy: Scheduled, run: Run) -> bool:
    so_far = run.trajectory
    return len(so_far) > 0 and all(
        policy.at(before.progress, mixture.names).total_variation(mixture) < _SAME
        for before, mixture, _ in so_far
    )

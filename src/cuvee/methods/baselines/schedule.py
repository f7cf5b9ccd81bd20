"""A schedule that the user gives: mixtures at points of progress, linear between them.

Use it for curricula and annealing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.fixed import Scheduled


@register_method("schedule")
@dataclass(frozen=True)
class Schedule:
    """The method: needs no proxy runs and commits to the schedule.

    `points` are pairs of progress and shares by domain name, for example [[0.0, {web: 3, maths:
    1}], [1.0, {web: 1, maths: 3}]].
    """

    points: Sequence[tuple[float, Mapping[str, float]]]

    def __post_init__(self) -> None:
        Scheduled(self.points)  # raises for bad points here, not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy. Raises `ConfigError` if a point names an unknown domain."""
        names = [domain.name for domain in corpus.domains]
        unknown = sorted({name for _, shares in self.points for name in shares} - set(names))
        if unknown:
            raise ConfigError(
                f"points name {', '.join(unknown)}, but the corpus has {', '.join(names)}"
            )
        return Scheduled(self.points)

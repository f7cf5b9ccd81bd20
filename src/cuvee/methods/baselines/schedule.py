"""A schedule that the user gives: shares by domain at points of progress, linear between them (curricula, annealing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.schedule import Scheduled


@register_method("schedule")
@dataclass(frozen=True)
class Schedule:
    """`points`: [[0.0, {web: 3, maths: 1}], [1.0, {web: 1, maths: 3}]]."""

    points: Sequence[tuple[float, Mapping[str, float]]]

    def __post_init__(self) -> None:
        Scheduled(self.points)  # refuses bad points now and not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        names = [domain.name for domain in corpus.domains]
        unknown = sorted({name for _, shares in self.points for name in shares} - set(names))
        if unknown:
            raise ConfigError(
                f"points name {', '.join(unknown)}, but the corpus has {', '.join(names)}"
            )
        return Scheduled(self.points)

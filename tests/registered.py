"""The registered methods that steer a run with their defaults only, without proxies."""

from __future__ import annotations

from dataclasses import dataclass

from cuvee.core.domain import Domain
from cuvee.core.errors import CuveeError
from cuvee.core.registry import METHODS


@dataclass(frozen=True)
class Space:
    domains: tuple[Domain, ...]


SPACE = Space(
    (
        Domain("web", 900, scores={"mtld": 50.0}),
        Domain("code", 100, scores={"mtld": 40.0}),
        Domain("math", 1000, role="target", scores={"mtld": 60.0}),
    )
)


def methods_that_steer_alone() -> list[str]:
    return [name for name in METHODS.names() if _steers_alone(name)]


def _steers_alone(name: str) -> bool:
    try:
        method = METHODS.get(name)()
        return not method.propose(SPACE, ()) and method.commit(SPACE, ()) is not None
    except (TypeError, CuveeError):
        return False

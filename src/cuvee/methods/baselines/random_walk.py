"""Random: a random walk on the simplex. A baseline of Data Mixing Agent (arXiv 2507.15640 §4), whose paper does not give its law.

Propose: nothing. Commit: `RandomWalk`. The formula is in `cuvee.policies.random_walk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.random_walk import RandomWalk as RandomWalkPolicy


@register_method("random_walk")
@dataclass(frozen=True)
class RandomWalk:
    step: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        RandomWalkPolicy(
            self.seed, self.step
        )  # refuses a bad value now and not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return RandomWalkPolicy(self.seed, self.step)

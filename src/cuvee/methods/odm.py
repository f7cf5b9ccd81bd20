"""ODM, online data mixing: a bandit whose reward is the training loss.

Source: Albalak et al. 2023, arXiv 2312.02406. It proposes no proxy runs and commits to `Exp3`,
which learns on the target run. `cuvee.policies.exp3` has the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import register_method
from cuvee.core.trajectory import Run
from cuvee.policies.exp3 import Exp3


@register_method("odm")
@dataclass(frozen=True)
class ODM:
    """Online data mixing. `smoothing` is ξ of `Exp3`."""

    smoothing: float = 0.9

    def __post_init__(self) -> None:
        Exp3(self.smoothing)  # raises for a bad value here, not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return Exp3(self.smoothing)

"""ODM, online data mixing (Albalak et al. 2023, arXiv 2312.02406): a bandit that follows the training loss.

Propose: nothing. Commit: `Exp3`, which learns on the target run itself. The formula is in `cuvee.policies.exp3`.
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
    smoothing: float = 0.9

    def __post_init__(self) -> None:
        Exp3(self.smoothing)  # refuses a bad value now and not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return Exp3(self.smoothing)

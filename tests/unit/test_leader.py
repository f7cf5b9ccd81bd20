"""A process alone: every exchange is free, and a leader's policy is the policy."""

from __future__ import annotations

import pytest
import torch

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.policies.exp3 import Exp3
from cuvee.testing.policy import PolicySuite
from cuvee.training.distributed import Leader, Ranks


class TestLeader(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return Leader(Exp3(), Ranks())


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.connect()
    assert (ranks.rank, ranks.size) == (0, 1)
    total = torch.ones(3)
    ranks.sum(total, "nothing")
    ranks.from_first(total, "nothing")
    ranks.same("nothing", Mixture.uniform(("a", "b")).digest())
    assert total.tolist() == [1.0, 1.0, 1.0]
    ranks.close()

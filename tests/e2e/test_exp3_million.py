"""ODM over a very long run. A published implementation overflows to NaN after 800 updates."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.exp3 import Exp3
from cuvee.testing.policy import some_domains


@pytest.mark.training
def test_a_million_updates_at_constant_loss_stay_finite() -> None:
    policy, domains = Exp3(), some_domains(5)
    constant = Signals(domains, 1, 0.5, np.ones(5, dtype=np.int64), Measured.all(np.full(5, 3.0)))
    so_far = Trajectory([constant, constant], [Mixture.uniform(constant.names)])
    for update in range(1_000_000):
        policy.learn(so_far)
        if update < 2_000 or update % 10_000 == 0:
            assert policy.mixture(so_far).weights_K == pytest.approx([0.2] * 5)
    assert np.isfinite(list(policy.state_dict()["rewards"].values())).all()

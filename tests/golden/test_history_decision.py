"""The decisions of a seeded history policy at K = 3.

They change only if an existing policy file would decide differently.
"""

from __future__ import annotations

import numpy as np
import torch

from cuvee.core.trajectory import Trajectory
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.testing.policy import ScriptedTrainer, some_domains

GOLDEN = np.array(
    [
        [0.288592, 0.677452, 0.033955],
        [0.243092, 0.606960, 0.149948],
        [0.208238, 0.499458, 0.292304],
        [0.177551, 0.426019, 0.396430],
    ]
)


def test_decisions_of_a_seeded_policy() -> None:
    policy, trainer = HistoryPolicy("small", seed=7), ScriptedTrainer(some_domains(3), intervals=4)
    with torch.no_grad():
        policy.actor.head.weight.mul_(
            50.0
        )  # which starts near zero and would hide what the network says
    so_far = Trajectory.start(trainer.start(()))
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
    np.testing.assert_allclose(so_far.weights_TK(), GOLDEN, atol=2e-5)

"""The drawn laws and a run's first signals stay the same in later versions.

So benchmarks of different days can be compared.
"""

from __future__ import annotations

import pytest

from cuvee.core.mixture import Mixture
from cuvee.simulation.simulator import ScalingLaws, Simulator


def test_first_signals() -> None:
    simulator = Simulator(ScalingLaws.draw(3, seed=7), seed=11)
    first = simulator.start(())
    second = simulator.advance(Mixture.normalise(first.names, [1, 2, 3]))
    assert first.probes["valid_loss"].values.tolist() == pytest.approx(
        [6.935527214009859, 5.166478167986622, 6.050597349073528]
    )
    assert second.loss.values.tolist() == pytest.approx(
        [4.40883609505193, 4.011157923237588, 4.928712070706497]
    )
    assert second.tokens_K.tolist() == [166667, 333333, 500000]
    assert simulator.valued_loss() == pytest.approx(4.543440222387884)

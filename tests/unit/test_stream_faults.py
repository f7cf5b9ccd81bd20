"""Every measurement of the stream catches the faults planted for it."""

import pytest

from cuvee.testing.stream_faults import planted
from cuvee.testing.stream_measures import Scenario, golden_order, make_corpus

SCENARIO = Scenario.random(
    make_corpus({"web": 20_000, "code": 6_000, "books": 700, "note": 9}), 100, 8, log_seed=5
)
FAULTS = planted(SCENARIO, 100, golden_order(960), 960)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    assert FAULTS[fault]()

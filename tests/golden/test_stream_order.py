"""The order of the stream is a format.

A run must resume on another machine, with another Python or numpy, and in later versions. The same
hashes came from Python 3.10 to 3.13 with numpy 1.26, 2.0, 2.1, 2.3 and 2.4
(benchmarks/golden_order.py). If the order is changed on purpose, raise the format number of the
stream's state, so that old states are refused with a clear error.
"""

from cuvee.testing.stream_measures import golden_order

GOLDEN = {
    960: "59aec9a2a428aa03adba29e05c30a92227411ed6f1b201e0a2cf4fc942400dcf",
    10_000: "450b7c0e5715944dcfcb547f3fe0875890b8a6d7456a42729581dbd58f51eb07",
}


def test_the_order_is_the_one_that_was_promised() -> None:
    assert {samples: golden_order(samples) for samples in GOLDEN} == GOLDEN

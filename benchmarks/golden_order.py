"""The hash of the first rows of a fixed stream. It is equal on every platform, Python and numpy.

    PYTHONPATH=src ANY_PYTHON_WITH_NUMPY benchmarks/golden_order.py

Needs numpy and nothing else. The expected hashes are in tests/golden/test_stream_order.py.
"""

import json
import platform

import numpy as np

from cuvee.testing.stream_measures import golden_order

if __name__ == "__main__":
    environment = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    print(
        json.dumps(
            {**environment, **{str(samples): golden_order(samples) for samples in (960, 10_000)}}
        )
    )

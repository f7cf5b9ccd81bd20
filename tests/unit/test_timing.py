"""The peak memory of a program is its own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import numpy
from cuvee.recipes.progress.timing import peak_memory
small = peak_memory()
numpy.ones(50_000_000)
print(small, peak_memory() - small)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not inherit the peak")
def test_peak_memory_is_of_this_program_and_not_of_the_one_that_started_it() -> None:
    held = np.ones(125_000_000)  # 1 GB, all of it touched
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)},
        preexec_fn=int,  # starts the program by fork, which hands `ru_maxrss` on
    )
    small, more = map(int, done.stdout.split())
    assert 50e6 < small < 0.8 * held.nbytes
    assert 300e6 < more < 500e6

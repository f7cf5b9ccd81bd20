"""The example prints what it says: one hash, twice."""

import subprocess
import sys
from pathlib import Path


def test_the_hashes_are_the_same() -> None:
    example = Path(__file__).parents[2] / "examples" / "change_weights.py"
    printed = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(printed) == 2
    assert printed[0] == printed[1]

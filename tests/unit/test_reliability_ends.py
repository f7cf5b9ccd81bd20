"""The reliability benchmark leaves no process behind when it is asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, time
from reliability.ending import end_all_on_signals
end_all_on_signals()
subprocess.Popen(["sh", "-c", "sleep 300 & echo $!; sleep 300"], start_new_session=True)
time.sleep(300)
"""


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_processes_of_all_tests(number: signal.Signals) -> None:
    """Planted fault: without the handler, both sleeping processes go on."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert program.stdout
    grandchild = int(program.stdout.readline())
    assert is_running(grandchild)
    program.send_signal(number)
    assert program.wait(timeout=30) == 128 + number
    deadline = time.monotonic() + 10
    while is_running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(grandchild)

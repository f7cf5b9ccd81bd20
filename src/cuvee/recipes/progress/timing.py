"""Measures how fast a run trains on this machine."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

import torch

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, Trainer
from cuvee.core.trajectory import Cost, Trajectory

TIMED_SECONDS = 2.0  # seconds of training for an estimate, or two intervals if they take longer


def time_training(trainer: Trainer, policy: Policy) -> tuple[Mixture, float, int]:
    """Train about two seconds; return the policy's first mixture, the seconds and the steps.

    The first interval is not timed if there are others. It is slower, because it allocates memory
    and selects kernels.
    """
    so_far = Trajectory.start(trainer.start(policy.probes))
    first = mixture = policy.mixture(so_far)
    before = time.perf_counter()
    began = intervals = 0
    while not trainer.done and (intervals < 2 or time.perf_counter() - before < TIMED_SECONDS):
        so_far = so_far.append(mixture, trainer.advance(mixture))
        policy.learn(so_far)
        intervals += 1
        if trainer.done:
            break
        mixture = policy.mixture(so_far)
        if intervals == 1:
            before = time.perf_counter()
            began = so_far.last.step
    return first, time.perf_counter() - before, so_far.last.step - began


def validated_seconds(seconds: float, priced: Cost, unvalidated: Cost) -> float:
    """Return the seconds of a run with validation, from those without: in proportion to FLOPs."""
    return seconds * priced.flops / unvalidated.flops if unvalidated.flops else seconds


def peak_memory() -> int:
    """Return the peak of allocated memory so far in bytes: on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # On Linux, `ru_maxrss` of a program includes the process that started it.
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0

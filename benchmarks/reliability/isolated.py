"""`alone`: runs a test in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from multiprocessing.connection import Connection

import torch

from reliability import agents, checkpoints, files, fleet, ranks, secrets, stream  # noqa: F401
from reliability.measure import TESTS, Result


def attempt(number: int, full: bool, told: Connection) -> None:
    """Send what a test found, and its seconds. A test that cannot be run is a test that failed."""
    torch.set_num_threads(1)
    # A spawned process spawns its children too. Loaders are to start theirs as in a user's program.
    multiprocessing.set_start_method(None, force=True)
    began = time.monotonic()
    try:
        result = TESTS[number][1](full)
    except Exception as error:
        traceback.print_exc()
        result = not_measured(f"{type(error).__name__}: {error}")
    told.send((result, round(time.monotonic() - began, 1)))


def alone(number: int, full: bool) -> tuple[Result, float]:
    """Return what a test found in a process of its own, and its seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(number, full, sender))
    process.start()
    sender.close()
    try:
        found: tuple[Result, float] = receiver.recv()
    except EOFError:
        process.join()
        return not_measured(f"its process ended with exit code {process.exitcode}"), 0.0
    process.join()
    return found


def not_measured(why: str) -> Result:
    return Result("0", f"not measured: {why}"[:90], "", False, {})

"""Ends all processes that a program has started when it is asked to end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def end_all_on_signals() -> None:
    """End this process and all below it at the next SIGTERM or SIGINT.

    Tests start fleets in sessions of their own, which no signal to this process reaches.
    """

    def end(number: int, _: object) -> None:
        end_descendants()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def end_descendants() -> None:
    """Kill all processes below this one. They are stopped first, so that none starts another."""
    stopped: set[int] = set()
    while new := set(descendants(os.getpid())) - stopped:
        for pid in new:
            _send(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        _send(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, parents first. Needs Linux's /proc."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += below.get(one, [])
    return found[1:]


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)

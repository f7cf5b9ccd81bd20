"""Who holds a claim, in a form that tells whether that process still lives, so that a killed run need not wait out its lease."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def worker_name() -> str:
    """`host/pid-namespace/pid/start`: names this process and no other, before or after it."""
    return f"{_host()}/{os.getpid()}/{_started(os.getpid())}"


def is_dead(worker: str) -> bool:
    """True only if `worker` was a process of this host and is certainly gone; a process elsewhere may always be alive."""
    host, _, process = worker.rpartition("/")
    host, _, pid = host.rpartition("/")
    if host != _host() or not pid.isdecimal() or not process:
        return False
    return _started(int(pid)) != process


def _host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        namespace = "0"
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> str | None:
    """When the kernel started `pid`, in clock ticks since boot; None if there is no such process, or it is a zombie."""
    if not Path(
        "/proc/self/stat"
    ).exists():  # not Linux: only whether the number is in use can be told
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "0"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]

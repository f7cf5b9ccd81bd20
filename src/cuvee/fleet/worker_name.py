"""Names of workers from which one can tell whether the process is still alive.

The run of a killed worker on this host can therefore be claimed before its lease expires.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def worker_name() -> str:
    """Return `host/pid-namespace/pid/start`, a name that no other process ever has."""
    return f"{_host()}/{os.getpid()}/{_started(os.getpid())}"


def readable(worker: str | None) -> str:
    """Return `process PID on HOST` for the name of a worker, and any other text as it is."""
    host, *rest = (worker or "another process").split("/")
    return f"process {rest[1]} on {host}" if len(rest) == 3 else (worker or host)


def is_alive(worker: str) -> bool | None:
    """Return whether `worker` is a process of this host that runs; None if it is on another."""
    host, _, process = worker.rpartition("/")
    host, _, pid = host.rpartition("/")
    if host != _host() or not pid.isdecimal() or not process:
        return None
    return _started(int(pid)) == process


def _host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        namespace = "0"
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> str | None:
    """Return when the kernel started `pid`, in clock ticks since boot.

    Returns None if there is no such process, or if it is a zombie.
    """
    if not Path("/proc/self/stat").exists():  # not Linux: only the use of the pid is known
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

"""Names of workers from which one can tell whether the process is still alive.

The run of a killed worker on this host can therefore be claimed before its lease expires.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from cuvee.core.errors import StoreError


def worker_name() -> str:
    """Return `host/pid-namespace/pid/start`, a name that no other process ever has.

    Raises `StoreError` if the operating system does not say when this process started.
    """
    try:
        return f"{_host()}/{os.getpid()}/{_started(os.getpid())}"
    except OSError as error:
        raise StoreError(
            f"this process cannot be named, because /proc cannot be read: {error.strerror}; if too "
            "many files are open, raise the limit (`ulimit -n`)"
        ) from error


def readable(worker: str | None) -> str:
    """Return `process PID on HOST` for the name of a worker, and any other text as it is."""
    host, *rest = (worker or "another process").split("/")
    return f"process {rest[1]} on {host}" if len(rest) == 3 else (worker or host)


def is_alive(worker: str) -> bool | None:
    """Return whether `worker` is a process of this host that runs.

    Returns None if it is on another host, or if this process cannot tell: it may have too many
    open files, or may not see the processes of other users.
    """
    host, _, process = worker.rpartition("/")
    host, _, pid = host.rpartition("/")
    if host != _host() or not pid.isdecimal() or not process:
        return None
    try:
        return _started(int(pid)) == process
    except (OSError, ValueError):  # `ValueError`: a number that no process has
        return None


def _host() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        namespace = "0"
    return f"{socket.gethostname()}/{namespace}"


def _started(pid: int) -> str | None:
    """Return when the kernel started `pid`, in clock ticks since boot.

    Returns None if there is no such process, or if it is a zombie. Raises `OSError` if it exists
    and cannot be read.
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
    except (FileNotFoundError, ProcessLookupError):
        with suppress(ProcessLookupError, OverflowError):
            os.kill(pid, 0)  # raises `PermissionError` for a process that /proc hides
        return None
    return None if fields[0] in "ZX" else fields[19]

"""Planted faults: disks that fail and processes that die at a chosen file-system call.

    with failing(FailAt(7, errno.ENOSPC)) as faults:
        checkpoints.save(step, state)
    faults.fired         whether there was a call number 7 (0-based)

The counted calls change a disk or make a change durable: opening for writing, writing, fsync,
rename, mkdir, unlink, rmdir, and saving a safetensors file.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import safetensors.numpy
from safetensors import SafetensorError

_OS_CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


class Fault:
    """Base class: counts calls without changing them."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.calls: list[str] = []

    @property
    def fired(self) -> bool:
        return 0 <= self.at < len(self.calls)

    def reach(self, call: str) -> None:
        """Called before each counted call."""
        self.calls.append(call)
        if len(self.calls) - 1 == self.at:
            self.strike(call)

    def strike(self, call: str) -> None: ...


class FailAt(Fault):
    """Call number `at` (0-based) raises an `OSError`, or the safetensors error that wraps it."""

    def __init__(self, at: int, code: int = errno.ENOSPC) -> None:
        super().__init__(at)
        self.code = code

    def strike(self, call: str) -> None:
        error = OSError(self.code, os.strerror(self.code))
        raise (
            SafetensorError(f"Error while serializing: I/O error: {error}")
            if call == "save_file"
            else error
        )


class KillAt(Fault):
    """The process kills itself with SIGKILL before call number `at`. Use it in a child process."""

    def strike(self, call: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def failing(fault: Fault) -> Iterator[Fault]:
    """Apply `fault` to the file-system calls of this process inside the block."""
    opener = _opener(fault, io.open)
    with ExitStack() as patches:
        for name in _OS_CALLS:
            patches.enter_context(
                mock.patch.object(os, name, _counted(fault, name, getattr(os, name)))
            )
        for module, name, replacement in (
            (builtins, "open", opener),
            (io, "open", opener),
            (safetensors.numpy, "save_file", _save_file(fault, safetensors.numpy.save_file)),
        ):
            patches.enter_context(mock.patch.object(module, name, replacement))
        yield fault


def _counted(fault: Fault, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        fault.reach(name)
        return call(*arguments, **options)

    return counted


def _opener(fault: Fault, call: Callable[..., Any]) -> Callable[..., Any]:
    def opener(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return call(file, mode, *arguments, **options)
        fault.reach("open")
        return _Written(fault, call(file, mode, *arguments, **options))

    return opener


class _Written:
    """A file in which each write may fail after half of the data."""

    def __init__(self, fault: Fault, file: Any) -> None:
        self._fault = fault
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._fault.reach("write")
        self._file.write(data[len(data) // 2 :])
        return len(data)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _save_file(fault: Fault, call: Callable[..., Any]) -> Callable[..., Any]:
    def save_file(tensors: Any, filename: Any, *arguments: Any, **options: Any) -> None:
        call(tensors, filename, *arguments, **options)
        whole = os.path.getsize(filename)
        os.truncate(filename, whole // 2)
        fault.reach("save_file")
        call(tensors, filename, *arguments, **options)

    return save_file

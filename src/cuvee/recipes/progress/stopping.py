"""Stopping without loss of work.

The first Ctrl-C lets the interval end and saves it. The second ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Protocol, Self


class Stopped(BaseException):
    """Work ended early because of `signal`. This is not an error.

    Everything done so far is on disk. The message says how much that is.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


class Stop(Protocol):
    @property
    def signal(self) -> int | None:
        """The signal of a stop request, or None."""
        ...


class PipedStop:
    """Stop requests for a worker process: any message from the parent, or the parent's death."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @property
    def signal(self) -> int | None:
        return signal.SIGTERM if self._pipe.poll() else None


class StopRequest:
    """Inside its block, SIGINT and SIGTERM set `signal`; a second one ends the process.

    The first one also calls `asked`, in the signal handler. Outside the main thread, Python
    delivers no signals and `signal` stays None.
    """

    def __init__(self, asked: Callable[[], None] = lambda: None) -> None:
        self._asked = asked
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def signal(self) -> int | None:
        return self._signal

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        self._asked()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

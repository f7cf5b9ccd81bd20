"""Stopping without loss: the first Ctrl-C lets the interval end and be saved, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Protocol, Self


class Stopped(BaseException):
    """No error: work ended early because it was asked to by `signal`; what was done is on disk, and the message says how much."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


class Stop(Protocol):
    @property
    def signal(self) -> int | None:
        """What asked to stop, if anything did."""
        ...


class PipedStop:
    """For a process that another one started: asked by anything on the line between them, or by its end, the other's death."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    @property
    def signal(self) -> int | None:
        return signal.SIGTERM if self._line.poll() else None


class StopRequest:
    """While it is entered, SIGINT and SIGTERM set `signal` instead of ending the process; a second one does end it.

    Off the main thread, where Python has no signals, it never asks for anything.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def signal(self) -> int | None:
        return self._signal

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

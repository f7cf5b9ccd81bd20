"""`Deadline`: waits for a policy's answer for a limited time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class TooLate(Exception):
    """A policy did not answer in time."""


class Deadline:
    """Calls functions, and waits for each at most `seconds`; None waits without limit.

    A thread cannot be stopped. So the function that is too late goes on in the background, its
    result is dropped, and until it has ended every other call is refused at once. Under a limit,
    no two functions therefore run at the same time.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._asked: Future[Any] | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises. Raises `TooLate`."""
        if self._seconds is None:
            return work()
        if self._asked is not None and not self._asked.done():
            raise TooLate("an earlier decision has not ended yet")
        asked: Future[T] = Future()

        def answer() -> None:
            try:
                asked.set_result(work())
            except BaseException as error:
                asked.set_exception(error)

        self._asked = asked
        # A daemon: a policy that hangs must not keep the process from ending.
        Thread(target=answer, name="cuvee-decision", daemon=True).start()
        wait([asked], self._seconds)  # unlike `result`, it tells a policy's own TimeoutError apart
        if not asked.done():
            raise TooLate(f"no decision within {self._seconds:g} s")
        return asked.result()

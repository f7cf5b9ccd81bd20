"""`WorkerPool`: worker processes, one core each, that answer in the order they were asked and never outlive their parent."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Any, TypeVar

from cuvee.core.errors import CorpusError

Result = TypeVar("Result")
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class WorkerPool:
    """`workers` spawned processes, or with one worker this very process. Use it in a `with` statement."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(
                workers, mp_context=get_context("spawn"), initializer=_settle
            )

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]:
        """`function(*call)` for each call, in order; calls are drawn only a little ahead of the answers taken."""
        if self._pool is None:
            yield from (function(*call) for call in calls)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for call in calls:
                waiting.append(self._pool.submit(function, *call))
                if len(waiting) > 2 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise CorpusError(
                "a worker process died, perhaps for want of memory: run the same again to continue, with fewer workers "
                '(from a script, call build under `if __name__ == "__main__":`)'
            ) from error


def _settle() -> None:
    """In a worker: one thread, Ctrl-C is the parent's business, and an end when the parent has ended."""
    os.environ.update(_ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

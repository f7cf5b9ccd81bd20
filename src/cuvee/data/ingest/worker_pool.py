"""`WorkerPool`: worker processes that return results in order and end with their parent."""

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
    """A pool of `workers` spawned processes. Use it in a `with` block.

    With one worker, functions run in this process.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(
                workers, mp_context=get_context("spawn"), initializer=_set_up_worker
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
        """Yield `function(*call)` for each call, in order.

        Calls are drawn at most 2 × `workers` ahead of the results. Raises `CorpusError` if a worker
        dies.
        """
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
                "a worker process died, perhaps out of memory: run the same command again with "
                "fewer workers to resume "
                '(from a script, call build under `if __name__ == "__main__":`)'
            ) from error


def _set_up_worker() -> None:
    """Set up a worker: one thread, Ctrl-C is ignored, and it exits when its parent does."""
    os.environ.update(_ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""Streams inside torch's loaders: worker processes gather the rows, the order and the state stay those of the stream.

    for batch in StreamLoader(stream, num_workers=4):      # stream.state_dict() is always that of the batches delivered
        ...

`StreamDataset` alone suits `torch.utils.data.DataLoader` and torchdata's `StatefulDataLoader`, with `batch_size=None`.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cuvee.core.errors import MixtureError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.data.stream.stream import MixtureStream


class StreamDataset(IterableDataset[Batch]):
    """The next `steps` global steps of a stream, or all of them. Worker w of n draws every n-th step from the w-th on, which
    torch's loaders put back into the global order, so the batches are the same with any number of workers.

    Mixtures reach the workers through an append-only file that they read before each draw.
    """

    def __init__(self, stream: MixtureStream, steps: int | None = None) -> None:
        super().__init__()
        self.stream = stream
        self.steps = steps
        self._next = 0
        self._resume_at: int | None = None
        self._start_log()

    def _start_log(self) -> None:
        descriptor, self._log = tempfile.mkstemp(prefix="cuvee-stream-", suffix=".jsonl")
        os.close(descriptor)
        self._offset = 0
        weakref.finalize(self, _remove_in, os.getpid(), self._log)

    def __getstate__(self) -> dict[str, Any]:
        """A worker process shares the log of mixtures; any other copy gets a log of its own."""
        state = self.__dict__.copy()
        if get_spawning_popen() is None:
            del state["_log"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_log" not in state:
            self._start_log()

    def set_mixture(self, mixture: Mixture, at_step: int) -> MixtureUpdate:
        """Logs a mixture here and for the workers. No worker may have drawn `at_step` yet."""
        update = self.stream.set_mixture(mixture, at_step)
        with open(self._log, "ab") as file:
            file.write(json.dumps(update.to_json()).encode() + b"\n")
        return update

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self.stream.stride = workers
        begin = self.stream.position
        end = None if self.steps is None else begin + self.steps
        self._next = begin + index if self._resume_at is None else self._resume_at
        self._resume_at = None
        while end is None or self._next < end:
            if worker:
                self._catch_up()
            self.stream.seek(self._next)
            batch = next(self.stream)
            self._next += workers
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """For torchdata's `StatefulDataLoader`, which keeps one for each worker. Prefer the stream's own, which is global."""
        return {"stream": self.stream.state_dict(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        self._resume_at = state["next"]

    def _catch_up(self) -> None:
        """Applies what was logged since the last draw. A row is whole once its newline is there."""
        if os.stat(self._log).st_size == self._offset:
            return
        with open(self._log, "rb") as file:
            file.seek(self._offset)
            rows = file.read()
        rows = rows[: rows.rfind(b"\n") + 1]
        self._offset += len(rows)
        for row in rows.splitlines():
            update = MixtureUpdate.from_json(json.loads(row))
            if update.version > self.stream.last_version:
                self.stream.set_mixture(update.mixture, update.step)


def _remove_in(process: int, path: str) -> None:
    """Removes the log, but not when a worker drops its copy of the dataset."""
    if os.getpid() == process:
        os.unlink(path)


class StreamLoader:
    """Batches of a stream in order, gathered by `num_workers` processes that run up to `num_workers × prefetch` steps ahead.

    The stream in this process stands where the last delivered batch ends, whatever the workers have prepared, so its state is
    right to save at any time. A mixture takes effect at the first step that no worker may have drawn, `first_open_step`, or
    later.
    """

    def __init__(
        self,
        stream: MixtureStream,
        num_workers: int = 0,
        prefetch: int = 2,
        steps: int | None = None,
    ) -> None:
        self.stream = stream
        self._dataset = StreamDataset(stream, steps)
        self._workers, self._prefetch = num_workers, prefetch
        self._running = False

    @property
    def first_open_step(self) -> int:
        """The first step that a mixture can still change."""
        return self.stream.position + (self._workers * self._prefetch if self._running else 0)

    def set_mixture(self, mixture: Mixture, at_step: int | None = None) -> MixtureUpdate:
        """Logs `mixture` as effective from `at_step`, by default `first_open_step`."""
        step = self.first_open_step if at_step is None else at_step
        if step < self.first_open_step:
            raise MixtureError(
                f"step {step} may be drawn already: {self._workers} workers prepare {self._prefetch} batches each, "
                f"so the first step that a mixture can still change is {self.first_open_step}"
            )
        return self._dataset.set_mixture(mixture, step)

    def __iter__(self) -> Iterator[Batch]:
        prefetch = self._prefetch if self._workers else None
        loader = DataLoader(
            self._dataset, batch_size=None, num_workers=self._workers, prefetch_factor=prefetch
        )
        self._running = True
        try:
            for batch in loader:
                if self._workers:
                    self._deliver(batch)
                yield batch
        finally:
            self._running = False

    def _deliver(self, batch: Batch) -> None:
        """Moves the stream to the end of a batch that a worker drew, and checks that both followed the same log."""
        self.stream.seek(batch.step)
        if self.stream.log_digest != batch.log_digest:
            raise TrainingError(
                f"at step {batch.step} a loader's worker followed mixture log {batch.log_digest[:12]}, this process "
                f"{self.stream.log_digest[:12]}: set mixtures through the loader, and change domains between two iterations"
            )
        self.stream.seek(batch.step + 1)

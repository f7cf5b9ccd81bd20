"""Streams in PyTorch's data loaders. Worker processes read the rows; the order does not change.

    for batch in StreamLoader(stream, num_workers=4):
        ...  # stream.state_dict() always covers exactly the delivered batches

`StreamDataset` alone works with `torch.utils.data.DataLoader` and torchdata's `StatefulDataLoader`,
with `batch_size=None`.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing.context import get_spawning_popen
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cuvee.core.errors import MixtureError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.data.stream.stream import MixtureStream


class UpdateFile:
    """An append-only file that sends updates of the mixture, as JSON, to a loader's workers.

    One process appends and its workers read. The file is removed with the object that created it.
    """

    def __init__(self) -> None:
        self._create()

    def _create(self) -> None:
        descriptor, self._path = tempfile.mkstemp(prefix="cuvee-stream-", suffix=".jsonl")
        os.close(descriptor)
        self._offset = 0
        weakref.finalize(self, _remove_in, os.getpid(), self._path)

    def __getstate__(self) -> dict[str, Any]:
        """Share the file with worker processes; give any other copy its own file."""
        return {"_path": self._path, "_offset": self._offset} if get_spawning_popen() else {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not state:
            self._create()

    def append(self, update: Mapping[str, Any]) -> None:
        """Write one update."""
        with open(self._path, "ab") as file:
            file.write(json.dumps(update).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the updates appended since the last call in this process.

        A line is complete if it ends with a newline.
        """
        if os.stat(self._path).st_size == self._offset:
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            rows = file.read()
        rows = rows[: rows.rfind(b"\n") + 1]
        self._offset += len(rows)
        return [json.loads(row) for row in rows.splitlines()]

    def rewind(self) -> None:
        """Let the next `read` in this process start at the first update."""
        self._offset = 0


def _remove_in(process: int, path: str) -> None:
    """Remove the file, unless a worker process drops its copy."""
    if os.getpid() == process:
        os.unlink(path)


class StreamDataset(IterableDataset[Batch]):
    """The next `steps` global steps of a stream, or all of them.

    Worker w of n draws every n-th step, starting from the w-th. PyTorch's loaders restore the
    global order, so the batches are the same for any number of workers. Mixtures reach the workers
    through an append-only file that they read before each draw.
    """

    def __init__(self, stream: MixtureStream, steps: int | None = None) -> None:
        super().__init__()
        self.stream = stream
        self.steps = steps
        self._next = 0
        self._resume_at: int | None = None
        self._updates = UpdateFile()

    def set_mixture(self, mixture: Mixture | Mapping[str, float], at_step: int) -> MixtureUpdate:
        """Log a mixture here and for the workers. No worker may have drawn `at_step` yet."""
        update = self.stream.set_mixture(mixture, at_step)
        self._updates.append(update.to_json())
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
        """Return the state of one worker, for torchdata's `StatefulDataLoader`.

        Prefer the stream's own state, which does not depend on the number of workers.
        """
        return {"stream": self.stream.state_dict(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        self._resume_at = state["next"]

    def _catch_up(self) -> None:
        """Apply the updates logged since the last draw."""
        for update in map(MixtureUpdate.from_json, self._updates.read()):
            if update.version > self.stream.last_version:
                self.stream.set_mixture(update.mixture, update.step)


class StreamLoader:
    """Batches of a stream in order, read by `num_workers` processes.

    The workers prepare up to `num_workers × prefetch` steps ahead. The stream in this process
    always stands at the end of the last delivered batch, so its state can be saved at any time. A
    new mixture takes effect at `first_open_step` or later: the first step that no worker may have
    drawn.
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
        self._workers = num_workers
        self._prefetch = prefetch
        self._running = False

    @property
    def first_open_step(self) -> int:
        """The first step that a new mixture can still affect."""
        return self.stream.position + (self._workers * self._prefetch if self._running else 0)

    def set_mixture(
        self, mixture: Mixture | Mapping[str, float], at_step: int | None = None
    ) -> MixtureUpdate:
        """Log `mixture` as effective from `at_step`, by default `first_open_step`.

        Raises `MixtureError` for an earlier step.
        """
        step = self.first_open_step if at_step is None else at_step
        if step < self.first_open_step:
            raise MixtureError(
                f"step {step} may be drawn already: {self._workers} workers prepare "
                f"{self._prefetch} batches each, "
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
        """Move the stream to the end of a worker's batch; check that both used the same log."""
        self.stream.seek(batch.step)
        if self.stream.log_digest != batch.log_digest:
            raise TrainingError(
                f"at step {batch.step} a loader's worker used mixture log {batch.log_digest[:12]}, "
                f"this process "
                f"{self.stream.log_digest[:12]}: set mixtures through the loader, and change "
                "domains between two iterations"
            )
        self.stream.seek(batch.step + 1)

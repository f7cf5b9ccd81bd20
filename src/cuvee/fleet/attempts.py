"""`AttemptCheckpoints`: each attempt at a run has its own checkpoint folder.

A worker that lost its claim therefore cannot overwrite the checkpoints of its successor.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from cuvee.core.errors import CheckpointError
from cuvee.core.files import remove_folder
from cuvee.core.protocols import State
from cuvee.training.checkpoint import Checkpoints

_NAME = re.compile(r"attempt-(\d{1,9})")


class AttemptCheckpoints:
    """Checkpoints of one run in `folder`/attempt-1, attempt-2, …

    Reads the checkpoints of all attempts and writes those of `attempt`. Earlier attempts are
    removed once this one has a checkpoint.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder = folder
        self._attempt = attempt
        self._checkpoints = Checkpoints(folder / f"attempt-{attempt}")

    def save(self, step: int, state: State) -> Path:
        """Save `state` for this attempt and return its folder. Raises `CheckpointError`."""
        path = self._checkpoints.save(step, state)
        for number, other in self._attempts():
            if number < self._attempt:
                try:
                    remove_folder(other)
                except OSError as error:  # the checkpoint is saved all the same
                    warnings.warn(
                        f"{other} is not needed any more and cannot be removed: {error.strerror}; "
                        "remove it by hand",
                        stacklevel=2,
                    )
        for leftover in self.folder.glob(".attempt-*.old"):  # from an interrupted removal
            shutil.rmtree(leftover, ignore_errors=True)
        return path

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return (step, state) of the newest checkpoint of all attempts, or None.

        Warns of each attempt that cannot be read. Raises `CheckpointError` if no attempt can be
        read.
        """
        found: list[tuple[int, dict[str, Any]]] = []
        failed: CheckpointError | None = None
        for _, folder in self._attempts():
            try:
                latest = Checkpoints(folder).latest()
            except CheckpointError as error:
                failed = error
                warnings.warn(f"skipped an unreadable attempt: {error}", stacklevel=2)
            else:
                found += [latest] if latest else []
        if failed and not found:
            raise failed
        return max(found, key=lambda latest: latest[0], default=None)

    def _attempts(self) -> list[tuple[int, Path]]:
        names = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("attempt-*"))
        return sorted((int(name[1]), path) for name, path in names if name)

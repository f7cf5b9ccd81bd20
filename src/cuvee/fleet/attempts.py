"""`AttemptCheckpoints`: each attempt at a run writes to a folder of its own, so that a worker that lost it spoils nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cuvee.core.protocols import State
from cuvee.training.checkpoint import Checkpoints


class AttemptCheckpoints:
    """Checkpoints of one run below `folder`: attempt-1, attempt-2, …. Reads them all, writes to its own, and removes the
    others once it holds a checkpoint itself."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.folder, self._mine = folder, folder / f"attempt-{attempt}"
        self._checkpoints = Checkpoints(self._mine)

    def save(self, step: int, state: State) -> Path:
        path = self._checkpoints.save(step, state)
        for other in self._attempts():
            if other != self._mine:
                shutil.rmtree(other, ignore_errors=True)
        return path

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest by step over all attempts."""
        found = [latest for folder in self._attempts() if (latest := Checkpoints(folder).latest())]
        return max(found, key=lambda latest: latest[0], default=None)

    def _attempts(self) -> list[Path]:
        return sorted(self.folder.glob("attempt-*")) if self.folder.is_dir() else []

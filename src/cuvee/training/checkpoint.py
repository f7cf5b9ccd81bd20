"""`Checkpoints`: the last states of a run in one folder. A complete one survives every crash.

To save, a state is written under a temporary name, hashed, fsynced and renamed to `step-000000120`,
and the folder is fsynced. Then the state is read back and its hashes are checked. Only after that
are older checkpoints removed. Files are never overwritten: a second checkpoint of the same step is
named `step-000000120.1`. The names of incomplete checkpoints begin with a dot. They are never read,
and the next save deletes them.
"""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cuvee.core.errors import CheckpointError
from cuvee.core.files import fsync_dir, remove_folder
from cuvee.core.protocols import State
from cuvee.core.state import load_state, save_state, verify_folder

_NAME = re.compile(r"step-(\d{9,})(?:\.(\d+))?")


class Checkpoints:
    """The newest `keep` intact checkpoints in `folder`; at least 2, in case the newest is damaged.

    One process writes to a folder at a time. A process that has lost its run to another, and does
    not know it yet, removes only checkpoints that existed when it began or that it wrote itself.
    So it cannot delete those of the other process.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 2:
            raise CheckpointError(
                f"keep is {keep}: keep at least 2 checkpoints, in case the newest is damaged"
            )
        self.folder = Path(folder)
        self.keep = keep
        self._verified: set[Path] = set()
        self._removable: set[Path] = set(self.folder.iterdir()) if self.folder.is_dir() else set()

    def save(self, step: int, state: State) -> Path:
        """Store `state` durably as the checkpoint of `step` and return its folder.

        Checkpoints of later steps are removed; they exist if a run resumed from an earlier one.
        Raises `CheckpointError` if writing fails. Earlier checkpoints can still be loaded then.
        """
        try:
            new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in new:
                fsync_dir(path.parent)
            self._clear_leftovers()
            path = self._free_name(step)
            self._removable.add(path)
            save_state(path, state)
            verify_folder(path)
            self._verified.add(path)
            self._prune(path)
        except (OSError, SafetensorError) as error:
            good = next(
                (str(path) for path in reversed(self._all()) if self._is_intact(path)), "none"
            )
            raise CheckpointError(
                f"saving the checkpoint of step {step} in {self.folder} failed: {error}. The last "
                f"complete one there: {good}. Free space on that disk, or let the run write to "
                "another, and resume"
            ) from error
        return path

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Return (step, state) of the newest complete checkpoint, or None if there are none.

        Warns about each damaged one that is skipped. Raises `CheckpointError` if there are
        checkpoints but none can be read.
        """
        paths = self._all()
        for path in reversed(paths):
            try:
                return _order(path)[0], load_state(path)
            except CheckpointError as error:
                warnings.warn(f"skipped a damaged checkpoint: {error}", stacklevel=2)
        if paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read: "
                "restart the run from the beginning"
            )
        return None

    def _all(self) -> list[Path]:
        """All checkpoints, intact or not, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_order
        )

    def _free_name(self, step: int) -> Path:
        same = [_order(path)[1] for path in self._all() if _order(path)[0] == step]
        return self.folder / (f"step-{step:09d}.{max(same) + 1}" if same else f"step-{step:09d}")

    def _prune(self, newest: Path) -> None:
        """Remove checkpoints later than `newest`, and all earlier than the `keep` newest intact."""
        intact = 0
        for path in reversed(self._all()):
            if _order(path) > _order(newest) or intact >= self.keep:
                if path in self._removable:
                    self._verified.discard(path)
                    remove_folder(path)
            elif self._is_intact(path):
                intact += 1

    def _is_intact(self, path: Path) -> bool:
        if path not in self._verified:
            try:
                verify_folder(path)
            except CheckpointError:
                return False
            self._verified.add(path)
        return True

    def _clear_leftovers(self) -> None:
        for path in self.folder.glob(".step-*"):
            if path.suffix in (".tmp", ".old") and path in self._removable:
                shutil.rmtree(path)


def _order(path: Path) -> tuple[int, int]:
    """Return (step, number of earlier checkpoints of the same step)."""
    name = _NAME.fullmatch(path.name)
    assert name
    return int(name[1]), int(name[2] or 0)

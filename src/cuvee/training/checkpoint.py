"""`Checkpoints`: the last few states of a run in one folder, of which a complete one survives kills, full disks and power cuts.

A state is written under a temporary name, hashed, fsynced, renamed to `step-000000120`, and the folder fsynced; then it is read
back and its hashes are checked, and only then are older ones removed. Nothing is ever written over: a second checkpoint of the
same step becomes `step-000000120.1`. What a kill leaves half done begins with a dot, is never read, and is cleared away at the
next save.
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
    """Keeps the newest `keep` intact checkpoints in `folder`, at least two, so that a damaged one has a predecessor.

    One process writes to a folder at a time. A process that has lost its run, and does not know it yet, removes only what was
    there when it began and what it wrote itself, so that the checkpoints of its successor remain.
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
        """Makes `state` durable as the checkpoint of `step` and returns its folder.

        Checkpoints of later steps, left by a run that was taken up again from an earlier one, are removed. Raises
        `CheckpointError` if the disk refuses; what could be loaded before still can.
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
                f"saving the checkpoint of step {step} in {self.folder} failed: {error}. The last complete one there: {good}. "
                "Free space on that disk, or let the run write to another, and resume"
            ) from error
        return path

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest complete checkpoint, or None. Warns of each damaged one that it passes over.

        Raises `CheckpointError` if there are checkpoints but none can be read.
        """
        paths = self._all()
        for path in reversed(paths):
            try:
                return _order(path)[0], load_state(path)
            except CheckpointError as error:
                warnings.warn(f"passed over a damaged checkpoint: {error}", stacklevel=2)
        if paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read: start the run anew"
            )
        return None

    def _all(self) -> list[Path]:
        """Oldest first; whether each is intact, only reading it tells."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_order
        )

    def _free_name(self, step: int) -> Path:
        same = [_order(path)[1] for path in self._all() if _order(path)[0] == step]
        return self.folder / (f"step-{step:09d}.{max(same) + 1}" if same else f"step-{step:09d}")

    def _prune(self, newest: Path) -> None:
        """Removes what is later than `newest`, and what is earlier once there are `keep` intact ones."""
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
    """(step, how many of the same step came before)."""
    name = _NAME.fullmatch(path.name)
    assert name
    return int(name[1]), int(name[2] or 0)

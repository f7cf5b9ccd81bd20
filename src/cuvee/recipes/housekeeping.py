"""What runs occupy on this host, and how it is freed: `cuvee runs rm`, `rename` and `prune`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.errors import StoreError
from cuvee.core.files import remove_folder
from cuvee.fleet.store.planning import check_run_id
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.fleet.worker_name import is_alive, readable

_CHECKPOINTS = ("checkpoints", "attempt-*")
_PARTS = (*_CHECKPOINTS, "model", "policy", "tensorboard")
"""The folders that cuvee writes below the folder of a run."""


@dataclass(frozen=True)
class Holding:
    """The folders of a run that are on this host, and their size in bytes."""

    run: RunSummary
    folders: tuple[Path, ...]
    size: int


def holdings(runs: Sequence[RunSummary]) -> list[Holding]:
    """Return what each run occupies, without files that cuvee did not write.

    Raises `StoreError` if a worker trains one of them.
    """
    for run in runs:
        if _is_held(run):
            raise StoreError(
                f"run {run.id} is being trained by {readable(run.worker)}: stop that process first"
            )
    return [_holding(run, _PARTS) for run in runs]


def checkpoints(runs: Sequence[RunSummary]) -> list[Holding]:
    """Return what the checkpoints of the finished runs among `runs` occupy, where there are any."""
    found = [_holding(run, _CHECKPOINTS) for run in runs if run.status == "done"]
    return [one for one in found if one.folders]


def unfinished(runs: Sequence[RunSummary]) -> list[Holding]:
    """Return what the runs occupy that failed or whose worker is gone."""
    return holdings([run for run in runs if run.state in ("failed", "dead") and not _is_held(run)])


def remove(store: Store, held: Sequence[Holding]) -> None:
    """Remove runs from the store, and their folders.

    Raises `StoreError` for one in training, or that was trained since `held` was made.
    """
    for one in held:
        store.remove(one.run.id, one.run.attempts)
        remove_folders([one])


def remove_folders(held: Sequence[Holding]) -> None:
    """Remove the folders, and those of the runs if nothing else is in them."""
    for one in held:
        for folder in one.folders:
            remove_folder(folder)
        if one.folders:
            with suppress(OSError):  # it holds files that cuvee did not write
                one.folders[0].parent.rmdir()


def rename(store: Store, run: RunSummary, new: str) -> None:
    """Give a finished run and its folder another name. Raises `StoreError` if that is not possible.

    `cuvee train` no longer finds the run by its configuration.
    """
    check_run_id(new)
    before = folder_of(run)
    after = before.with_name(new) if before else None
    if after is not None and after.exists():
        raise StoreError(f"there is a folder {after} already: give another name")
    paths = {"checkpoint": run.checkpoint, "policy": run.policy, "model": run.model}
    if before is not None:
        paths = {kind: _moved(path, before, new) for kind, path in paths.items()}
    if before is not None and after is not None:
        try:
            before.rename(after)
        except OSError as error:
            raise StoreError(f"{before} cannot be moved to {after}: {error.strerror}") from error
    try:
        store.rename(run.id, new, paths)
    except BaseException:
        if before is not None and after is not None:
            after.rename(before)
        raise


def _is_held(run: RunSummary) -> bool:
    """Whether a process may go on with the run, such as one of this host that is suspended."""
    alive = run.dead and is_alive(run.worker or "")
    return run.state == "running" or bool(alive)


def _holding(run: RunSummary, parts: Sequence[str]) -> Holding:
    folder = folder_of(run)
    # A removal or a write that was interrupted leaves a hidden folder.
    names = [name for part in parts for name in (part, f".{part}.*.old", f".{part}.*.tmp")]
    found = [path for name in names for path in folder.glob(name)] if folder else []
    folders = tuple(path for path in found if path.is_dir() and not path.is_symlink())
    return Holding(run, folders, sum(map(_size, folders)))


def folder_of(run: RunSummary) -> Path | None:
    """The folder of the run on this host: the one with its name above its checkpoints or model.

    A store that others write may name any path. Only a folder with the run's own name counts, and a
    relative path does not say where it is.
    """
    given = [Path(one) for one in (run.checkpoint, run.policy, run.model) if one]
    for path in given:
        for folder in (path, *path.parents) if path.is_absolute() else ():
            if folder.name == run.id and folder.is_dir() and not folder.is_symlink():
                return folder
    return None


def _moved(path: str | None, folder: Path, new: str) -> str | None:
    if path is None or not Path(path).is_relative_to(folder):
        return path
    return str(folder.with_name(new) / Path(path).relative_to(folder))


def _size(folder: Path) -> int:
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in files)

"""The folder of a corpus during a build, with unfinished work in its subfolder `.build`."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuvee.core.domain import SPLITS
from cuvee.core.errors import CorpusError
from cuvee.core.files import write_atomic
from cuvee.data.corpus import manifest

BUILD = ".build"
_STAMP = "built_from"


@contextmanager
def open_build_folder(folder: Path, built_from: str) -> Iterator[Path]:
    """Create or reopen `folder/.build` for a build, and lock it against other processes.

    The content of an interrupted build is kept if its sources and settings were the same
    (`built_from`); otherwise it is removed. Raises `CorpusError` if `folder` holds anything else,
    or if another process holds the lock.
    """
    work = folder / BUILD
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(
            f"cannot write to {folder}: {error.strerror}; choose another with -o"
        ) from error
    with _locked(work):
        stamp = work / _STAMP
        unfinished = stamp.read_text(errors="replace") if stamp.exists() else None
        if unfinished is None and (
            others := sorted(path.name for path in folder.iterdir() if path.name != BUILD)
        ):
            shutil.rmtree(work)
            raise CorpusError(
                f"{folder} already holds {others[0]}: choose an empty folder for the corpus"
            )
        if unfinished not in (None, built_from):
            _clear(folder, work)
        if unfinished != built_from:
            write_atomic(stamp, built_from)
        for leftover in list(folder.rglob(".*.tmp")):  # temporary files of a killed process
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield work


def damaged(path: Path) -> CorpusError:
    """Return the error for a file that was changed while its build was interrupted."""
    return CorpusError(
        f"{path} was altered while the build was interrupted: remove the corpus folder and "
        "build again"
    )


def is_built(folder: Path, built_from: str) -> bool:
    """Return whether `folder` holds the finished corpus of these sources and settings.

    Raises `CorpusError` if it holds another corpus.
    """
    if not (folder / manifest.NAME).exists():
        return False
    if manifest.read_manifest(folder).built_from != built_from:
        raise CorpusError(
            f"{folder} already holds a corpus of other sources or settings: choose another "
            "folder, or remove this one"
        )
    shutil.rmtree(folder / BUILD, ignore_errors=True)
    return True


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CorpusError(f"another process is building {work.parent}: wait for it") from None
    finally:
        os.close(descriptor)


def _clear(folder: Path, work: Path) -> None:
    """Remove the files of an unfinished build with other sources or settings.

    The stamp is invalidated first, so that no later build resumes from a part of these files.
    """
    write_atomic(work / _STAMP, "none")
    for name in SPLITS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in work.iterdir():
        if path.name not in ("lock", _STAMP):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

"""The workplace: the folder of a corpus while it is being built, with a hidden `.build` in it for what is unfinished."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuvee.core.errors import CorpusError
from cuvee.core.files import write_atomic
from cuvee.data.corpus import manifest

BUILD = ".build"
_STAMP = "built_from"


@contextmanager
def workplace(folder: Path, built_from: str) -> Iterator[Path]:
    """The folder `.build` in `folder`, as an interrupted build of the same sources and settings left it, else empty.

    Held by one process at a time. Raises `CorpusError` if `folder` holds anything that is not such a build.
    """
    work = folder / BUILD
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"cannot make the folder {work}: {error.strerror}") from error
    with _locked(work):
        stamp = work / _STAMP
        unfinished = stamp.read_text() if stamp.exists() else None
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
        for leftover in list(folder.rglob(".*.tmp")):  # of a write that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield work


def damaged(path: Path) -> CorpusError:
    """For a file of an unfinished build that is not as the build left it."""
    return CorpusError(
        f"{path} was altered while the build was interrupted: remove its corpus folder and build again"
    )


def is_built(folder: Path, built_from: str) -> bool:
    """Whether `folder` holds the finished corpus of these sources and settings. Raises if it holds another one."""
    if not (folder / manifest.NAME).exists():
        return False
    if manifest.read_manifest(folder).built_from != built_from:
        raise CorpusError(
            f"{folder} already holds a corpus of other sources or settings: choose another folder, or remove this one"
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
    """Removes what a build of something else left behind, so that no later build takes a part of it for its own."""
    write_atomic(work / _STAMP, "none")
    for name in ("train", "valid"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in work.iterdir():
        if path.name not in ("lock", _STAMP):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

"""Durable files: after a crash, a file has either its old or its new content."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_DEVICES = Path("/dev")  # also holds links to files, such as /dev/stdout
_CWD = -100  # AT_FDCWD: relative paths are relative to the working directory
_RENAME_EXCHANGE = 2
_MOST_BYTES = 64 << 20
_MOST_DEPTH = 100


def read_bounded(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return the content of the file `path`. Raises `OSError` if it has more than `most` bytes."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", str(path))
    return content


def read_json(path: Path, most: int = _MOST_BYTES) -> Any:
    """Return the JSON in the file `path`.

    Raises `OSError` if the file cannot be read or is too large, and `ValueError` if it is not JSON
    or is nested deeper than 100 levels. Python parses deeper files, but functions that call
    themselves fail on them later.
    """
    try:
        content = json.loads(read_bounded(path, most))
    except RecursionError:
        content = _TOO_DEEP
    if content is _TOO_DEEP or is_deep(content):
        raise ValueError(f"it is nested deeper than {_MOST_DEPTH} levels")
    return content


_TOO_DEEP = object()


def is_deep(content: Any) -> bool:
    """Whether JSON data are nested deeper than 100 levels."""
    level = [content] if isinstance(content, (dict, list)) else []
    for _ in range(_MOST_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return False
    return True


def is_path(text: str) -> bool:
    """Whether the operating system accepts `text` as a path: no NUL, and no half of a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def fsync_dir(path: Path) -> None:
    """Make renamed and newly created entries of the folder `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make every file and folder below `path` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            with open(Path(folder) / name, "rb") as file:
                os.fsync(file.fileno())
        fsync_dir(Path(folder))


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace the file `path` by `data` durably (temporary file, fsync, rename, fsync).

    Raises `OSError` if `path` is a folder, a device or a pipe: a rename would put a file there.
    """
    if path.absolute().parent == _DEVICES or (path.exists() and not path.is_file()):
        raise OSError(errno.EEXIST, "it is no regular file", str(path))
    payload = data.encode() if isinstance(data, str) else data
    temporary = _hidden(path, "tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        _name(error, path)
        raise
    fsync_dir(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Create the folder `path` atomically.

    `fill` writes into a temporary folder, which is then fsynced and renamed to `path`. An existing
    folder is replaced; its content stays readable until the new one is complete on disk. Raises
    `NotADirectoryError` if `path` is something else.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path, "tmp")
    try:
        temporary.mkdir()
        fill(temporary)
        fsync_tree(temporary)
        if path.exists():
            _exchange(temporary, path)
            fsync_dir(path.parent)
            remove_folder(temporary)
        else:
            os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, path)
        raise
    fsync_dir(path.parent)


def remove_folder(path: Path) -> None:
    """Remove the folder `path`, if it exists, under a hidden name.

    A process that is killed here leaves either the whole folder or a folder that nothing reads.
    Another process may remove that one at the same time.
    """
    doomed = _hidden(path, "old")
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, onerror=_unless_gone)


def _unless_gone(function: object, path: str, found: tuple[Any, BaseException, Any]) -> None:
    """Raise the error of a removal, unless what was to be removed is gone already."""
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]


def _name(error: BaseException, path: Path) -> None:
    """Give an error the path that the user asked for, instead of the temporary one."""
    if isinstance(error, OSError):
        error.filename = str(path)


def _hidden(path: Path, ending: str) -> Path:
    """Return a hidden name beside `path` that no other process or host uses."""
    return path.with_name(f".{path.name.removeprefix('.')}.{secrets.token_hex(6)}.{ending}")


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, in one system call if the platform and the file system support it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(new), os.fsencode(old)
    if renameat2 and renameat2(_CWD, names[0], _CWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    retired = _hidden(old, "old")
    os.rename(old, retired)
    os.rename(new, old)
    os.rename(retired, new)


def sha256_of(path: Path) -> str:
    """Return the sha256 of the file `path` in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

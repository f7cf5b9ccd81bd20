"""Pickle memory-mapped arrays as path and offset in their file instead of by content."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import ShardError


@dataclass(frozen=True)
class FileStamp:
    """Size and modification time of a file. A file is mapped again only if both are unchanged."""

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of a file. Raises `ShardError` if it is missing."""
        path = Path(os.path.abspath(path))
        try:
            status = path.stat()
        except OSError as error:
            raise ShardError(f"{path} cannot be opened: {error.strerror}") from error
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Raise `ShardError` if the file is missing or has changed."""
        if FileStamp.of(self.path) != self:
            raise ShardError(
                f"{self.path} was changed after this object was pickled or copied: "
                "open the corpus again"
            )


@dataclass(frozen=True)
class FilePart:
    """A one-dimensional array as a part of a file.

    Unpickling it returns the array itself, mapped read-only.
    """

    stamp: FileStamp
    dtype: str
    offset: int
    count: int

    def __reduce__(self) -> tuple[Any, ...]:
        return map_part, (self.stamp, self.dtype, self.offset, self.count)


def map_part(stamp: FileStamp, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
    """Map `count` values from byte `offset`. Raises `ShardError` if the file has changed."""
    stamp.check()
    return np.memmap(stamp.path, dtype, "r", offset, (count,)).view(np.ndarray)


def portable(array: npt.NDArray[Any]) -> npt.NDArray[Any] | FilePart:
    """Return what to pickle in place of `array`.

    This is a `FilePart` if the array is a contiguous part of a mapped file, else the array.
    """
    root: Any = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    shared = isinstance(root, np.memmap) and root.filename is not None and root.mode != "c"
    if not shared or array.ndim != 1 or not array.flags.c_contiguous or not len(array):
        return array
    ahead = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    stamp = FileStamp.of(Path(root.filename))
    return FilePart(stamp, array.dtype.str, root.offset + ahead, len(array))

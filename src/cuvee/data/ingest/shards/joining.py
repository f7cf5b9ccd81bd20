"""Join the parts of a domain into one shard, which a corpus needs for each domain and split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import CorpusError, ShardError
from cuvee.core.files import fsync_dir, sha256_of
from cuvee.data.corpus import manifest
from cuvee.data.corpus.shards import bin_path, read_index, write_index

JOINED = ".joined"
"""The subfolder of a corpus with joined shards. It is hidden, so that a corpus in the folder of its
own parts does not find it as a source."""
_CHUNK_BYTES = 1 << 22


def join_shards(parts: Sequence[Path], folder: Path, key: str) -> Path:
    """Copy `parts`, one after another, to the shard `folder/.joined/key`, and return its prefix.

    `parts` are prefixes of `.bin`/`.idx` pairs that hold one type of ids. Each document becomes one
    sequence. A shard that is there already stays as it is if it has the same content. Raises
    `ShardError` for wrong parts, and `CorpusError` if `folder` holds another corpus or there is no
    room.
    """
    indices = [read_index(part) for part in parts]
    prefix = folder / JOINED / key
    lengths_D = np.concatenate(
        [np.diff(np.append(index.document_starts, index.tokens)) for index in indices]
    )
    try:
        if not _is_joined(parts, lengths_D, prefix):
            _refuse_other(folder)
            prefix.parent.mkdir(parents=True, exist_ok=True)
            _copy(parts, bin_path(prefix))
            write_index(prefix, lengths_D.astype(np.int32), indices[0].dtype)
    except OSError as error:
        raise CorpusError(
            f"cannot join {len(parts)} shards in {prefix}: {error.strerror}"
        ) from error
    return prefix


def _refuse_other(folder: Path) -> None:
    if (folder / manifest.NAME).exists():
        raise CorpusError(
            f"{folder} already holds a corpus of other sources or settings: choose another "
            "folder, or remove this one"
        )


def _is_joined(parts: Sequence[Path], lengths_D: npt.NDArray[np.int64], prefix: Path) -> bool:
    """Whether the shard `prefix` holds the documents of `parts` already."""
    try:
        index = read_index(prefix)
    except ShardError:
        return False
    if not np.array_equal(np.diff(np.append(index.document_starts, index.tokens)), lengths_D):
        return False
    sha = hashlib.sha256()
    for chunk in _chunks(parts):
        sha.update(chunk)
    return sha.hexdigest() == sha256_of(bin_path(prefix))


def _copy(parts: Sequence[Path], path: Path) -> None:
    """Write the file `path` durably: until it is complete, its name ends in `.tmp`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            for chunk in _chunks(parts):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _chunks(parts: Sequence[Path]) -> Iterator[bytes]:
    for part in parts:
        with open(bin_path(part), "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

"""Join the parts of a domain into one shard, which a corpus needs for each domain and split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cuvee.core.errors import CorpusError
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
    lengths = [
        np.diff(np.append(index.document_starts, index.tokens)).astype(np.int32)
        for index in indices
    ]
    try:
        if not _is_joined(parts, prefix):
            _refuse_other(folder)
            prefix.parent.mkdir(parents=True, exist_ok=True)
            _copy(parts, bin_path(prefix))
        write_index(prefix, np.concatenate(lengths), indices[0].dtype)
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


def _is_joined(parts: Sequence[Path], prefix: Path) -> bool:
    path = bin_path(prefix)
    size = sum(bin_path(part).stat().st_size for part in parts)
    if not path.is_file() or path.stat().st_size != size:
        return False
    sha = hashlib.sha256()
    for chunk in _chunks(parts):
        sha.update(chunk)
    return sha.hexdigest() == sha256_of(path)


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

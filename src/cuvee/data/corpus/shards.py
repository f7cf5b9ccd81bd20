r"""Shards: the token ids of one domain and split in Megatron-LM's MMapIndexedDataset format.

    PREFIX.bin   token ids, one after another
    PREFIX.idx   "MMIDIDX\0\0", version u64 = 1, dtype code u8, sequence count u64,
                 document count u64, sequence lengths i32 in tokens,
                 sequence pointers i64 in bytes, document boundaries i64 in sequences

cuvee writes one sequence per document; other programs may write several. Files are not trusted:
every count, pointer and length is checked against the file sizes before memory is allocated for
it. All functions raise `ShardError` for files that are missing or wrong.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import ShardError
from cuvee.core.files import write_atomic
from cuvee.data.corpus.mapped import FileStamp
from cuvee.data.corpus.pool import TokenPool

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_NAMES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_SCAN_BYTES = 1 << 22


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return uint16 for vocabularies below 65,500 ids, else int32, as Megatron does."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.idx")


def write_index(prefix: Path, lengths_D: npt.NDArray[np.int32], dtype: np.dtype[Any]) -> None:
    """Write `prefix.idx` for documents of `lengths_D` tokens stored one after another."""
    code = next(code for code, name in _DTYPE_NAMES.items() if np.dtype(name) == dtype)
    ends_D = np.cumsum(lengths_D, dtype=np.int64) * dtype.itemsize
    pointers_D = ends_D - lengths_D.astype(np.int64) * dtype.itemsize
    boundaries = np.arange(len(lengths_D) + 1, dtype=np.int64)
    header = _HEADER.pack(_MAGIC, _VERSION, code, len(lengths_D), len(boundaries))
    arrays = (lengths_D.astype("<i4"), pointers_D.astype("<i8"), boundaries.astype("<i8"))
    write_atomic(idx_path(prefix), header + b"".join(array.tobytes() for array in arrays))


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The content of a valid `.idx` file.

    `tokens` is the number of ids of type `dtype`. `document_starts` (D,) holds the offsets of the
    non-empty documents.
    """

    dtype: np.dtype[Any]
    tokens: int
    document_starts: npt.NDArray[np.int64]


def read_index(prefix: Path) -> ShardIndex:
    """Read `prefix.idx` and check it against itself and the size of `prefix.bin`."""
    path = idx_path(prefix)
    bin_bytes = file_size(bin_path(prefix))
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            dtype, sequences, boundaries = _read_header(path, file.read(_HEADER.size), size)
            lengths_S = np.fromfile(file, "<i4", sequences)
            pointers_S = np.fromfile(file, "<i8", sequences)
            documents = np.fromfile(file, "<i8", boundaries)
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {_reason(error)}") from error
    if len(lengths_S) + len(pointers_S) + len(documents) != 2 * sequences + boundaries:
        raise ShardError(f"{path} became shorter while it was read; build the corpus again")
    tokens = _check_lengths(path, lengths_S, bin_path(prefix), bin_bytes, dtype)
    _check_pointers(path, lengths_S, pointers_S, dtype)
    _check_boundaries(path, documents, sequences)
    bounds = np.append(pointers_S // dtype.itemsize, tokens)[documents]
    return ShardIndex(dtype, tokens, bounds[:-1][np.diff(bounds) > 0])


def open_shard(prefix: Path, name: str) -> TokenPool:
    """Memory-map `prefix.bin` and return its tokens with the documents of `prefix.idx`."""
    index = read_index(prefix)
    path = bin_path(prefix)
    if index.tokens == 0:
        raise ShardError(f"{path} holds no tokens; leave it out of the corpus")
    try:
        mapped = np.memmap(path, dtype=index.dtype, mode="r", shape=(index.tokens,))
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be mapped: {_reason(error)}") from error
    # A plain view indexes several times faster than a memmap, and keeps the mapping alive.
    stamps = (FileStamp.of(path), FileStamp.of(idx_path(prefix)))
    reopen = partial(_reopen, Path(os.path.abspath(prefix)), name, stamps)
    return TokenPool(name, mapped.view(np.ndarray), index.document_starts, reopen)


def _reason(error: OSError | ValueError) -> str:
    """What went wrong. A mapped shard keeps its file open, so a corpus can meet the limit."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return (
            f"this process may open {limit} files and each domain needs one: raise the limit "
            "(`ulimit -n`, or LimitNOFILE of the service), or train on fewer domains"
        )
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def _reopen(prefix: Path, name: str, stamps: Sequence[FileStamp]) -> TokenPool:
    """Open the pool that was pickled. Raises `ShardError` if its files have changed since."""
    for stamp in stamps:
        stamp.check()
    return open_shard(prefix, name)


def scan_shard(prefix: Path, dtype: np.dtype[Any], vocab_size: int) -> tuple[str, str]:
    """Read both files and return the sha256 of `.bin` and of `.idx`.

    Raises `ShardError` at the first id outside the vocabulary.
    """
    path = bin_path(prefix)
    sha = hashlib.sha256()
    position = 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_SCAN_BYTES):
                sha.update(chunk)
                ids = np.frombuffer(chunk, dtype, count=len(chunk) // dtype.itemsize)
                if len(ids) and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
                    bad = int(np.flatnonzero((ids >= vocab_size) | (ids < 0))[0])
                    raise ShardError(
                        f"{path}: token {position + bad} is {int(ids[bad])}, outside the "
                        f"vocabulary of {vocab_size}"
                    )
                position += len(ids)
        with open(idx_path(prefix), "rb") as file:
            return sha.hexdigest(), hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"{prefix}.bin/.idx cannot be read: {error.strerror}") from error


def file_size(path: Path) -> int:
    """Return the size of `path` in bytes."""
    try:
        if not path.is_file():
            raise ShardError(f"{path} is missing: restore it, or build the corpus again")
        return path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path, header: bytes, size: int) -> tuple[np.dtype[Any], int, int]:
    if len(header) < _HEADER.size:
        raise ShardError(f"{path} has {size} bytes, less than the {_HEADER.size} of a header")
    magic, version, code, sequences, boundaries = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise ShardError(f"{path} begins with {magic!r}, not {_MAGIC!r}: it is no Megatron index")
    if version != _VERSION:
        raise ShardError(f"{path} has index version {version}, expected {_VERSION}")
    if code not in _DTYPE_NAMES:
        raise ShardError(
            f"{path} has dtype code {code}, expected one of {', '.join(map(str, _DTYPE_NAMES))}"
        )
    dtype = np.dtype(_DTYPE_NAMES[code])
    if dtype.kind == "f":
        raise ShardError(f"{path} holds {dtype.name} values: token ids must be integers")
    expected = _HEADER.size + 12 * sequences + 8 * boundaries
    if size != expected:
        raise ShardError(
            f"{path} has {size} bytes, expected {expected} for its {sequences} sequences and "
            f"{boundaries} document boundaries"
        )
    return dtype, sequences, boundaries


def _check_lengths(
    path: Path,
    lengths_S: npt.NDArray[np.int32],
    bin_file: Path,
    bin_bytes: int,
    dtype: np.dtype[Any],
) -> int:
    if len(lengths_S) and int(lengths_S.min()) < 0:
        bad = int(np.argmin(lengths_S))
        raise ShardError(
            f"{path}: sequence {bad} has length {int(lengths_S[bad])}, which is negative"
        )
    tokens = int(lengths_S.sum(dtype=np.int64))
    if tokens * dtype.itemsize != bin_bytes:
        raise ShardError(
            f"{bin_file} has {bin_bytes} bytes, expected {tokens * dtype.itemsize}: "
            f"{tokens} tokens of {dtype.name} according to {path.name}"
        )
    return tokens


def _check_pointers(
    path: Path,
    lengths_S: npt.NDArray[np.int32],
    pointers_S: npt.NDArray[np.int64],
    dtype: np.dtype[Any],
) -> None:
    widths_S = lengths_S.astype(np.int64) * dtype.itemsize
    expected_S = np.cumsum(widths_S) - widths_S
    wrong = np.flatnonzero(pointers_S != expected_S)
    if len(wrong):
        first = int(wrong[0])
        raise ShardError(
            f"{path}: sequence {first} points at byte {pointers_S[first]}, "
            f"expected {expected_S[first]}"
        )


def _check_boundaries(path: Path, documents: npt.NDArray[np.int64], sequences: int) -> None:
    if len(documents) == 0 or documents[0] != 0 or documents[-1] != sequences:
        ends = f"{documents[0]} to {documents[-1]}" if len(documents) else "nothing"
        raise ShardError(f"{path}: document boundaries run from {ends}, expected 0 to {sequences}")
    falls = np.flatnonzero(np.diff(documents) < 0)
    if len(falls):
        first = int(falls[0]) + 1
        raise ShardError(
            f"{path}: document boundary {first} is {documents[first]}, less than the previous "
            f"{documents[first - 1]}"
        )

"""Read the text and domain columns of a Parquet file in bounded memory, whatever the file says
about itself.

The metadata is checked first. It may lie, so decoding also runs under a limit on the memory of this
process, and the decoded bytes are counted against the size of the file.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

from cuvee.core.errors import CorpusError

_DECODE_BYTES = 192 << 20  # what decoding one batch may allocate
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 512
_BUFFER_BYTES = 1 << 20
_LONGEST_DOMAIN = 256  # characters; longer values are not domain names


def read_columns(
    path: Path, text_column: str, domain_column: str | None
) -> Iterator[tuple[bytes | None, str | None, float]]:
    """Yield the text, the domain and the share of the file that is read, for each row.

    A column may be a field of a struct, as in `meta.text`. Raises `CorpusError` for a file that is
    damaged, that lacks a column, whose columns are not text, or that takes too much memory to
    decode.
    """
    import pyarrow

    wanted = [text_column, *([domain_column] if domain_column else [])]
    try:
        with _bounded():
            file = _open(path)
            check_columns(path, file.schema_arrow, wanted)
            if text_column in file.schema_arrow.names:
                file.close()
                # Dictionary encoding holds a long text that repeats many times only once.
                file = _open(path, read_dictionary=[text_column])
        with file:
            batches = _batches(file, wanted)
            total = max(file.metadata.num_rows, 1)
            done = 0
            while True:
                with _bounded():
                    batch = next(batches, None)
                if batch is None:
                    return
                texts = values_of(field_of(batch, text_column))
                domains = (
                    values_of(field_of(batch, domain_column)) if domain_column else repeat(None)
                )
                for text, domain in zip(texts, domains, strict=False):
                    done += 1
                    yield text, domain and name_of(domain), min(done / total, 1.0)
    except (
        OSError,
        MemoryError,
        ValueError,
        LookupError,
        OverflowError,
        pyarrow.ArrowException,
    ) as error:
        limit = isinstance(error, MemoryError)
        reason = (
            f"a part of it needs more than {_DECODE_BYTES >> 20} MiB in memory: it is damaged, or its pages and rows are too "
            "large; write it again with smaller row groups, or as JSON lines"
            if limit
            else f"{error}; restore it or leave it out"
        )
        raise CorpusError(f"{path} cannot be read as Parquet: {reason}") from error


def _open(path: Path, **options: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        path,
        buffer_size=_BUFFER_BYTES,
        pre_buffer=False,
        thrift_string_size_limit=16 << 20,
        thrift_container_size_limit=1 << 20,
        **options,
    )


def _batches(file: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Batches of rows, few at a time where rows are large."""
    rows = file.metadata.num_rows
    size = 0
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        for i in range(about.num_columns):
            column = about.column(i)
            if column.path_in_schema in columns:
                size += max(column.total_uncompressed_size, 0)
    at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(rows, 1) // max(size, 1)))
    batches: Iterator[Any] = file.iter_batches(
        batch_size=at_once, columns=list(columns), use_threads=False
    )
    return batches


def check_columns(path: Path, schema: Any, columns: Sequence[str]) -> None:
    """Raise `CorpusError` for a column that an Arrow schema lacks or that is not text."""
    import pyarrow

    types = pyarrow.types
    known = [place for field in schema for place in _places(field.name, field.type)]
    for column, option in zip(columns, ("--text-column", "--domain-column"), strict=False):
        kind = dict(known).get(column)
        if kind is None:
            names = ", ".join(name for name, _ in known[:20])
            raise CorpusError(
                f"{path} has no column {column!r}; it has {names}: choose with {option}"
            )
        plain = kind.value_type if types.is_dictionary(kind) else kind
        checks = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary,
                  types.is_string_view, types.is_binary_view, types.is_null)  # fmt: skip
        if not any(check(plain) for check in checks):
            inner = [name for name, _ in known if name.startswith(f"{column}.")]
            hint = f"its fields are {', '.join(inner[:20])}; " if inner else ""
            raise CorpusError(
                f"{path}: column {column!r} is {str(kind)[:80]}, not text: {hint}choose with {option}"
            )


def _places(name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """A column and the fields below it, each with its type."""
    import pyarrow

    yield name, kind
    if pyarrow.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _places(f"{name}.{kind.field(i).name}", kind.field(i).type)


def field_of(batch: Any, column: str) -> Any:
    """Return a column of a batch, or the field of a struct that `column` names with dots."""
    import pyarrow.compute

    if column in batch.schema.names:
        return batch.column(column)
    for name in batch.schema.names:
        if column.startswith(f"{name}."):
            path = column[len(name) + 1 :].split(".")
            return pyarrow.compute.struct_field(batch.column(name), path)
    raise AssertionError(column)


def values_of(column: Any) -> Iterator[Any]:
    """Yield the values of an Arrow array, text as bytes because Arrow does not guarantee UTF-8."""
    import pyarrow

    values = column
    indices = range(len(column))
    if pyarrow.types.is_dictionary(column.type):
        values = column.dictionary
        indices = column.indices.to_pylist()
    if pyarrow.types.is_string(values.type):
        values = values.cast(pyarrow.binary())
    elif not pyarrow.types.is_null(values.type) and not pyarrow.types.is_binary(values.type):
        values = values.cast(pyarrow.large_binary())
    return (None if i is None else values[i].as_py() for i in indices)


def name_of(domain: bytes) -> str:
    """Return a domain as text, shortened if it is too long for a name."""
    return domain[: 4 * _LONGEST_DOMAIN].decode(errors="replace")[:_LONGEST_DOMAIN]


@contextmanager
def _bounded() -> Iterator[None]:
    """Limits what this process may allocate while the block runs.

    An allocation beyond that raises `MemoryError`.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the counts of decoded bytes remain
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = used + _DECODE_BYTES
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    if soft != resource.RLIM_INFINITY:
        allowed = min(allowed, soft)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

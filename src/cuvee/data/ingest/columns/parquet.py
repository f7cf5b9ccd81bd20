"""Read the text and domain columns of a Parquet file in bounded memory, whatever the file says
about itself.

The metadata is checked first. It may lie, so decoding also runs under a limit on the memory of this
process, and the decoded bytes are counted against the size of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from cuvee.core.errors import CorpusError
from cuvee.data.ingest.columns.bounds import (
    DECODE_BYTES,
    MAX_ROW_BYTES,
    bounded,
    rows_at_once,
    too_large,
)

_BUFFER_BYTES = 1 << 20
_LONGEST_DOMAIN = 256  # characters; longer values are not domain names
NAME_BYTES = 4 * _LONGEST_DOMAIN


def read_columns(
    path: Path, text_column: str, domain_column: str | None
) -> Iterator[tuple[bytes | None, str | None, float]]:
    """Yield the text, the domain and the share of the file that is read, for each row.

    A column may be a field of a struct, as in `meta.text`. Raises `CorpusError` for a file that is
    damaged, that lacks a column, whose columns are not text, or that takes too much memory to
    decode.
    """
    import pyarrow
    import pyarrow.parquet  # here, where no limit holds: loading it takes memory

    done = 0
    try:
        try:
            for row in _rows(path, text_column, domain_column, True):
                done += 1
                yield row
        except (OSError, MemoryError) as error:
            # pyarrow makes no dictionary of some encodings, such as DELTA_BYTE_ARRAY, and holds
            # all long values of a column that has none.
            if not isinstance(error, MemoryError) and (
                done or "Not yet implemented" not in str(error)
            ):
                raise
            failed = True
        else:
            failed = False
        if failed:
            yield from islice(_rows(path, text_column, domain_column, False), done, None)
    except (
        OSError,
        MemoryError,
        ValueError,
        LookupError,
        OverflowError,
        pyarrow.ArrowException,
    ) as error:
        limit = isinstance(error, MemoryError)
        reason = too_large("row groups") if limit else f"{error}; restore it or leave it out"
        raise CorpusError(f"{path} cannot be read as Parquet: {reason}") from error


def _rows(
    path: Path, text_column: str, domain_column: str | None, as_dictionary: bool
) -> Iterator[tuple[bytes | None, str | None, float]]:
    """Yield what `read_columns` does.

    With `as_dictionary`, a long text that repeats many times is held in memory only once.
    """
    wanted = [text_column, *([domain_column] if domain_column else [])]
    most = DECODE_BYTES // 2 if as_dictionary else DECODE_BYTES
    with bounded():
        file = _open(path)
        check_columns(path, file.schema_arrow, wanted)
        plain = [name for name in wanted if name in file.schema_arrow.names]
        if as_dictionary and plain:
            file.close()
            file = _open(path, read_dictionary=plain)
    with file:
        batches = _batches(file, wanted)
        total = max(file.metadata.num_rows, 1)
        done = 0
        while True:
            with bounded(most):
                batch = next(batches, None)
            if batch is None:
                return
            texts = values_of(field_of(batch, text_column))
            domains: Iterator[Any] = repeat(None)
            if domain_column:
                domains = values_of(field_of(batch, domain_column), NAME_BYTES)
            for text, domain in zip(texts, domains, strict=False):
                done += 1
                yield text, domain and name_of(domain), min(done / total, 1.0)


def _open(path: Path, **options: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(
        path if isinstance(path, Path) else path.open("rb"),
        buffer_size=_BUFFER_BYTES,
        pre_buffer=False,
        thrift_string_size_limit=16 << 20,
        thrift_container_size_limit=1 << 20,
        **options,
    )


def _batches(file: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Batches of rows, few at a time where rows are large."""
    # The metadata of single columns is not asked: where it is damaged, pyarrow ends the process.
    rows = file.metadata.num_rows
    groups = range(file.metadata.num_row_groups)
    size = sum(max(file.metadata.row_group(i).total_byte_size, 0) for i in groups)
    batches: Iterator[Any] = file.iter_batches(
        batch_size=rows_at_once(rows, size), columns=list(columns), use_threads=False
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


def values_of(column: Any, most: int = MAX_ROW_BYTES + 1) -> Iterator[Any]:
    """Yield the values of an Arrow array, text as bytes because Arrow does not guarantee UTF-8.

    Of each value, at most `most` bytes are copied.
    """
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
    return (None if i is None else _content(values[i], most) for i in indices)


def _content(value: Any, most: int) -> bytes | None:
    return bytes(memoryview(value.as_buffer())[:most]) if value.is_valid else None


def name_of(domain: bytes) -> str:
    """Return a domain as text, shortened if it is too long for a name."""
    return domain[:NAME_BYTES].decode(errors="replace")[:_LONGEST_DOMAIN]

"""Read sources as blocks of rows, in bounded memory for any file.

A line that is too long becomes a bad row and is never held in memory as a whole. A compressed file
that expands too much is refused. This module only cuts files into rows; `documents.py` parses them
in the worker processes.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from cuvee.core.domain import Split
from cuvee.core.errors import CorpusError
from cuvee.data.ingest.columns.bounds import MAX_ROW_BYTES
from cuvee.data.ingest.columns.parquet import read_columns
from cuvee.data.ingest.columns.tables import read_arrow, read_csv
from cuvee.data.ingest.sources.places import open_place
from cuvee.data.ingest.sources.raw import TextSource

BLOCK_BYTES = 512 << 10
BLOCK_ROWS = 2_000
MAX_EXPANSION = 250  # times the size of the compressed file
_FREE_EXPANSION_BYTES = 64 << 20  # allowed for a file of any size
_BUFFER_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class Fields(NamedTuple):
    """A row with known columns: `text` and, if a column gives it, `domain`, of any type."""

    text: Any
    domain: Any


class Bad(NamedTuple):
    """A row that cannot be used, and the reason."""

    reason: str


Row = bytes | Fields | Bad
"""A row of a source. `bytes` is a line of JSON that is not parsed yet."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one source. `first` is the line number of the first row, counted from 1.

    `position` is (index of the source, index of the block in it). `share` is the share of all
    sources that is read at the end of the block.
    """

    position: tuple[int, int]
    domain: str
    split: Split | None
    place: str
    first: int
    rows: list[Row]
    share: float
    text_column: str


def read_blocks(
    sources: Sequence[TextSource],
    text_column: str,
    domain_column: str | None,
    after: tuple[int, int] = (-1, 0),
) -> Iterator[Block]:
    """Yield the rows of `sources` in blocks, starting after position `after`.

    The text is in `text_column`, or in the source's own.

    The blocks are the same in every call. Raises `CorpusError` if a file is damaged or lacks a
    column.
    """
    total = max(sum(source.size for source in sources), 1)
    before = 0
    for index, source in enumerate(sources):
        if index >= after[0]:
            column = source.text_column or text_column
            for number, (first, rows, consumed) in enumerate(
                _cut(_read_rows(source, column, domain_column))
            ):
                if (index, number) > after:
                    share = min((before + consumed) / total, 1.0)
                    yield Block(
                        (index, number),
                        source.domain,
                        source.split,
                        source.place,
                        first,
                        rows,
                        share,
                        column,
                    )
        before += source.size


def _cut(numbered: Iterable[tuple[Row, int]]) -> Iterator[tuple[int, list[Row], int]]:
    rows: list[Row] = []
    first = 1
    held = 0
    consumed = 0
    for row, consumed in numbered:
        rows.append(row)
        held += _weight(row)
        if held >= BLOCK_BYTES or len(rows) >= BLOCK_ROWS:
            yield first, rows, consumed
            first += len(rows)
            rows = []
            held = 0
    if rows:
        yield first, rows, consumed


def _weight(row: Row) -> int:
    content = row.text if isinstance(row, Fields) else row
    return len(content) if isinstance(content, (bytes, str)) else 1


def _read_rows(
    source: TextSource, text_column: str, domain_column: str | None
) -> Iterator[tuple[Row, int]]:
    """Yield each row with the amount of the source that has been read so far."""
    if source.format == "rows":
        yield from _data_set_rows(source, text_column, domain_column)
    elif source.format in ("parquet", "arrow"):
        yield from _arrow_rows(source, text_column, domain_column)
    else:
        with _opened(source) as (stream, raw):
            reader = _whole(stream)
            if source.format == "jsonl":
                reader = _lines(source, stream)
            elif source.format == "csv":
                reader = _csv_rows(source, stream, text_column, domain_column)
            for row in reader:
                yield row, raw.tell()


@contextmanager
def _opened(source: TextSource) -> Iterator[tuple[io.BufferedReader | gzip.GzipFile, io.FileIO]]:
    assert source.path is not None
    try:
        with open_place(source.path) as raw:
            if source.path.name.lower().endswith(".gz"):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked, raw
            elif source.path.name.lower().endswith(".zst"):
                import pyarrow

                with pyarrow.CompressedInputStream(
                    pyarrow.PythonFile(raw, mode="r"), "zstd"
                ) as unpacked:
                    yield io.BufferedReader(unpacked, _BUFFER_BYTES), raw
            else:
                yield io.BufferedReader(raw, _BUFFER_BYTES), raw
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise CorpusError(
            f"{source.path} cannot be read or is damaged: {error}; restore it or leave it out"
        ) from error


def _lines(source: TextSource, stream: io.BufferedReader | gzip.GzipFile) -> Iterator[Row]:
    allowed = _FREE_EXPANSION_BYTES + MAX_EXPANSION * source.size
    total = 0
    first = True
    while line := stream.readline(MAX_ROW_BYTES + 1):
        total += len(line)
        if len(line) <= MAX_ROW_BYTES:
            yield line.removeprefix(_BOM) if first else line
        else:
            while not line.endswith(b"\n") and (line := stream.readline(_BUFFER_BYTES)):
                total += len(line)
                _check_expansion(source, total, allowed)
            yield Bad(f"longer than {MAX_ROW_BYTES >> 20} MiB")
        first = False
        _check_expansion(source, total, allowed)


def _check_expansion(source: TextSource, total: int, allowed: int) -> None:
    if total > allowed:
        raise CorpusError(
            f"{source.place} has {source.size} bytes and expands to more than {allowed}: "
            "it looks like a decompression bomb; decompress it yourself if it is not"
        )


def _whole(stream: io.BufferedReader | gzip.GzipFile) -> Iterator[Row]:
    """Yield a text file as one document."""
    content = stream.read(MAX_ROW_BYTES + 1)
    if len(content) > MAX_ROW_BYTES:
        yield Bad(f"longer than {MAX_ROW_BYTES >> 20} MiB")
    else:
        yield Fields(content.removeprefix(_BOM), None)


def _csv_rows(
    source: TextSource,
    stream: io.BufferedReader | gzip.GzipFile,
    text_column: str,
    domain_column: str | None,
) -> Iterator[Row]:
    # In place of a line that is too long, the CSV reader gets a cell that is too long: it refuses
    # the row, also if the line is a part of a quoted cell.
    too_long = b"x" * (MAX_ROW_BYTES + 1)
    lines = (line if isinstance(line, bytes) else too_long for line in _lines(source, stream))
    for row in read_csv(lines, source.place, text_column, domain_column, MAX_ROW_BYTES):
        yield Bad(row) if isinstance(row, str) else _fields(*row)


def _arrow_rows(
    source: TextSource, text_column: str, domain_column: str | None
) -> Iterator[tuple[Row, int]]:
    assert source.path is not None
    read = read_columns if source.format == "parquet" else read_arrow
    allowed = _FREE_EXPANSION_BYTES + MAX_EXPANSION * source.size
    total = 0
    for text, domain, share in read(source.path, text_column, domain_column):
        total += len(text or b"") + len(domain or "") + 1
        _check_expansion(source, total, allowed)
        yield _fields(text, domain), int(source.size * share)


def _data_set_rows(
    source: TextSource, text_column: str, domain_column: str | None
) -> Iterator[tuple[Row, int]]:
    columns = _check_columns(source, source.rows.column_names, text_column, domain_column)
    rows = source.rows.select_columns(columns)
    for start in range(0, len(rows), 512):
        batch = rows[start : start + 512]
        texts = _nested(batch, text_column)
        labels = _nested(batch, domain_column) if domain_column else [None] * len(texts)
        for i, fields in enumerate(zip(texts, labels, strict=True), start + 1):
            yield _fields(*fields), i


def _nested(batch: dict[str, list[Any]], column: str) -> list[Any]:
    """Return the values of a column of a batch, or of the field of a struct that a path names."""
    if column in batch:
        return batch[column]
    top, *path = column.split(".")
    values = batch[top]
    for key in path:
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    return values


def _fields(text: Any, domain: Any) -> Row:
    if isinstance(text, (str, bytes)) and len(text) > MAX_ROW_BYTES:
        return Bad(f"longer than {MAX_ROW_BYTES >> 20} MiB")
    return Fields(text, domain.decode(errors="replace") if isinstance(domain, bytes) else domain)


def _check_columns(
    source: TextSource, names: list[str], text_column: str, domain_column: str | None
) -> list[str]:
    columns = [text_column, *([domain_column] if domain_column else [])]
    for column, option in zip(columns, ("--text-column", "--domain-column"), strict=False):
        if column not in names and column.split(".")[0] not in names:
            raise CorpusError(
                f"{source.place} has no column {column!r}; it has {', '.join(names)}: choose with "
                f"{option}"
            )
    return sorted({column if column in names else column.split(".")[0] for column in columns})

"""Rows of CSV, JSONL and Parquet files, each with its line.

A row that cannot be read is set aside with the reason. Memory is bounded for any file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cuvee.core.errors import StoreError
from cuvee.data.ingest.columns.bounds import bounded, too_large

_LARGEST_FILE = 64 << 20
_LONGEST_LINE = 8 << 20
_MOST_CELLS = 2_000_000
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class BadRow:
    file: str
    line: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "reason": self.reason}


@dataclass(frozen=True)
class Rows:
    """`rows` are (line, cell by column).

    Lines count from 1 as an editor shows them; in Parquet they count rows.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, Any]], ...]
    bad: tuple[BadRow, ...]


def read_rows(path: Path) -> Rows:
    """Reads the file by its suffix: .jsonl, .parquet, else CSV.

    Nested JSON objects become columns `outer/inner`.

    Raises `StoreError` if the file cannot be read at all, or is too large for a table of runs.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            size = path.stat().st_size
            raise StoreError(f"{path} is larger than a table of runs can be: {size} bytes")
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return _json_rows(path)
        if path.suffix.lower() == ".parquet":
            return _parquet_rows(path)
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            return csv_rows(csv.reader(_lines(file, path), strict=True), path)
    except (OSError, csv.Error, ValueError) as error:
        raise StoreError(f"{path} is no readable table: {error}") from error


def csv_rows(reader: Any, path: Path) -> Rows:
    """`reader` is a `csv.reader`; its first row names the columns."""
    header: list[str] = next(reader, [])
    rows: list[tuple[int, Mapping[str, Any]]] = []
    bad: list[BadRow] = []
    for cells in reader:
        if len(cells) == len(header):
            _check_cells(path, len(rows) * len(header))
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
        elif cells:
            reason = f"{len(cells)} cells under {len(header)} columns"
            bad.append(BadRow(str(path), reader.line_num, reason))
    return Rows(path, tuple(header), tuple(rows), tuple(bad))


def number(cell: Any) -> float | None:
    """The number in a cell, None if the cell is empty. Raises `ValueError` for anything else."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        raise ValueError(f"{str(cell)[:40]!r} is no number")
    try:
        return float(cell)
    except OverflowError:
        raise ValueError(f"{str(cell)[:20]}… is too large for a number") from None


def _json_rows(path: Path) -> Rows:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    bad: list[BadRow] = []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        cells = 0
        for line, text in enumerate(_lines(file, path), start=1):
            if not text.strip():
                continue
            try:
                content = json.loads(text)
                if not isinstance(content, dict):
                    raise ValueError(f"a row is a JSON object, not {type(content).__name__}")
                rows.append((line, dict(_flat(content))))
                cells += len(rows[-1][1])
                _check_cells(path, cells)
            except (ValueError, RecursionError) as error:
                bad.append(BadRow(str(path), line, str(error)[:200]))
    columns = tuple(dict.fromkeys(column for _, row in rows for column in row))
    return Rows(path, columns, tuple(rows), tuple(bad))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield f"{prefix}{name}", f"a list of {len(value)}"  # no number, and may be long
        else:
            yield f"{prefix}{name}", value


def _parquet_rows(path: Path) -> Rows:
    from pyarrow import ArrowException, parquet

    rows: list[tuple[int, Mapping[str, Any]]] = []
    cells = 0
    try:
        with bounded():
            file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            names = file.schema_arrow.names
            _check_cells(path, file.metadata.num_rows * len(names))
            batches = file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
        while True:
            with bounded():
                batch = next(batches, None)
                if batch is None:
                    break
                for row in batch.to_pylist():
                    rows.append((len(rows) + 1, dict(_flat(row))))
                    cells += len(rows[-1][1])
                    _check_cells(path, cells)
    except MemoryError as error:
        raise StoreError(f"{path} is no table of runs: {too_large('row groups')}") from error
    except (OverflowError, LookupError, ArrowException) as error:
        raise StoreError(f"{path} is no readable table: {error}") from error
    columns = tuple(dict.fromkeys(column for _, row in rows for column in row))
    return Rows(path, columns or tuple(names), tuple(rows), ())


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise StoreError(
                f"{path} has a line of more than {_LONGEST_LINE >> 20} MiB: it is no table of runs"
            )
        yield line


def _check_cells(path: Path, cells: int) -> None:
    if cells > _MOST_CELLS:
        raise StoreError(
            f"{path} has more than {_MOST_CELLS:,} cells: it is no table of runs; leave out columns "
            "that are not mixtures or metrics"
        )

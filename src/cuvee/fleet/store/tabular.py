"""Rows of CSV, JSONL and Parquet files, each with its line.

A row that cannot be read is set aside with the reason.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.errors import StoreError

_LARGEST_FILE = 1 << 28


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

    Raises `StoreError` if the file cannot be read at all.
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
            return csv_rows(csv.reader(file, strict=True), path)
    except (OSError, csv.Error, ValueError) as error:
        raise StoreError(f"{path} is no readable table: {error}") from error


def csv_rows(reader: Any, path: Path) -> Rows:
    """`reader` is a `csv.reader`; its first row names the columns."""
    header: list[str] = next(reader, [])
    rows: list[tuple[int, Mapping[str, Any]]] = []
    bad: list[BadRow] = []
    for cells in reader:
        if len(cells) == len(header):
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
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                content = json.loads(text)
                if not isinstance(content, dict):
                    raise ValueError(f"a row is a JSON object, not {type(content).__name__}")
                rows.append((line, dict(_flat(content))))
            except (ValueError, RecursionError) as error:
                bad.append(BadRow(str(path), line, str(error)[:200]))
    columns = tuple(dict.fromkeys(column for _, row in rows for column in row))
    return Rows(path, columns, tuple(rows), tuple(bad))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise StoreError(f"{path} is no readable table: {error}") from error
    rows = tuple((line, dict(_flat(row))) for line, row in enumerate(table.to_pylist(), start=1))
    columns = tuple(dict.fromkeys(column for _, row in rows for column in row))
    return Rows(path, columns or tuple(table.column_names), rows, ())

"""Read the text and domain columns of CSV and Arrow files, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from cuvee.core.errors import CorpusError
from cuvee.data.ingest.columns.bounds import bounded, too_large
from cuvee.data.ingest.columns.parquet import (
    NAME_BYTES,
    check_columns,
    field_of,
    name_of,
    values_of,
)

_MAGIC = b"ARROW1"  # of the file format; the stream format has no footer


def read_csv(
    lines: Iterable[bytes], place: str, text_column: str, domain_column: str | None, longest: int
) -> Iterator[tuple[bytes, str | None] | str]:
    """Yield the text and the domain of each row, or why the row cannot be used.

    The first line names the columns. A field has at most `longest` characters. Bytes that are not
    UTF-8 stay as they are. Raises `CorpusError` if the file lacks a column.
    """
    csv.field_size_limit(longest)
    decoded = (line.decode("utf-8", "surrogateescape") for line in lines)
    # Strict: else a quote that is not closed makes one document of the rest of the file.
    reader = csv.reader(decoded, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise CorpusError(f"{place} is no CSV file: {error}") from error
    wanted = [text_column, *([domain_column] if domain_column else [])]
    for column, option in zip(wanted, ("--text-column", "--domain-column"), strict=False):
        if column not in names:
            raise CorpusError(
                f"{place} has no column {column!r}; it has {', '.join(names[:20])}: choose with "
                f"{option}"
            )
    places = [names.index(column) for column in wanted]
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"no row of CSV: {error}"
            continue
        if not row:  # an empty line
            continue
        if len(row) != len(names):
            yield f"{len(row)} cells under {len(names)} columns"
            continue
        text = row[places[0]].encode("utf-8", "surrogateescape")
        domain = row[places[1]].encode("utf-8", "surrogateescape") if domain_column else None
        yield text, None if domain is None else name_of(domain)


def read_arrow(
    path: Path, text_column: str, domain_column: str | None
) -> Iterator[tuple[bytes | None, str | None, float]]:
    """Yield the text, the domain and the share of the file that is read, for each row.

    Reads both Arrow formats, file and stream, such as `datasets` saves. Every batch is validated
    before it is used. Raises `CorpusError` for a file that is damaged, that lacks a column, whose
    columns are not text, or that takes too much memory to decode.
    """
    import pyarrow
    import pyarrow.ipc  # here, where no limit holds: loading it takes memory

    wanted = [text_column, *([domain_column] if domain_column else [])]
    try:
        with _opened(path) as file:
            size = max(file.size(), 1)
            with bounded():
                batches = _batches(file, path, wanted)
            while True:
                with bounded():
                    batch = next(batches, None)
                    if batch is None:
                        return
                    batch.validate(full=True)
                    texts = values_of(field_of(batch, text_column))
                    domains = (
                        values_of(field_of(batch, domain_column), NAME_BYTES)
                        if domain_column
                        else repeat(None)
                    )
                share = min(file.tell() / size, 1.0)
                for text, domain in zip(texts, domains, strict=False):
                    yield text, domain and name_of(domain), share
    except (
        OSError,
        MemoryError,
        ValueError,
        LookupError,
        OverflowError,
        pyarrow.ArrowException,
    ) as error:
        limit = isinstance(error, MemoryError)
        reason = too_large("record batches") if limit else f"{error}; restore it or leave it out"
        raise CorpusError(f"{path} cannot be read as Arrow: {reason}") from error


def _opened(path: Path) -> Any:
    import pyarrow

    if isinstance(path, Path):
        return pyarrow.memory_map(str(path))
    return pyarrow.PythonFile(path.open("rb"), mode="r")


def _batches(file: Any, path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Batches of `columns`; what the file holds beside them is not decompressed."""
    import pyarrow.ipc

    has_footer = file.read(len(_MAGIC)) == _MAGIC
    opened = pyarrow.ipc.open_file if has_footer else pyarrow.ipc.open_stream
    file.seek(0)
    schema = opened(file).schema
    check_columns(path, schema, columns)
    wanted = {column.split(".")[0] for column in columns} | set(columns)
    places = [i for i, name in enumerate(schema.names) if name in wanted]
    file.seek(0)
    reader = opened(file, options=pyarrow.ipc.IpcReadOptions(included_fields=places))
    if has_footer:
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)

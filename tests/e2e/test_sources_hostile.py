"""Files made to exhaust the memory or the disk."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest import reading
from cuvee.data.ingest.documents import Document, Rules, read_documents
from cuvee.data.ingest.reading import read_blocks
from cuvee.data.ingest.sources.raw import find_sources


def read(path: Path) -> list[tuple[int, str]]:
    """(line, text or reason) of every row."""
    rows = []
    for block in read_blocks(find_sources([path])[0], "text", None):
        for line, document in read_documents(block, Rules("text", None, 0.0)):
            rows.append(
                (
                    line,
                    document.text if isinstance(document, Document) else f"bad: {document.reason}",
                )
            )
    return rows


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_line_of_100_mb_is_one_bad_row_and_never_held_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with gzip.open(path, "wb", 1) if suffix.endswith("gz") else open(path, "wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    rows = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == [(1, "before"), (2, "bad: longer than 16 MiB"), (3, "after")]
    assert peak < 64 << 20


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_FREE_EXPANSION_BYTES", 1 << 20)
    monkeypatch.setattr(reading, "MAX_EXPANSION", 20)
    flat = gzip.compress(b"\0" * (40 << 20))
    lines = gzip.compress(b'{"text": "x"}\n' * (1 << 18))
    for content in (flat, lines):
        with pytest.raises(CorpusError, match="looks like a decompression bomb"):
            read(write(tmp_path / "a.jsonl.gz", content))
    bomb = pa.Codec("zstd").compress(b"\0" * (40 << 20), asbytes=True)
    with pytest.raises(CorpusError, match="looks like a decompression bomb"):
        read(write(tmp_path / "a.jsonl.zst", bomb))

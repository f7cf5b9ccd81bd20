"""Reading a source of any bytes gives rows, bad rows with a reason, or a `CorpusError`, and
nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuvee.core.errors import CorpusError
from cuvee.core.mixture import NAME_PATTERN
from cuvee.data.ingest.documents import Document, Rules, read_documents
from cuvee.data.ingest.reading import read_blocks
from cuvee.data.ingest.sources.raw import find_sources

quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
RULES = Rules("text", "topic", 0.1)
ROWS = [{"text": f"row {i} of a few", "topic": "law" if i % 2 else "mail"} for i in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(path: Path) -> int:
    """Checks every row; returns how many there are."""
    rows = 0
    try:
        for block in read_blocks(find_sources([path])[0], "text", "topic"):
            for _, document in read_documents(block, RULES):
                rows += 1
                if isinstance(document, Document):
                    assert document.text.encode().decode() == document.text
                    assert NAME_PATTERN.fullmatch(document.domain)
                else:
                    assert document.reason.isprintable()
    except CorpusError as error:
        assert path.name in str(error)  # noqa: PT017
    return rows


def packed(name: str) -> bytes:
    if name.endswith("gz"):
        return gzip.compress(LINES, mtime=0)
    if name.endswith("zst"):
        return bytes(pa.Codec("zstd").compress(LINES, asbytes=True))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, compression="zstd")
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), max_size=4),
    keep=st.floats(0, 1),
)
@quick
def test_damaged_files(
    tmp_path: Path, name: str, flips: list[tuple[int, int]], keep: float
) -> None:
    content = bytearray(packed(name))
    for at, bit in flips:
        content[at % len(content)] ^= 1 << bit
    (tmp_path / name).write_bytes(
        content[: len(content) if keep > 0.5 else round(len(content) * keep)]
    )
    read(tmp_path / name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "topic", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    lines=st.lists(
        st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()),
        max_size=8,
    )
)
@quick
def test_any_lines(tmp_path: Path, lines: list[bytes]) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    blank = [
        line
        for piece in lines
        for line in piece.split(b"\n")
        if not line.removeprefix(b"\xef\xbb\xbf").strip()
    ]
    total = sum(piece.count(b"\n") + 1 for piece in lines)
    assert total - len(blank) <= read(tmp_path / "a.jsonl") <= total

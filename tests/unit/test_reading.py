"""Reading hostile and damaged files: bad rows with reasons, named errors, bounded memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest import reading
from cuvee.data.ingest.documents import Document, Rules, read_documents
from cuvee.data.ingest.reading import Bad, read_blocks
from cuvee.data.ingest.sources.raw import find_sources

RULES = Rules("text", None, 0.0)


def read(path: Path, rules: Rules = RULES) -> list[tuple[int, str]]:
    """(line, text or reason) of every row."""
    rows = []
    for block in read_blocks(find_sources([path])[0], rules.text_column, rules.domain_column):
        for line, document in read_documents(block, rules):
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


LINES = b'{"text": "one"}\n\n   \n{"text": "two\\nlines", "x": 1}\r\n{"text": "three"}'
TEXTS = [(1, "one"), (4, "two\nlines"), (5, "three")]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda content: content),
        ("a.json", lambda content: b"\xef\xbb\xbf" + content),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.gz", lambda content: gzip.compress(content[:20]) + gzip.compress(content[20:])),
        ("a.jsonl.zst", lambda content: pa.Codec("zstd").compress(content, asbytes=True)),
    ],
)
def test_lines_of_json_plain_and_packed(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    assert read(write(tmp_path / name, pack(LINES))) == TEXTS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{\x00", "not UTF-8"),
        (b"{text}", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"text": ' + b'{"a":' * 100_000, "nested too deeply"),
        (b'["text"]', "not an object but a list"),
        (b'"text"', "not an object but 'text'"),
        (b"null", "not an object but None"),
        (b'{"Text": "one"}', "no key 'text'; the row has 'Text': choose with --text-column"),
        (b'{"text": null}', "'text' is None, not text"),
        (b'{"text": ["one"]}', "'text' is a list, not text"),
        (b'{"text": 1e999}', "'text' is inf, not text"),
        (b'{"text": ""}', "empty text"),
        (b'{"text": " \\n "}', "empty text"),
        (b'{"text": "a\\u0000b"}', "text with a NUL character"),
        (b'{"text": "\\ud800"}', "text with half a surrogate pair"),
    ],
)
def test_a_bad_row_has_a_reason_and_leaves_its_neighbours(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    assert read(path) == [(1, "before"), (2, f"bad: {reason}"), (3, "after")]


def test_a_text_file_is_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\ntwo\n")) == [(1, "one\ntwo\n")]
    assert read(write(tmp_path / "b.txt.gz", gzip.compress(b"one"))) == [(1, "one")]
    assert read(write(tmp_path / "c.txt", b"\xff")) == [(1, "bad: not UTF-8")]
    assert read(write(tmp_path / "d.txt", b"")) == [(1, "bad: empty text")]
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1 << 20)
    assert read(write(tmp_path / "e.txt", b"x" * ((1 << 20) + 1))) == [
        (1, "bad: longer than 1 MiB")
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = b"".join(
        json.dumps({"text": f"row {i} of the file"}).encode() + b"\n" for i in range(5000)
    )
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(content))
    elif name.endswith("zst"):
        path.write_bytes(pa.Codec("zstd").compress(content, asbytes=True))
    else:
        pq.write_table(pa.table({"text": [f"row {i}" for i in range(5000)]}), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x00" * 64, whole[:-4]):
        if damaged == b"" and name != "a.parquet":
            continue  # an empty .gz or .zst holds nothing, and their own tools say so too
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match=name):
            read(path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = ["one", None, "", "two", "one"]
    pq.write_table(
        pa.table({"text": rows, "n": range(5), "topic": list("abcab")}), path, row_group_size=2
    )
    assert read(path) == [
        (1, "one"),
        (2, "bad: 'text' is None, not text"),
        (3, "bad: empty text"),
        (4, "two"),
        (5, "one"),
    ]
    for kind in (pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["one", "zwei"]).cast(kind)}), path)
        assert read(path) == [(1, "one"), (2, "zwei")]
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(CorpusError, match="column 'text' is int64, not text"):
        read(path)
    pq.write_table(pa.table({"text": ["one"]}), path)
    with pytest.raises(
        CorpusError, match="has no column 'body'; it has text: choose with --text-column"
    ):
        read(path, Rules("body", None, 0.0))
    with pytest.raises(CorpusError, match="choose with --domain-column"):
        read(path, Rules("text", "topic", 0.0))


def test_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\x00\0\0\0\x02\0\0\0\x04\0\0\0"), pa.py_buffer(b"\xff\xffok")
    )
    pq.write_table(pa.table({"text": broken, "topic": broken}), path)
    assert read(path) == [(1, "bad: not UTF-8"), (2, "ok")]
    assert [
        line
        for line, text in read(path, Rules("text", "topic", 0.0))
        if text.startswith("bad: the domain")
    ] == [1]


def test_a_repeated_huge_value_in_parquet_is_not_multiplied(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    huge = "x" * (8 << 20)
    indices = pa.array([0] * 16, pa.int32())
    pq.write_table(
        pa.table({"text": pa.DictionaryArray.from_arrays(indices, pa.array([huge]))}), path
    )
    before = pa.total_allocated_bytes()
    blocks = read_blocks(find_sources([path])[0], "text", None)
    assert len(next(blocks).rows) == 1  # each fills a block of its own
    assert pa.total_allocated_bytes() - before < 64 << 20
    assert sum(len(block.rows) for block in blocks) == 15


def test_the_domain_may_come_from_a_column(tmp_path: Path) -> None:
    lines = [
        {"text": "one", "topic": "law"},
        {"text": "two", "topic": "arts & crafts"},
        {"text": "three"},
        {"text": "four", "topic": "../law"},
        {"text": "five", "topic": 5},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)).encode())
    rules = Rules("text", "topic", 0.0)
    documents = [
        document
        for block in read_blocks(find_sources([path])[0], "text", "topic")
        for _, document in read_documents(block, rules)
    ]
    assert isinstance(documents[0], Document)
    assert documents[0].domain == "law"
    reasons = [document.reason for document in documents[1:] if isinstance(document, Bad)]
    assert len(reasons) == 4
    assert reasons[0].startswith("the domain is 'arts & crafts'")


def test_blocks_are_the_same_wherever_reading_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_ROWS", 3)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", b"".join(b'{"text": "%d"}\n' % i for i in range(10)))
    sources = find_sources([tmp_path])[0]
    blocks = list(read_blocks(sources, "text", None))
    assert [block.position for block in blocks] == [(i, j) for i in range(2) for j in range(4)]
    assert [block.first for block in blocks] == [1, 4, 7, 10] * 2
    assert blocks[-1].share == 1.0
    for i, block in enumerate(blocks):
        assert list(read_blocks(sources, "text", None, after=block.position)) == blocks[i + 1 :]

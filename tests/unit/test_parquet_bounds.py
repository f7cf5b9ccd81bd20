"""Small hostile Parquet files cost at most 512 MiB of memory and raise a `CorpusError`,
whatever their metadata claims."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.columns.parquet import read_columns

CHILD = """
import sys
from cuvee.core.errors import CorpusError
from cuvee.data.ingest.build import BuildSettings, build
column, domain, source, folder = sys.argv[1:]
settings = BuildSettings(vocab_size=300, text_column=column, domain_column=domain or None)
try:
    build([source], folder, settings, workers=1)
    print("built")
except CorpusError as error:
    print("refused:", error)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10)
"""


def in_child(path: Path, folder: Path, column: str = "text", domain: str = "") -> tuple[str, int]:
    """What a build says of `path`, and the most memory that it took, in MiB."""
    arguments = [sys.executable, "-c", CHILD, column, domain, str(path), str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    said, peak = done.stdout.splitlines()[-2:]
    return said, int(peak)


def one_long_row(path: Path) -> None:
    text = pa.array(["x" * 500_000_000], pa.large_string())
    pq.write_table(pa.table({"text": text}), path, compression="zstd", use_dictionary=False)


def one_page_of_long_rows(path: Path) -> None:
    table = pa.table({"text": ["x" * 15_000_000] * 36})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)


def shared_prefixes(path: Path) -> None:
    """Delta encoding stores a value as the length of what it shares with the one before."""
    table = pa.table({"text": ["x" * 12_000_000] * 40})
    encoding = {"text": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, path, compression="none", use_dictionary=False, column_encoding=encoding)


def one_entry_many_times(path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000), pa.array(["word " * 2_400_000]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd")


def a_short_text_without_end(path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000_000), pa.array(["some words " * 9]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd")


def nulls_without_end(path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(5_000_000, pa.string())}), path)


def long_domains(path: Path) -> None:
    domain = pa.DictionaryArray.from_arrays(pa.array([0] * 4000), pa.array(["d" * 12_000_000]))
    pq.write_table(pa.table({"text": ["a"] * 4000, "d": domain}), path, compression="zstd")


@pytest.mark.parametrize(
    "bomb",
    [one_long_row, one_page_of_long_rows, shared_prefixes, one_entry_many_times,
     a_short_text_without_end, nulls_without_end, long_domains],
)  # fmt: skip
def test_a_small_file_that_unpacks_to_much_is_refused_in_little_memory(
    tmp_path: Path, bomb: Callable[[Path], None]
) -> None:
    bomb(tmp_path / "a.parquet")
    domain = "d" if bomb is long_domains else ""
    said, peak = in_child(tmp_path / "a.parquet", tmp_path / "corpus", domain=domain)
    assert said.startswith("refused: "), said
    assert peak <= 512


def test_an_encoding_without_dictionaries_is_read(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "d": "law"} for i in range(2000)]
    encodings = {"text": "DELTA_BYTE_ARRAY", "d": "DELTA_LENGTH_BYTE_ARRAY"}
    options: Any = {"use_dictionary": False, "column_encoding": encodings}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", **options)
    found = [
        (text, domain) for text, domain, _ in read_columns(tmp_path / "a.parquet", "text", "d")
    ]
    assert found == [(row["text"].encode(), "law") for row in rows]


def test_sizes_in_the_metadata_are_not_believed(tmp_path: Path) -> None:
    """The counts of the footer are cut to nothing: decoding itself is bounded."""
    path = tmp_path / "a.parquet"
    one_page_of_long_rows(path)
    content = path.read_bytes()
    about = pq.read_metadata(path).row_group(0).column(0)
    for number in (about.total_uncompressed_size, 36):
        content = content.replace(
            varint(2 * number), varint(2 * 1).rjust(len(varint(2 * number)), b"\x80")
        )
    path.write_bytes(content)
    said, peak = in_child(path, tmp_path / "corpus")
    assert said.startswith("refused: "), said
    assert peak <= 512


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize("codec", ["gzip", "zstd", "snappy", "none"])
def test_many_large_rows_are_read_in_little_memory(tmp_path: Path, codec: str) -> None:
    """pyarrow's dictionary of a column grows with each long value that is not in a dictionary."""
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    texts = [f"{i} " + f"word{i} " * 2_000_000 for i in range(24)]
    options = {"compression": codec, "row_group_size": 1, "use_dictionary": False}
    pq.write_table(pa.table({"text": texts}), path, **options)
    long = [text for text, _, _ in read_columns(path, "text", None)]
    assert long == [text.encode() for text in texts]
    small = [f"{i} " + "word " * 200_000 for i in range(40)]
    pq.write_table(pa.table({"text": small}), path, **options)
    said, peak = in_child(path, tmp_path / "corpus")
    assert said == "built"
    assert peak <= 512


def test_large_rows_in_small_pages_are_read(tmp_path: Path) -> None:
    texts = [f"{i} " + "word " * 1_000_000 for i in range(12)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2)
    found = [
        text.decode() for text, _, _ in read_columns(tmp_path / "a.parquet", "text", None) if text
    ]
    assert found == texts


TEXTS = [f"row {i} with words" for i in range(40)]


@pytest.mark.parametrize(
    ("table", "settings", "match"),
    [
        ({"text": [[t, t] for t in TEXTS]}, {}, r"'text' is list.*not text"),
        (
            {"data": [{"text": t} for t in TEXTS]},
            {"text_column": "data"},
            r"its fields are data\.text",
        ),
        (
            {"text": TEXTS, "meta": [{"set": "a"}] * 40},
            {"domain_column": "meta"},
            r"its fields are meta\.set.*--domain-column",
        ),
        ({"text": range(40)}, {}, "is int64, not text"),
        ({"text": TEXTS, "d": [1.5] * 40}, {"domain_column": "d"}, "is double, not text"),
        ({"body": TEXTS, "title": TEXTS}, {}, "no column 'text'; it has body, title"),
        (
            {"data": [{"text": t} for t in TEXTS]},
            {"text_column": "data.body"},
            r"it has data, data\.text",
        ),
    ],
)  # fmt: skip
def test_a_column_that_is_no_text_is_named_with_its_type(
    tmp_path: Path, table: dict[str, Any], settings: dict[str, Any], match: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "web.parquet")
    with pytest.raises(CorpusError, match=match):
        build([tmp_path], tmp_path / "corpus", BuildSettings(vocab_size=300, **settings), workers=1)


def test_a_path_names_a_field_of_a_struct(tmp_path: Path) -> None:
    rows = [{"a": {"text": t, "set": "x" if i % 2 else "y"}} for i, t in enumerate(TEXTS)]
    pq.write_table(pa.table({"data": rows}), tmp_path / "web.parquet")
    settings = BuildSettings(vocab_size=300, text_column="data.a.text", domain_column="data.a.set")
    corpus = build([tmp_path / "web.parquet"], tmp_path / "corpus", settings, workers=1)
    assert corpus.names == ("x", "y")
    assert sum(entry.train.documents for entry in corpus.manifest.domains) <= 40


@pytest.mark.parametrize("bit", [0, 4, 6])
def test_a_flipped_bit_in_the_metadata_is_no_bare_error(tmp_path: Path, bit: int) -> None:
    """Some of them ended the whole process: pyarrow does not catch all errors of its C++ part."""
    path = tmp_path / "web.parquet"
    pq.write_table(pa.table({"text": ["a b c", "d e f"], "topic": ["law", None]}), path)
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    for place in range(len(content) - footer, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with contextlib.suppress(CorpusError):
            list(read_columns(path, "text", "topic"))

"""Sources in CSV and Arrow files, and places that are no files of this machine."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.corpus.names import parse_columns
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.columns.bounds import MAX_ROW_BYTES
from cuvee.data.ingest.reading import Row, read_blocks
from cuvee.data.ingest.sources.raw import find_sources


def rows(path: Path, text: str = "text", domain: str | None = None) -> list[Row]:
    found, _ = find_sources([path])
    return [row for block in read_blocks(found, text, domain) for row in block.rows]


def test_rows_of_csv(tmp_path: Path) -> None:
    content = '\ufeffid,text,kind\n1,"a ""b"", c\nd",law\n\n2,é,web\n3,short\n4,ende,law\n'.encode()
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content))
    expected = [
        (b'a "b", c\nd', "law"),
        ("é".encode(), "web"),
        ("2 cells under 3 columns",),
        (b"ende", "law"),
    ]
    assert rows(tmp_path / "a.csv", domain="kind") == expected
    assert rows(tmp_path / "b.csv.gz", domain="kind") == expected


def test_bytes_that_are_not_utf8_stay(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nna\xefve\n")
    assert rows(tmp_path / "a.csv") == [(b"na\xefve", None)]


def test_a_line_of_csv_that_is_too_long_is_a_bad_row(tmp_path: Path) -> None:
    """Neither is it lost without a word, nor is it cut out of a document."""
    long = b"y" * (MAX_ROW_BYTES + 5)
    for line in (long, b'"a\n' + long + b'"'):
        (tmp_path / "a.csv").write_bytes(b"text\nfirst\n" + line + b"\nlast\n")
        first, bad, last = rows(tmp_path / "a.csv")
        assert (first, last) == ((b"first", None), (b"last", None))
        assert "field larger than field limit" in str(bad)


def test_a_quote_that_is_not_closed_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text\nfirst\n"cut short by a download\n')
    first, bad = rows(tmp_path / "a.csv")
    assert first == (b"first", None)
    assert bad == ("no row of CSV: unexpected end of data",)


def test_a_missing_column_of_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    with pytest.raises(CorpusError, match=r"no column 'text'; it has id, body: choose with --text"):
        rows(tmp_path / "a.csv")


def arrow(path: Path, stream: bool) -> None:
    table = pa.table({"text": ["one", None, "drei"], "kind": ["a", "b", None], "n": [1, 2, 3]})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_arrow(tmp_path: Path, stream: bool) -> None:
    arrow(tmp_path / "a.arrow", stream)
    assert rows(tmp_path / "a.arrow", domain="kind") == [
        (b"one", "a"),
        (None, "b"),
        (b"drei", None),
    ]
    with pytest.raises(CorpusError, match="column 'n' is int64, not text"):
        rows(tmp_path / "a.arrow", text="n")


def test_a_damaged_arrow_file_is_refused(tmp_path: Path) -> None:
    arrow(tmp_path / "a.arrow", stream=True)
    content = bytearray((tmp_path / "a.arrow").read_bytes())
    for place in range(8, len(content), 8):
        changed = content.copy()
        changed[place] ^= 0xFF
        (tmp_path / "b.arrow").write_bytes(changed)
        with contextlib.suppress(CorpusError):
            rows(tmp_path / "b.arrow")


def test_a_data_set_that_datasets_saved_is_one_domain(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "law"
    folder.mkdir(parents=True)
    arrow(folder / "data-00000-of-00001.arrow", stream=True)
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text('{\n  "a": 1\n}\n')
    assert [source.domain for source in find_sources([tmp_path / "raw"])[0]] == ["law"]


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("allenai/c4", "hf download --repo-type dataset allenai/c4"),
        ("no/such/file.jsonl", "give the path of the raw text"),
    ],
)
def test_a_place_elsewhere_is_refused_with_a_remedy(place: str, remedy: str) -> None:
    with pytest.raises(CorpusError, match=remedy):
        find_sources([place])


# ---------------------------------------------------------------------------- hostile Arrow files

COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


def written(path: Path, batch: pa.RecordBatch, *, stream: bool) -> Path:
    """A compressed Arrow file, or stream, of one batch."""
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, batch.schema, options=COMPRESSED) as out:
        out.write_batch(batch)
    return path


PEAK = """
import sys
from pathlib import Path
from cuvee.data.ingest.sources.raw import find_sources
from cuvee.data.ingest.reading import read_blocks
try:
    for block in read_blocks(find_sources([Path(sys.argv[1])])[0], "text", None):
        print([str(row)[:40] for row in block.rows])
except Exception as error:
    print(type(error).__name__, error)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10)
"""


@pytest.mark.parametrize("stream", [False, True])
def test_a_small_arrow_file_that_swells_is_refused(tmp_path: Path, stream: bool) -> None:
    swollen = pa.record_batch({"text": pa.array([b"x" * 700_000_000], pa.large_binary())})
    path = written(tmp_path / "a.arrow", swollen, stream=stream)
    assert path.stat().st_size < 100_000
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True)
    said, peak = done.stdout.splitlines()
    assert "needs more than 192 MiB" in said, done.stderr
    assert "smaller record batches" in said
    assert int(peak) <= 512


def test_a_long_row_of_an_arrow_file_is_not_copied(tmp_path: Path) -> None:
    """It is mapped, not decoded, so the limit of a batch does not hold it."""
    batch = pa.record_batch({"text": ["a", "x" * (MAX_ROW_BYTES + 1), "b"]})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as out,
    ):
        out.write_batch(batch)
    first, long, last = rows(tmp_path / "a.arrow")
    assert (first, last) == ((b"a", None), (b"b", None))
    assert "longer than 16 MiB" in str(long)


@pytest.mark.parametrize("stream", [False, True])
def test_other_columns_of_an_arrow_file_are_not_decompressed(tmp_path: Path, stream: bool) -> None:
    large = pa.array([b"x" * 400_000_000], pa.large_binary())
    batch = pa.record_batch({"image": large, "text": ["a"], "kind": ["law"]})
    path = written(tmp_path / "a.arrow", batch, stream=stream)
    assert rows(path, domain="kind") == [(b"a", "law")]


def test_a_large_batch_of_an_arrow_file_is_read_in_parts(tmp_path: Path) -> None:
    texts = [f"{i} " * 3_000 for i in range(3_000)]  # 40 MB
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file:
        table = pa.table({"text": texts})
        with pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
    assert [row[0] for row in rows(tmp_path / "a.arrow")] == [text.encode() for text in texts]


@pytest.mark.parametrize("stream", [False, True])
def test_a_flipped_bit_in_an_arrow_file_is_no_bare_error(tmp_path: Path, stream: bool) -> None:
    batch = pa.record_batch({"text": ["a b c", "d e f"], "kind": ["law", None]})
    path = written(tmp_path / "a.arrow", batch, stream=stream)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(CorpusError):
            rows(path, domain="kind")


def test_each_domain_may_have_its_text_in_another_column(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    texts = [f"row {i} of some text" for i in range(60)]
    nested = (json.dumps({"post": {"body": f"forum {text}"}}) + "\n" for text in texts)
    (raw / "forum.jsonl").write_text("".join(nested))
    rows_of = "".join(f"{i},ticket {text}\n" for i, text in enumerate(texts))
    (raw / "tickets.csv").write_text(f"id,Body (plain)\n{rows_of}")
    pq.write_table(pa.table({"text": texts}), raw / "web.parquet")
    column, columns = parse_columns(["tickets=Body (plain)", "forum=post.body"])
    settings = BuildSettings(column, columns, vocab_size=300)
    corpus = build([raw], tmp_path / "corpus", settings, workers=2)
    counts = [
        sum(split.documents for split in (one.train, one.valid, one.test) if split)
        for one in corpus.manifest.domains
    ]
    assert counts == [60, 60, 60]
    assert corpus.manifest.bad_rows == 0
    with pytest.raises(CorpusError, match="no domain 'ticket' with a text column of its own; did"):
        build([raw], tmp_path / "other", BuildSettings(text_columns={"ticket": "x"}), workers=1)


def test_text_columns_on_the_command_line() -> None:
    assert parse_columns([]) == ("text", {})
    assert parse_columns(["body"]) == ("body", {})
    assert parse_columns(["body", "web=a=b"]) == ("body", {"web": "a=b"})
    assert parse_columns(["a b=c"]) == ("a b=c", {}), "no domain is called so"
    with pytest.raises(CorpusError, match="gives two columns of web"):
        parse_columns(["web=a", "web=b"])
    with pytest.raises(CorpusError, match="gives two columns, a and b"):
        parse_columns(["a", "b"])

"""Sources at URLs, tested with the memory and local file systems of fsspec."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.sources.raw import find_sources
from cuvee.data.label.labelers import ByFolder
from cuvee.data.label.labels import label

TEXTS = [f"document {i} about nothing, in few words" for i in range(40)]
SETTINGS = BuildSettings(vocab_size=300, targets=("maths",))


def jsonl(words: str) -> bytes:
    return b"".join(json.dumps({"text": f"{words}: {text}"}).encode() + b"\n" for text in TEXTS)


def files() -> dict[str, bytes]:
    """A file of each format."""
    table = pyarrow.table({"text": [f"arrow: {text}" for text in TEXTS]})
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    arrow = io.BytesIO()
    with pyarrow.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    return {
        "maths.jsonl": jsonl("maths"),
        "law.jsonl.gz": gzip.compress(jsonl("law"), mtime=0),
        "code/part-00000.parquet": parquet.getvalue(),
        "web.arrow": arrow.getvalue().replace(b"arrow: ", b"web..: "),
        "news.csv": b"text\n" + "".join(f'"csv, {text}"\n' for text in TEXTS).encode(),
        "table.json": b'[{"domain": "maths", "role": "target"}]',
    }


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name, content in files().items():
        (tmp_path / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / name).write_bytes(content)
    return tmp_path / "text"


@pytest.fixture
def memory() -> Iterator[str]:
    pytest.importorskip("upath")
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.store.clear()
    for name, content in files().items():
        store.pipe(f"/bucket/text/{name}", content)
    yield "memory://bucket/text"
    store.store.clear()


def test_text_in_an_object_store_gives_the_corpus_of_the_same_local_text(
    local: Path, memory: str, tmp_path: Path
) -> None:
    here = build([local], tmp_path / "here", SETTINGS, workers=1)
    there = build([memory], tmp_path / "there", SETTINGS, workers=2)
    assert here.names == ("code", "law", "maths", "news", "web")
    assert there.fingerprint == here.fingerprint
    assert there.manifest == here.manifest
    again = build([f"file://{local}"], tmp_path / "again", SETTINGS, workers=1)
    assert again.fingerprint == here.fingerprint


def test_text_in_an_object_store_can_be_labelled(memory: str, tmp_path: Path) -> None:
    labels = label([f"{memory}/maths.jsonl"], tmp_path / "labelled", ByFolder(), workers=1)
    assert [row.name for row in labels.labels] == ["maths"]


def test_a_place_that_is_not_there_is_named(memory: str) -> None:
    with pytest.raises(CorpusError, match=f"no file or folder {memory}/none"):
        find_sources([f"{memory}/none"])
    with pytest.raises(CorpusError, match=r"nosuch://x cannot be reached .*copy the text here"):
        find_sources(["nosuch://x"])


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(CorpusError, match="s3://bucket/a is not on this machine: copy it here"):
        find_sources(["s3://bucket/a"])


@pytest.mark.parametrize("url", ["s3://me:hush@bucket/a", "s3://hush@bucket/a", "s3://b/a?k=hush"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(CorpusError, match="credentials in the environment") as refused:
        find_sources([url])
    assert "hush" not in str(refused.value)


def test_a_url_that_became_a_path_object_is_refused() -> None:
    with pytest.raises(CorpusError, match="give it as a string"):
        find_sources([Path("s3://bucket/a")])

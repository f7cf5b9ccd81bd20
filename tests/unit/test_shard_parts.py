"""Shards of other programs: parts become one domain, subfolders are read, and the rest is listed."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.errors import CorpusError, ShardError
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.shards import bin_path, read_index, write_index
from cuvee.data.ingest.adopt import adopt
from cuvee.data.ingest.shards.finding import find_shards
from cuvee.data.ingest.shards.joining import join_shards

END = 7
KNOWN: dict[str, Any] = {"vocab_size": 1000, "end_of_text": END}


def shard(path: Path, *documents: list[int], dtype: str = "<i4") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [[*ids, END] for ids in documents]
    np.array(list(itertools.chain(*rows)), dtype).tofile(bin_path(path))
    write_index(path, np.array([len(row) for row in rows], np.int32), np.dtype(dtype))
    return path


def shards(folder: Path, *names: str) -> Path:
    """The i-th shard holds the documents [100 + i] and [100 + i, 1]."""
    for i, name in enumerate(names):
        shard(folder / name, [100 + i], [100 + i, 1])
    return folder


def first_ids(corpus: Corpus, name: str, split: Any = "train") -> list[int]:
    pool = corpus.pool(name, split)
    return pool.tokens[pool.document_starts].tolist()


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ([f"web_{i}_text_document" for i in range(12)], "web"),
        ([f"web_text_document_{i}" for i in (1, 2)], "web"),
        ([f"x.0000{i}-of-01024" for i in range(3)], "x"),
        (["part-00000", "part-00001"], "part"),
        ([f"web_0000{i}" for i in range(1, 4)], "web"),
    ],
)
def test_parts_become_one_domain_in_number_order(
    tmp_path: Path, names: list[str], whole: str
) -> None:
    place = shards(tmp_path / "in", *names, "law")
    with pytest.warns(UserWarning, match=f"parts of the domain {whole} ") as seen:
        corpus = adopt([place], tmp_path / "corpus", **KNOWN)
    assert f"{len(names)} shards" in str(seen[0].message)
    assert corpus.names == tuple(sorted(["law", whole]))
    ids = [100 + i for i in range(len(names)) for _ in range(2)]
    assert first_ids(corpus, whole) == ids
    assert corpus.pool(whole).tokens.tolist() == [
        token for i in range(len(names)) for token in (100 + i, END, 100 + i, 1, END)
    ]
    corpus.verify()


@pytest.mark.parametrize(
    "names",
    [
        ["law_2019", "law_2020"],
        ["web_0", "web_2"],
        ["web_2", "web_3"],
        ["web_0", "law"],
        ["web_1", "web_01", "web_2"],
        ["web_0", "web-1"],
        ["gpt1", "gpt2"],
        ["web", "web_0", "web_1"],
        ["web_0", "web_1", "web-0", "web-1"],
    ],
)
def test_other_names_with_numbers_stay_domains(tmp_path: Path, names: list[str]) -> None:
    place = shards(tmp_path / "in", *names)
    assert {found.name for found in find_shards([place]).shards} == set(names)


def test_a_table_or_the_manifest_of_a_corpus_says_that_numbers_are_names(tmp_path: Path) -> None:
    place = shards(tmp_path / "in", "topic_0", "topic_1", "topic_2")
    table = '[{"domain": "topic_0"}, {"domain": "topic_1"}, {"domain": "topic_2"}]'
    (place / "table.json").write_text(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = adopt([place], place, **KNOWN)
        assert corpus.names == ("topic_0", "topic_1", "topic_2")
        (place / "table.json").unlink()
        assert adopt([place], tmp_path / "again", **KNOWN).names == corpus.names


@pytest.mark.filterwarnings("ignore:.*parts of the domain")
def test_parts_of_all_splits_are_counted_together(tmp_path: Path) -> None:
    place = shards(tmp_path / "in", "train/web_0", "train/web_1", "valid/web_2")
    corpus = adopt([place], place, **KNOWN)
    assert first_ids(corpus, "web") == [100, 100, 101, 101]
    assert first_ids(corpus, "web", "valid") == [102, 102]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.[bi]*")}
    assert adopt([place], place, **KNOWN).fingerprint == corpus.fingerprint
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.[bi]*")} == before
    Corpus.open(place.rename(tmp_path / "moved")).verify()


@pytest.mark.filterwarnings("ignore:.*parts of the domain")
def test_wrong_parts_are_named_before_anything_is_copied(tmp_path: Path) -> None:
    place = shards(tmp_path / "in", "web_0", "web_1")
    with pytest.raises(CorpusError, match="more than one shard of web_0"):
        adopt([place, place / "web_0.bin"], tmp_path / "corpus", **KNOWN)
    shard(place / "web_1", [3], dtype="<u2")
    with pytest.raises(CorpusError, match="hold int32 and uint16"):
        adopt([place], tmp_path / "corpus", **KNOWN)
    shard(place / "web_1", [1000])
    with pytest.raises(ShardError, match=r"web_1\.bin: token 0 is 1000, outside"):
        adopt([place], tmp_path / "corpus", **KNOWN)
    np.array([3, 3], "<i4").tofile(bin_path(place / "web_1"))
    with pytest.raises(CorpusError, match=r"web_1\.bin: document 0 ends with token 3"):
        adopt([place], tmp_path / "corpus", **KNOWN)
    assert not (tmp_path / "corpus").exists()
    shard(place / "web_1")  # a part without documents
    assert first_ids(adopt([place], tmp_path / "corpus", **KNOWN), "web") == [100, 100]


@pytest.mark.filterwarnings("ignore:.*parts of the domain")
@pytest.mark.parametrize("documents", [[[5]], [[101], [101], [1]], [[101, END, 101, 1]]])
def test_a_corpus_of_other_parts_stays_as_it_is(tmp_path: Path, documents: list[list[int]]) -> None:
    """The last case has the same tokens, in one document."""
    place = shards(tmp_path / "in", "web_0", "web_1")
    corpus = adopt([place], tmp_path / "corpus", **KNOWN)
    shard(place / "web_1", *documents)
    with pytest.raises(CorpusError, match="already holds a corpus of other sources"):
        adopt([place], tmp_path / "corpus", **KNOWN)
    corpus.verify()


def test_a_subfolder_is_a_domain_of_all_shards_below_it(tmp_path: Path) -> None:
    place = shards(
        tmp_path / "in", "web/part-9", "web/part-10", "web/deep/x", "law/only", "mail", ".old/x"
    )
    corpus = adopt([place], tmp_path / "corpus", **KNOWN)
    assert corpus.names == ("law", "mail", "web")
    assert first_ids(corpus, "web") == [102, 102, 100, 100, 101, 101]
    assert first_ids(corpus, "law") == [103, 103]


def test_files_that_are_not_shards_are_listed(tmp_path: Path) -> None:
    place = shards(tmp_path / "in", "train/web/x", "valid/web", "train/law", "valid/law", "loose")
    (place / "train" / "web" / "notes.txt").write_text("x")
    (place / "train" / "lone.bin").write_text("x")
    (place / "train" / "gone.idx").symlink_to(tmp_path / "nowhere")
    (place / "tokenizer.json").write_text("{}")
    with pytest.warns(UserWarning, match="5 files were not read") as seen:
        adopt([place], tmp_path / "corpus", **KNOWN)
    for name in ("notes.txt", "lone.bin", "gone.idx", "loose.bin", "loose.idx"):
        assert name in str(seen[0].message)


documents = st.lists(st.lists(st.integers(8, 999), max_size=4), max_size=5)


@given(parts=st.lists(documents, min_size=1, max_size=4))
def test_joining_is_concatenation(
    parts: list[list[list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    paths = [shard(folder / str(i), *part) for i, part in enumerate(parts)]
    joined = join_shards(paths, folder, "train/web")
    whole = shard(folder / "whole", *itertools.chain(*parts))
    for ending in (".bin", ".idx"):
        assert Path(f"{joined}{ending}").read_bytes() == Path(f"{whole}{ending}").read_bytes()
    assert read_index(joined).tokens == sum(len(ids) + 1 for part in parts for ids in part)

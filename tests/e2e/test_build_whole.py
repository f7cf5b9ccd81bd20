"""Builds with worker processes, and from Hugging Face data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from datasets import Dataset

from cuvee.core.errors import CorpusError
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest import reading
from cuvee.data.ingest import tokenize as encoding
from cuvee.data.ingest.build import BuildSettings, build

SMALL = BuildSettings(vocab_size=300)


def texts(topic: str) -> list[str]:
    return [
        f"Document {i} about {topic}, the {i * i}th of them.\nIt has two lines." for i in range(40)
    ]


def content(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def documents(corpus: Corpus, name: str) -> list[str]:
    pool = corpus.pool(name)
    ends = [*pool.document_starts[1:].tolist(), len(pool)]
    rows = [
        pool.tokens[a : b - 1].tolist()
        for a, b in zip(pool.document_starts.tolist(), ends, strict=True)
    ]
    decoded: list[str] = corpus.tokenizer().decode_batch(rows, skip_special_tokens=False)
    return decoded


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for name in ("law", "mail", "code"):
        rows = (json.dumps({"text": text}) for text in texts(name))
        (tmp_path / "text" / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path / "text"


def test_the_same_bytes_with_any_number_of_workers(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_ROWS", 7)
    one = build([sources], tmp_path / "one", SMALL, workers=1)
    two = build([sources], tmp_path / "two", SMALL, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    monkeypatch.setattr(encoding, "STEP_BLOCKS", 1)
    build([sources], tmp_path / "three", SMALL, workers=1)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_hugging_face_data_sets(tmp_path: Path) -> None:
    law = Dataset.from_dict({"body": texts("law"), "n": list(range(40))})
    mail = Dataset.from_dict({"body": texts("mail")})
    settings = BuildSettings(
        vocab_size=300, text_column="body", targets=("law",), valid_share=0, test_share=0
    )
    corpus = build({"mail": mail, "law": law}, tmp_path / "corpus", settings, workers=1)
    assert corpus.names == ("law", "mail")
    assert documents(corpus, "law") == texts("law")
    assert corpus.domains[0].is_target
    assert (
        build({"mail": mail, "law": law}, tmp_path / "corpus", settings, workers=1).fingerprint
        == corpus.fingerprint
    )
    with pytest.raises(CorpusError, match="dataset:law has no column 'text'; it has body, n"):
        build({"law": law}, tmp_path / "other", SMALL, workers=1)
    with pytest.raises(CorpusError, match="give a map-style"):
        build({"law": law.to_iterable_dataset()}, tmp_path / "other", SMALL, workers=1)

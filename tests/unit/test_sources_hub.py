"""Data sets of the Hugging Face Hub and of `datasets`, as they lie on this machine."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.sources.raw import find_sources

Found = set[tuple[str, str, str | None]]


def rows(path: Path, stem: str = "document", count: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": f"{stem} {i} of {path.name}"}) + "\n" for i in range(count))
    path.write_text("".join(lines))
    return path


def found(*places: Path | str) -> Found:
    """(file, domain, split) of each source."""
    sources, _ = find_sources(places)
    return {(source.path.name, source.domain, source.split) for source in sources if source.path}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(cache: Path, *names: str, commit: str = "a" * 40) -> Path:
    """A copy in the Hub's cache: blobs, and links to them."""
    folder = cache / "hub" / "datasets--owner--stories"
    place = folder / "snapshots" / commit
    for number, name in enumerate(names):
        blob = rows(folder / "blobs" / f"{commit}{number}", name)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(blob, place / name)
    (place / "README.md").write_text("about it")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return place


def test_a_cached_data_set_is_read_by_its_name(cache: Path) -> None:
    place = snapshot(cache, "data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl")
    expected: Found = {
        ("train-00000-of-00001.jsonl", "stories", None),
        ("test-00000-of-00001.jsonl", "stories", "test"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a README is no text that was forgotten
        for one in ("owner/stories", place.parent.parent, place):
            assert found(one) == expected
    corpus = build(["owner/stories"], cache / "corpus", BuildSettings(vocab_size=300), workers=1)
    (entry,) = corpus.manifest.domains
    assert entry.test is not None
    assert entry.test.documents >= 40, "its test split is not trained on"


def test_the_newest_commit_is_read(cache: Path) -> None:
    snapshot(cache, "train.jsonl", commit="a" * 40)
    snapshot(cache, "train.jsonl", "validation.jsonl", commit="b" * 40)
    snapshot(cache, "train.jsonl", commit="c" * 40)
    (cache / "hub" / "datasets--owner--stories" / "refs" / "main").write_text("b" * 40)
    assert found("owner/stories") == {
        ("train.jsonl", "stories", "train"),
        ("validation.jsonl", "stories", "valid"),
    }


def test_a_prepared_data_set_is_read_by_its_name_without_what_map_cached(cache: Path) -> None:
    for part in ("english", "french"):
        for version in ("0.0.0/old", "0.0.0/new"):
            folder = cache / "prepared" / "owner___facts" / part / version
            for name in ("facts-train.jsonl", "facts-validation.jsonl", "cache-1f.jsonl"):
                rows(folder / name, f"{part} {version}")
            (folder / "dataset_info.json").write_text('{"dataset_name": "facts"}')
            os.utime(folder / "dataset_info.json", (1, 1 if "old" in version else 2))
    assert found("owner/facts") == {
        (f"facts-{split}.jsonl", part, known)
        for part in ("english", "french")
        for split, known in (("train", "train"), ("validation", "valid"))
    }
    alone = cache / "prepared" / "owner___facts" / "french" / "0.0.0" / "new"
    assert {domain for _, domain, _ in found(alone)} == {"facts"}


def test_a_saved_data_set_keeps_its_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows(tmp_path / "raw" / "law" / split / "data-00000-of-00001.jsonl", split)
    (tmp_path / "raw" / "law" / "dataset_dict.json").write_text("{}")
    rows(tmp_path / "raw" / "web.jsonl")
    law: Found = {
        ("data-00000-of-00001.jsonl", "law", None),
        ("data-00000-of-00001.jsonl", "law", "test"),
    }
    assert found(tmp_path / "raw" / "law") == law
    assert found(tmp_path / "raw") == law | {("web.jsonl", "web", None)}


def test_a_download_is_one_domain_or_one_for_each_configuration(tmp_path: Path) -> None:
    (tmp_path / "wiki" / ".cache" / "huggingface").mkdir(parents=True)
    rows(tmp_path / "wiki" / "de" / "train-0.jsonl")
    (tmp_path / "wiki" / "requirements.txt").write_text("what its script needs")
    with pytest.warns(UserWarning, match=r"not read.*requirements\.txt"):
        assert found(tmp_path / "wiki") == {("train-0.jsonl", "wiki", None)}
    rows(tmp_path / "wiki" / "fr" / "train-0.jsonl", "texte")
    with pytest.warns(UserWarning, match=r"requirements\.txt"):
        assert {domain for _, domain, _ in found(tmp_path / "wiki")} == {"de", "fr"}


def test_a_data_set_of_tests_only_is_split_by_hash(cache: Path) -> None:
    snapshot(cache, "data/test-00000-of-00001.jsonl")
    assert found("owner/stories") == {("test-00000-of-00001.jsonl", "stories", None)}


def test_a_name_that_is_not_cached_says_how_to_download_it(cache: Path) -> None:
    with pytest.raises(CorpusError, match="hf download --repo-type dataset owner/stories"):
        find_sources(["owner/stories"])


def test_a_path_that_exists_is_no_name(cache: Path) -> None:
    snapshot(cache, "train.jsonl")
    rows(cache / "owner" / "stories" / "mine.jsonl")
    assert found("owner/stories") == {("mine.jsonl", "mine", None)}


def test_equal_text_files_are_equal_documents(tmp_path: Path) -> None:
    for number in range(60):
        path = tmp_path / "notes" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"note {number % 50} of many")
    settings = BuildSettings(vocab_size=300)
    corpus = build([tmp_path / "notes"], tmp_path / "corpus", settings, workers=1)
    (entry,) = corpus.manifest.domains
    split = (entry.train, entry.valid, entry.test)
    assert sum(one.documents for one in split if one) == 60
    with pytest.raises(CorpusError, match="give each file once"):
        build([tmp_path / "notes", tmp_path / "notes"], tmp_path / "again", settings, workers=1)

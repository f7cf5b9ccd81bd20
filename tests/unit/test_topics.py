"""Clustering: topics that follow the text, named by their words, the same every time."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertModel

from cuvee.core.errors import CorpusError
from cuvee.core.mixture import NAME_PATTERN
from cuvee.data.corpus.model_folder import find_model
from cuvee.data.label.labels import LabelSettings, label
from cuvee.data.label.report import Labels, agreement
from cuvee.data.label.topics import ByTopics, _names, find_embedder
from labelled_text import content_of, read_text, sections, write_text

SUBJECTS = {
    "kitchen": "soup flour butter oven recipe onion garlic bake boil salt",
    "sky": "planet orbit telescope galaxy comet lunar eclipse star nebula moon",
    "court": "judge plaintiff statute appeal verdict clause tort jury counsel law",
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of random words of three subjects, all in one file; the subject is in each row."""
    folder = tmp_path_factory.mktemp("subjects")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(240):
        subject = list(SUBJECTS)[i % 3]
        words = rng.choice([*SUBJECTS[subject].split(), "and", "of"], 30)
        rows.append({"text": " ".join(words), "subject": subject})
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "raw")


def cluster(source: Path, out: Path, topics: int, seed: int = 0, **more: Any) -> Labels:
    settings = LabelSettings(by_role=more.pop("by_role", False))
    return label([source], out, ByTopics(topics, seed, **more), settings, workers=1)


def test_clusters_are_the_subjects_and_bear_their_words(subjects: Path, tmp_path: Path) -> None:
    found = cluster(subjects, tmp_path / "out", 3)
    confusion: dict[str, dict[str, int]] = {}
    for _, domain, row in read_text(tmp_path / "out"):
        cell = confusion.setdefault(row["subject"], {})
        cell[domain] = cell.get(domain, 0) + 1
    assert agreement(confusion).adjusted_mutual_information == pytest.approx(1)
    for one in found.labels:
        assert NAME_PATTERN.fullmatch(one.name)
        subject = next(subject for subject, cells in confusion.items() if one.name in cells)
        assert set(one.words) <= set(SUBJECTS[subject].split())
        assert one.name == "-".join(one.words[:3])
    assert {split for split, *_ in read_text(tmp_path / "out")} == {"train", "valid", "test"}


def test_real_text_is_distinguished(text: Path, tmp_path: Path) -> None:
    found = cluster(text, tmp_path / "out", 6, by_role=True)
    assert found.agreement.adjusted_mutual_information is not None
    assert found.agreement.adjusted_mutual_information > 0.15
    assert {row.role for row in found.labels} == {"source", "target"}
    assert all(row.name.endswith(f".{row.role}") for row in found.labels)
    assert all(len(row.words) == 8 for row in found.labels)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    text: Path, tmp_path: Path
) -> None:
    cluster(text, tmp_path / "a", 4, seed=3)
    cluster(text, tmp_path / "b", 4, seed=3)
    cluster(text, tmp_path / "c", 4, seed=4)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")
    assert content_of(tmp_path / "a") != content_of(tmp_path / "c")


def test_topics_are_fitted_on_a_sample_of_training_text_alone(text: Path, tmp_path: Path) -> None:
    """Other validation text, another order of training text: the same topics."""
    other = tmp_path / "raw"
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for split, domain, row in read_text(text):
        rows.setdefault((split, domain), []).append(row)
    for (split, domain), some in rows.items():
        (other / split).mkdir(parents=True, exist_ok=True)
        kept = reversed(some) if split == "train" else some[:1]
        (other / split / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    cluster(text, tmp_path / "a", 5, documents=100)
    cluster(other, tmp_path / "b", 5, documents=100)
    first = {row["id"]: domain for _, domain, row in read_text(tmp_path / "a")}
    second = {row["id"]: domain for _, domain, row in read_text(tmp_path / "b")}
    assert len(second) < len(first)
    assert all(first[name] == domain for name, domain in second.items())


def test_names_are_safe_and_unique() -> None:
    told = [
        ["für", "über", "straße"],
        ["数", "学"],
        ["学"],
        ["for", "uber", "x"],
        ["fur", "uber", "strae", "y"],
    ]
    names = _names([*told, *[["fur", "uber", "strae"]] * 2, ["w" * 80], ["w" * 80]])
    assert names[:5] == ["fur-uber-strae", "topic", "topic-2", "for-uber-x", "fur-uber-strae-y"]
    assert len(set(names)) == len(names)
    assert all(NAME_PATTERN.fullmatch(f"{name}.source") for name in names)


def test_what_cannot_be_clustered_is_said(tmp_path: Path) -> None:
    place = tmp_path / "few.jsonl"
    place.write_text("\n".join(json.dumps({"text": f"document {i} of few"}) for i in range(5)))
    with pytest.raises(
        CorpusError,
        match=r"26 topics cannot be found in \d different training documents: ask for fewer",
    ):
        cluster(place, tmp_path / "out", 26)
    with pytest.raises(CorpusError, match="words do not distinguish any topics"):
        cluster(place, tmp_path / "out", 2)
    texts = ["soup and salt", "planet and orbit", "soup and salt and salt"] * 2
    place.write_text(
        "\n".join(json.dumps({"text": f"{t} {'!' * i}"}) for i, t in enumerate(texts * 4))
    )
    with pytest.raises(CorpusError, match=r"12 topics cannot be found: the documents fall into \d"):
        cluster(place, tmp_path / "out", 12)
    with pytest.raises(
        CorpusError, match="30 topics cannot be found in a sample of 20 documents: draw more"
    ):
        ByTopics(30, 0, documents=20)


def test_a_refusal_leaves_no_stale_fit(tmp_path: Path) -> None:
    """What was too little text for the topics is enough once there is more."""
    place = tmp_path / "few.jsonl"
    place.write_text(json.dumps({"text": "one"}))
    with pytest.raises(CorpusError, match="ask for fewer"):
        cluster(place, tmp_path / "out", 3)
    rows = [{"text": text} for text in sections("mail")[:60]]
    place.write_text("\n".join(map(json.dumps, rows)))
    assert len(cluster(place, tmp_path / "out", 3).labels) == 3


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as sentence-transformers saves it, and a substitute library that embeds by first
    letters."""
    folder = tmp_path / "embedder"
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
    BertModel(BertConfig(**size, intermediate_size=8)).save_pretrained(folder)
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')

    class SentenceTransformer:
        def __init__(self, path: str, **settings: Any) -> None:
            assert settings["trust_remote_code"] is False
            assert settings["model_kwargs"] == {"use_safetensors": True}
            assert path == str(folder)

        def encode(self, texts: Sequence[str], **settings: Any) -> Any:
            return np.array(
                [
                    [sum(w[0] == c for w in text.split()) for c in "abcdefgjlnopstvw"]
                    for text in texts
                ]
            )

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    return folder


def test_embeddings_in_place_of_words(embedder: Path, subjects: Path, tmp_path: Path) -> None:
    found = cluster(
        subjects, tmp_path / "out", 3, embeddings=find_embedder(f"sentence-transformers:{embedder}")
    )
    assert found.by["embeddings"]["model"] == "embedder"
    assert (
        sum(
            len(set(row.words) & set(words.split())) == 8
            for row in found.labels
            for words in SUBJECTS.values()
        )
        == 3
    )


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("os.system", ""),
        ("sentence_transformers.models.Router", ""),
        ("sentence_transformers.models.Dense", "2_Dense"),
        ("sentence_transformers.models.Transformer", "../elsewhere"),
        ("sentence_transformers_plus.models.Transformer", ""),
    ],
)
def test_embedders_bring_no_code(embedder: Path, kind: str, path: str) -> None:
    (embedder / "modules.json").write_text(json.dumps([{"type": kind, "path": path}]))
    with pytest.raises(
        CorpusError, match=rf"asks for {re.escape(kind)} in '{re.escape(path)}', which may run code"
    ):
        ByTopics(3, 0, embeddings=find_model(str(embedder)))


def test_broken_embedders_are_refused(embedder: Path) -> None:
    (embedder / "modules.json").unlink()
    with pytest.raises(CorpusError, match="cannot be loaded as a sentence-transformers model"):
        ByTopics(3, 0, embeddings=find_model(str(embedder)))
    with pytest.raises(CorpusError, match="names no embeddings"):
        find_embedder("all-MiniLM")


@pytest.mark.parametrize("fault", ["nan", "inf", "missing", "no pooler", "int8"])
def test_embedders_of_incomplete_or_damaged_weights_are_refused(embedder: Path, fault: str) -> None:
    place = embedder / "model.safetensors"
    weights = load_file(place)
    name = "encoder.layer.0.output.dense.weight"
    if fault == "no pooler":  # mean pooling does not read it
        save_file({k: v for k, v in weights.items() if "pooler" not in k}, place)
        ByTopics(3, 0, embeddings=find_model(str(embedder)))
        return
    if fault == "missing":
        del weights[name]
    elif fault == "int8":
        weights[name] = weights[name].astype(np.int8)
    else:
        weights[name].reshape(-1)[-1] = float(fault)
    save_file(weights, place)
    with pytest.raises(CorpusError, match=re.escape(name)):
        ByTopics(3, 0, embeddings=find_model(str(embedder)))


def test_a_missing_library_is_named_with_the_remedy(
    embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(CorpusError, match="not installed: pip install 'sentence-transformers"):
        ByTopics(3, 0, embeddings=find_model(str(embedder)))

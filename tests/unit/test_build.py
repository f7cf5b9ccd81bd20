"""A build writes the right tokens in the right shards, the same with any number of workers, and
refuses with helpful errors."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import SPLITS
from cuvee.core.errors import CorpusError
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.manifest import digest
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.corpus.tokenizer import train_tokenizer
from cuvee.data.ingest import build as module
from cuvee.data.ingest import survey
from cuvee.data.ingest.adopt import adopt
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.build_folder import open_build_folder
from cuvee.testing.faults import KillAt, failing

SMALL = BuildSettings(vocab_size=300)


def texts(topic: str, count: int = 40) -> list[str]:
    return [
        f"Document {i} about {topic}, the {i * i}th of them.\nIt has two lines."
        for i in range(count)
    ]


def put(path: Path, documents: Iterable[str], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **columns}) + "\n" for text in documents))
    return path


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in ("law", "mail", "code"):
        put(tmp_path / "text" / f"{name}.jsonl", texts(name))
    return tmp_path / "text"


def documents(corpus: Corpus, pool: TokenPool) -> list[str]:
    ends = [*pool.document_starts[1:].tolist(), len(pool)]
    spans = zip(pool.document_starts.tolist(), ends, strict=True)
    rows = [pool.tokens[start:end].tolist() for start, end in spans]
    assert all(row[-1] == corpus.end_of_text for row in rows)
    return corpus.tokenizer().decode_batch([row[:-1] for row in rows], skip_special_tokens=False)


def content(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_document_arrives_once_in_order(sources: Path, tmp_path: Path) -> None:
    corpus = build([sources], tmp_path / "corpus", SMALL, workers=1)
    assert corpus.names == ("code", "law", "mail")
    assert corpus.vocab_size <= 300
    for name in corpus.names:
        train = documents(corpus, corpus.pool(name))
        held_out = [
            text
            for split in ("valid", "test")
            if corpus.has(name, split)
            for text in documents(corpus, corpus.pool(name, split))
        ]
        assert sorted(train + held_out) == sorted(texts(name))
        assert [text for text in texts(name) if text in set(train)] == train
        domain = corpus.domains[corpus.names.index(name)]
        assert domain.tokens == len(corpus.pool(name))
        assert domain.scores["mtld"] > 1
        assert (
            corpus.bytes_per_token(name)
            == sum(len(text.encode()) for text in train) / domain.tokens
        )
    assert not (tmp_path / "corpus" / ".build").exists()
    assert not (tmp_path / "corpus" / "quarantine.jsonl").exists()
    corpus.verify()


def test_the_split_depends_on_the_document_alone(tmp_path: Path) -> None:
    many = texts("law", 600)
    settings = BuildSettings(vocab_size=300, valid_share=0.2)
    a = build([put(tmp_path / "a" / "law.jsonl", many)], tmp_path / "ca", settings, workers=1)
    b = build(
        [put(tmp_path / "b" / "law.jsonl", many[::-1] + many[:5])],
        tmp_path / "cb",
        settings,
        workers=1,
    )
    valid = documents(a, a.pool("law", "valid"))
    assert 80 <= len(valid) <= 160
    assert set(documents(b, b.pool("law", "valid"))) == set(valid)
    assert not set(documents(b, b.pool("law"))) & set(valid)
    none = build(
        [tmp_path / "a"], tmp_path / "cc", BuildSettings(vocab_size=300, valid_share=0), workers=1
    )
    assert not none.has("law", "valid")
    with pytest.raises(CorpusError, match="law has no valid documents"):
        none.pool("law", "valid")


def test_train_and_valid_are_kept_and_a_domain_may_have_no_valid(tmp_path: Path) -> None:
    put(tmp_path / "text" / "train" / "law.jsonl", texts("law"))
    put(tmp_path / "text" / "train" / "junk.jsonl", texts("junk"))
    put(tmp_path / "text" / "valid" / "law.jsonl", texts("lawyers", 7))
    (tmp_path / "text" / "table.json").write_text('[{"domain": "law", "role": "target"}]')
    corpus = build([tmp_path / "text"], tmp_path / "corpus", SMALL, workers=1)
    assert [(domain.name, domain.role) for domain in corpus.domains] == [
        ("junk", "source"),
        ("law", "target"),
    ]
    assert documents(corpus, corpus.pool("law")) == texts("law")
    assert documents(corpus, corpus.pool("law", "valid")) == texts("lawyers", 7)
    assert not corpus.has("junk", "valid")


def test_a_built_corpus_is_opened_and_another_refused(sources: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    first = build([sources], tmp_path / "corpus", SMALL, workers=1)
    again = build(
        [sources],
        tmp_path / "corpus",
        SMALL,
        workers=1,
        progress=lambda stage, _: stages.append(stage),
    )
    assert again.fingerprint == first.fingerprint
    assert set(stages) == {"hashing the sources"}
    with pytest.raises(CorpusError, match="already holds a corpus of other sources or settings"):
        build([sources], tmp_path / "corpus", BuildSettings(vocab_size=301), workers=1)
    put(sources / "law.jsonl", texts("laws"))
    with pytest.raises(CorpusError, match="already holds a corpus of other sources or settings"):
        build([sources], tmp_path / "corpus", SMALL, workers=1)


def test_a_folder_with_something_else_in_it_is_refused_untouched(
    sources: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(CorpusError, match=r"already holds thesis\.tex: choose an empty folder"):
        build([sources], tmp_path / "mine", SMALL, workers=1)
    assert content(tmp_path / "mine") == {"thesis.tex": b"precious"}


def test_bad_rows_are_quarantined_and_too_many_stop_the_build(
    sources: Path, tmp_path: Path
) -> None:
    law = sources / "law.jsonl"
    law.write_bytes(law.read_bytes() + b'{"text": ""}\nnonsense\n{"text": "\xff"}\n')
    corpus = build([sources], tmp_path / "corpus", SMALL, workers=1)
    assert corpus.manifest.bad_rows == 3
    rows = [
        json.loads(line)
        for line in (tmp_path / "corpus" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert rows == [
        {"file": str(law), "line": 41, "reason": "empty text"},
        {"file": str(law), "line": 42, "reason": "not JSON"},
        {"file": str(law), "line": 43, "reason": "not UTF-8"},
    ]
    strict = BuildSettings(vocab_size=300, max_bad_rows=2)
    with pytest.raises(
        CorpusError,
        match=r"more than 2 bad rows.*empty text, first .*law.jsonl line 41.*--max-bad-rows",
    ):
        build([sources], tmp_path / "strict", strict, workers=1)
    assert len((tmp_path / "strict" / "quarantine.jsonl").read_text().splitlines()) == 3
    with pytest.raises(CorpusError, match=r"has no manifest\.json; its build was interrupted"):
        Corpus.open(tmp_path / "strict")
    build(
        [sources], tmp_path / "strict", SMALL, workers=1
    )  # with more allowed, the same folder serves
    assert content(tmp_path / "strict") == content(tmp_path / "corpus")


def test_mended_sources_take_the_place_of_an_unfinished_build(
    sources: Path, tmp_path: Path
) -> None:
    law = sources / "law.jsonl"
    whole = law.read_bytes()
    law.write_bytes(whole + b"nonsense\n")
    with pytest.raises(CorpusError, match="more than 0 bad rows"):
        build(
            [sources], tmp_path / "corpus", BuildSettings(vocab_size=300, max_bad_rows=0), workers=1
        )
    law.write_bytes(whole)
    build([sources], tmp_path / "corpus", SMALL, workers=1)
    build([sources], tmp_path / "clean", SMALL, workers=1)
    assert content(tmp_path / "corpus") == content(tmp_path / "clean")


def test_killed_while_an_unfinished_build_is_cleared(sources: Path, tmp_path: Path) -> None:
    """Before each step of the removal: what stays is never taken for a part of another build."""
    law = sources / "law.jsonl"
    good = law.read_bytes()
    law.write_bytes(good + b"nonsense\n")
    strict = BuildSettings(vocab_size=300, max_bad_rows=0)
    half = tmp_path / "half"
    build([sources], tmp_path / "other", SMALL, workers=1)
    with pytest.raises(CorpusError, match="more than 0 bad rows"):
        build([sources], half, strict, workers=1)
    for split in ("train", "valid"):  # as if it had got as far as the shards
        shutil.copytree(tmp_path / "other" / split, half / split)
    shutil.copy(tmp_path / "other" / "tokenizer.json", half / ".build" / "tokenizer.json")
    (half / ".build" / "survey.json").write_text("{}")
    law.write_bytes(good)
    build([sources], tmp_path / "whole", SMALL, workers=1)
    for at in itertools.count():
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(half, folder)
        killed = killed_while_clearing(folder, at)
        build([sources], folder, SMALL, workers=1)
        assert content(folder) == content(tmp_path / "whole")
        if not killed:
            break
    assert at > 8


def killed_while_clearing(folder: Path, at: int) -> bool:
    """Clear the folder for another build, in a child that dies before its file-system call `at`."""
    child = os.fork()
    if child == 0:
        with (
            failing(KillAt(at)),
            contextlib.suppress(BaseException),
            open_build_folder(folder, "another"),
        ):
            pass
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_the_test_split_is_apart_and_leaves_validation_as_it_was(tmp_path: Path) -> None:
    path = put(tmp_path / "law.jsonl", texts("law", 600))
    without, with_test = (
        build([path], tmp_path / name, BuildSettings(vocab_size=300, valid_share=0.1, test_share=t))
        for name, t in (("without", 0.0), ("with", 0.1))
    )
    assert not without.has("law", "test")
    valid, test, train = (
        set(documents(with_test, with_test.pool("law", split)))
        for split in ("valid", "test", "train")
    )
    assert valid == set(documents(without, without.pool("law", "valid")))
    assert train | test == set(documents(without, without.pool("law")))
    assert 30 <= len(test) <= 90
    assert not test & train
    with_test.verify()
    hidden = with_test.without_test()
    assert not hidden.has("law", "test")
    assert hidden.fingerprint == with_test.fingerprint


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.1, 1.0)])
def test_shares_that_leave_no_training_text_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(CorpusError, match=r"(valid|test)_share is .*: (it|their sum) must"):
        BuildSettings(valid_share=shares[0], test_share=shares[1])


def test_folders_define_the_splits_and_a_test_folder_is_used_if_it_is_there(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        put(tmp_path / "text" / split / "law.jsonl", texts(f"{split} law", 5))
    corpus = build([tmp_path / "text"], tmp_path / "corpus", SMALL, workers=1)
    for split in SPLITS:
        assert documents(corpus, corpus.pool("law", split)) == texts(f"{split} law", 5)
    shards = tmp_path / "corpus"
    adopted = adopt([shards], tmp_path / "adopted", tokenizer=shards / "tokenizer.json")
    assert documents(adopted, adopted.pool("law", "test")) == texts("test law", 5)


def test_a_corpus_of_format_1_opens_and_keeps_its_fingerprint(
    sources: Path, tmp_path: Path
) -> None:
    settings = BuildSettings(vocab_size=300, test_share=0)
    folder = build([sources], tmp_path / "corpus", settings, workers=1).folder
    document = json.loads((folder / "manifest.json").read_text())
    fingerprint = document.pop("fingerprint")
    del document["checksum"]
    document["format"] = 1
    for domain in document["domains"]:
        del domain["test"]
    old = {**document, "fingerprint": fingerprint, "checksum": digest(document)}
    (folder / "manifest.json").write_text(json.dumps(old))
    assert Corpus.open(folder).fingerprint == fingerprint


def test_domains_from_a_column(tmp_path: Path) -> None:
    put(tmp_path / "text" / "1.jsonl", texts("law"), topic="law")
    put(tmp_path / "text" / "2.jsonl", texts("mail"), topic="mail")
    put(tmp_path / "text" / "3.jsonl", texts("laws"), topic="law")
    settings = BuildSettings(
        vocab_size=300, domain_column="topic", targets=("mail",), valid_share=0, test_share=0
    )
    corpus = build([tmp_path / "text"], tmp_path / "corpus", settings, workers=1)
    assert [(domain.name, domain.role) for domain in corpus.domains] == [
        ("law", "source"),
        ("mail", "target"),
    ]
    assert documents(corpus, corpus.pool("law")) == texts("law") + texts("laws")
    with pytest.raises(CorpusError, match="no domain 'post' to make a target"):
        build(
            [tmp_path / "text"],
            tmp_path / "other",
            BuildSettings(vocab_size=300, domain_column="topic", targets=("post",)),
            workers=1,
        )


def test_a_column_of_a_thousand_names_is_no_domain_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MAX_DOMAINS", 50)
    rows = (json.dumps({"text": "text", "id": f"id{i}"}) for i in range(100))
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(rows))
    with pytest.raises(CorpusError, match="more than 50 domains: is 'id' the column"):
        build([path], tmp_path / "corpus", BuildSettings(domain_column="id"), workers=1)


def test_a_tokenizer_may_be_given(sources: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text(train_tokenizer(texts("wine", 300), 280))
    settings = BuildSettings(tokenizer=given)
    corpus = build([sources], tmp_path / "corpus", settings, workers=1)
    assert (tmp_path / "corpus" / "tokenizer.json").read_bytes() == given.read_bytes()
    assert corpus.vocab_size <= 280
    with pytest.raises(CorpusError, match="has no end-of-text token <end>"):
        build(
            [sources],
            tmp_path / "other",
            BuildSettings(tokenizer=given, end_of_text="<end>"),
            workers=1,
        )
    given.write_text("{}")
    with pytest.raises(CorpusError, match=r"given.json is no tokenizer\.json"):
        build([sources], tmp_path / "other", settings, workers=1)


def test_a_large_vocabulary_has_wide_tokens(sources: Path, tmp_path: Path) -> None:
    wide = json.loads(train_tokenizer(texts("wine"), 280))
    wide["model"]["vocab"]["far"] = 70_000
    given = tmp_path / "given.json"
    given.write_text(json.dumps(wide))
    corpus = build([sources], tmp_path / "corpus", BuildSettings(tokenizer=given), workers=1)
    assert corpus.vocab_size == 70_001
    assert corpus.pool("law").tokens.dtype == np.int32
    assert len(documents(corpus, corpus.pool("law"))) == corpus.manifest.domains[1].train.documents


def test_very_many_files_are_summed_up_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("law", "mail"):
        for i in range(8):
            put(tmp_path / "text" / name / f"{i}.jsonl", [f"{name} {i} in a few words"])
    settings = BuildSettings(vocab_size=300, valid_share=0, test_share=0)
    full = build([tmp_path / "text"], tmp_path / "full", settings, workers=1).manifest.sources
    assert [source.label for source in full][:2] == ["text/law/0.jsonl", "text/law/1.jsonl"]
    monkeypatch.setattr(module, "_MOST_ENTRIES", 10)
    short = build([tmp_path / "text"], tmp_path / "short", settings, workers=1).manifest.sources
    assert [source.label for source in short] == ["all/law, 8 files", "all/mail, 8 files"]
    assert sum(source.size for source in short) == sum(source.size for source in full)


def test_two_domains_of_one_name_are_one(sources: Path, tmp_path: Path) -> None:
    put(tmp_path / "more" / "law.jsonl", texts("tort"))
    settings = BuildSettings(vocab_size=300, valid_share=0, test_share=0)
    corpus = build(
        [sources / "law.jsonl", tmp_path / "more"], tmp_path / "corpus", settings, workers=1
    )
    assert corpus.names == ("law",)
    assert documents(corpus, corpus.pool("law")) == texts("law") + texts("tort")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_share": 1.0}, "valid_share is 1.0"),
        ({"valid_share": float("nan")}, "valid_share is nan"),
        ({"vocab_size": 256}, "vocab_size is 256: it must be at least 257"),
        ({"max_bad_rows": -1}, "max_bad_rows is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        BuildSettings(**settings)


def test_mistakes_are_refused_early(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="workers is 0"):
        build([sources], tmp_path / "corpus", SMALL, workers=0)
    with pytest.raises(CorpusError, match="did you mean mail"):
        build([sources], tmp_path / "corpus", BuildSettings(targets=("mial",)), workers=1)
    (sources / "empty.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match="no training text in empty"):
        build([sources], tmp_path / "corpus", SMALL, workers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"cannot write to .* choose another with -o"):
        build([sources / "law.jsonl"], tmp_path / "file" / "corpus", SMALL, workers=1)


def test_one_build_at_a_time(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    refused: list[str] = []

    def meanwhile(stage: str, share: float) -> None:
        if stage == "reading" and not refused:
            with pytest.raises(CorpusError, match="another process is building") as caught:
                build([sources], folder, SMALL, workers=1)
            refused.append(str(caught.value))

    build([sources], folder, SMALL, workers=1, progress=meanwhile)
    assert refused


def test_a_damaged_unfinished_build_is_named(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"

    class Stop(Exception):
        pass

    def stop(stage: str, share: float) -> None:
        if stage == "hashing the shards":
            raise Stop

    with pytest.raises(Stop):
        build([sources], folder, SMALL, workers=1, progress=stop)
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    for name in ("survey.json", "progress.json"):
        (folder / ".build" / name).write_text("{")
        with pytest.raises(
            CorpusError, match=f"{name} was altered while the build was interrupted"
        ):
            build([sources], folder, SMALL, workers=1)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    build([sources], folder, SMALL, workers=1)


def test_sources_packed_and_plain_give_the_same_tokens(sources: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in sources.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    a = build([sources], tmp_path / "a", SMALL, workers=1)
    b = build([packed], tmp_path / "b", SMALL, workers=1)
    assert a.fingerprint == b.fingerprint


def test_the_sample_is_the_documents_of_lowest_rank_whatever_the_order() -> None:
    rows = [
        (name, rank * 7919 % 1009, f"{name} {rank} " * 5)
        for name in ("a", "b", "c")
        for rank in range(200)
    ]
    orders = (rows, rows[::-1], sorted(rows, key=lambda row: row[1]), rows + rows[:50])
    samples = []
    for order in orders:
        sample = survey.Sample(budget=6000)
        for row in order:
            sample.add(*row)
        samples.append({name: sample.texts(name) for name in ("a", "b", "c")})
    assert all(sample == samples[0] for sample in samples)
    for name, drawn in samples[0].items():
        lowest = [
            text for domain, _, text in sorted(rows, key=lambda row: row[1]) if domain == name
        ]
        assert drawn == lowest[: len(drawn)]
        assert sum(map(len, drawn)) >= 2000 > sum(map(len, drawn[:-1]))

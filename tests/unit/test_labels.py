"""Labelling: nothing is lost, `build` reads the layout, every labeler without a model, and
errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest import reading
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.sources.raw import find_sources
from cuvee.data.label import writing as label_writing
from cuvee.data.label.labelers import (
    ByColumn,
    ByFolder,
    ByMap,
    ByRandom,
    ByRole,
    Item,
    Labeller,
    Way,
)
from cuvee.data.label.labels import LabelSettings, label
from cuvee.data.label.report import Labels, agreement, read_labels
from labelled_text import content_of, read_text, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "raw")


def relabel(source: Path, out: Path, way: Way, **settings: Any) -> Labels:
    return label([source], out, way, LabelSettings(**settings), workers=1)


def rows_by_id(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["id"]: (split, domain) for split, domain, row in read_text(folder)}


def test_nothing_is_lost_and_every_row_says_where_it_was(text: Path, tmp_path: Path) -> None:
    relabel(text, tmp_path / "out", ByRandom(4, seed=0))
    before = {row["id"]: (split, domain, row) for split, domain, row in read_text(text)}
    after = {row["id"]: (split, domain, row) for split, domain, row in read_text(tmp_path / "out")}
    assert set(before) == set(after)
    for name, (split, domain, row) in before.items():
        assert after[name] == (
            split,
            after[name][1],
            row | {"cuvee_domains": [domain, after[name][1]]},
        )


def test_labels_of_labels_remember_both(text: Path, tmp_path: Path) -> None:
    relabel(text, tmp_path / "one", ByRole())
    relabel(
        tmp_path / "one", tmp_path / "two", ByMap.of({"source": "all", "target": "all"}, "here")
    )
    for _, domain, row in read_text(tmp_path / "two"):
        assert domain == "all"
        assert row["cuvee_domains"] == [row["id"].split("-")[0], row["cuvee_domains"][1], "all"]


def test_build_follows_with_roles(text: Path, tmp_path: Path) -> None:
    found = relabel(text, tmp_path / "out", ByRandom(2, seed=1), by_role=True)
    corpus = build(
        [tmp_path / "out"], tmp_path / "corpus", BuildSettings(vocab_size=300), workers=1
    )
    expected = [(f"random-{k}.{role}", role) for k in "01" for role in ("source", "target")]
    assert [(domain.name, domain.role) for domain in corpus.domains] == expected
    assert [entry.train.documents for entry in corpus.manifest.domains] == [
        row.train.documents for row in found.labels
    ]
    assert [entry.valid and entry.valid.documents for entry in corpus.manifest.domains] == [
        row.valid.documents for row in found.labels
    ]
    assert {
        row["id"].split("-")[0]
        for _, domain, row in read_text(tmp_path / "out")
        if "target" in domain
    } == {"numbers"}


def test_targets_on_the_command_line_overrule_the_table(text: Path, tmp_path: Path) -> None:
    found = relabel(text, tmp_path / "out", ByRole(), targets=("mail",))
    assert found.roles == {"mail": "target", "network": "source", "numbers": "source"}
    assert [(row.name, row.role, row.target_share) for row in found.labels] == [
        ("source", "source", 0),
        ("target", "target", 1),
    ]
    assert found.confusion["mail"].keys() == {"target"}


def test_a_column_becomes_domains(text: Path, tmp_path: Path) -> None:
    found = relabel(text, tmp_path / "out", ByColumn("kind"))
    assert [(row.name, row.spelled) for row in found.labels] == [
        ("Code", "Code"),
        ("Code-docs", "Code & docs"),
    ]
    assert found.mixed == ("Code", "Code-docs")
    for _, domain, row in read_text(tmp_path / "out"):
        assert domain == ("Code-docs" if row["kind"] == "Code & docs" else "Code")


def test_a_map_merges(text: Path, tmp_path: Path) -> None:
    way = ByMap.of({"mail": "net", "network": "net", "numbers": "maths"}, "here")
    found = relabel(text, tmp_path / "out", way)
    assert [(row.name, row.role) for row in found.labels] == [
        ("maths", "target"),
        ("net", "source"),
    ]
    assert found.agreement.completeness is not None
    assert found.agreement.homogeneity is not None
    assert found.agreement.homogeneity < 1
    with pytest.raises(
        CorpusError, match="the map has no line for the domain 'numbers': is 'number' meant for it"
    ):
        relabel(
            text,
            tmp_path / "b",
            ByMap.of({"mail": "net", "network": "net", "number": "maths"}, "here"),
        )
    with pytest.raises(CorpusError, match="here maps 'mail' to 3"):
        ByMap.of({"mail": 3}, "here")


def test_random_labels_depend_on_text_and_seed_alone(text: Path, tmp_path: Path) -> None:
    found = relabel(text, tmp_path / "a", ByRandom(12, seed=5))
    assert [row.name for row in found.labels][:3] == ["random-00", "random-01", "random-02"]
    assert found.agreement.adjusted_mutual_information == pytest.approx(0, abs=0.03)
    again = tmp_path / "again"
    for split, domain, row in read_text(text):  # other files, another order, fewer documents
        if domain != "mail":
            (again / split).mkdir(parents=True, exist_ok=True)
            (again / split / "z.jsonl").open("a").write(json.dumps(row) + "\n")
    relabel(again, tmp_path / "b", ByRandom(12, seed=5))
    other = relabel(text, tmp_path / "c", ByRandom(12, seed=6))
    first, second = rows_by_id(tmp_path / "a"), rows_by_id(tmp_path / "b")
    assert all(first[name] == second[name] for name in second)
    assert rows_by_id(tmp_path / "c") != first
    assert len(other.labels) == 12


def test_folders_stay_and_are_counted(text: Path, tmp_path: Path) -> None:
    found = relabel(text, tmp_path / "out", ByFolder())
    assert found == read_labels(tmp_path / "out")
    assert found.agreement.adjusted_mutual_information == pytest.approx(1)
    for row in found.labels:
        documents = [
            r["text"]
            for split, domain, r in read_text(text)
            if domain == row.name and split == "train"
        ]
        assert (row.train.documents, row.train.bytes) == (
            len(documents),
            sum(len(t.encode()) for t in documents),
        )
        assert len(row.examples) == 3
        assert all(example.domain == row.name for example in row.examples)
        assert all(
            any(" ".join(t.split()).startswith(e.text) for t in documents) for e in row.examples
        )


def test_text_without_splits_is_split_as_build_does_it(text: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for _, domain, row in read_text(text):
        (flat / f"{domain}.jsonl").open("a").write(json.dumps(row) + "\n")
    settings = BuildSettings(vocab_size=300, valid_share=0.2)
    direct = build([flat], tmp_path / "direct", settings, workers=1)
    relabel(flat, tmp_path / "out", ByFolder(), valid_share=0.2)
    follows = build([tmp_path / "out"], tmp_path / "follows", settings, workers=1)
    assert direct.fingerprint == follows.fingerprint


def test_parquet_and_text_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    table = pyarrow.table(
        {"content": ["one two", "drei vier"], "lang": ["en", "de"], "other": [1, 2]}
    )
    pyarrow.parquet.write_table(table, raw / "words.parquet")
    found = relabel(raw, tmp_path / "out", ByColumn("lang"), text_column="content", valid_share=0)
    assert found.text_column == "content"
    assert [row for *_, row in read_text(tmp_path / "out")] == [
        {"content": "drei vier", "cuvee_domains": ["words", "de"]},
        {"content": "one two", "cuvee_domains": ["words", "en"]},
    ]
    (raw / "note.txt").write_text("a note")
    found = relabel(raw, tmp_path / "all", ByFolder(), text_column="content", valid_share=0)
    assert [row.name for row in found.labels] == ["raw", "words"]


def test_domains_may_be_in_a_column(text: Path, tmp_path: Path) -> None:
    found = relabel(text, tmp_path / "out", ByRole(), domain_column="id", targets=("mail-0",))
    assert [row.train.documents for row in found.labels][1] == 1
    with pytest.raises(CorpusError, match="no domain 'mail-none' to make a target"):
        relabel(text, tmp_path / "no", ByRole(), domain_column="id", targets=("mail-none",))
    with pytest.raises(CorpusError, match="domains cannot be read from the column 'id'"):
        relabel(text, tmp_path / "no", ByColumn("kind"), domain_column="id")


def test_a_row_without_its_column_is_named(text: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError,
        match=r"more than 100 bad rows.*no label under 'topic', first .*mail\.jsonl\.gz line 1",
    ):
        relabel(text, tmp_path / "out", ByColumn("topic"))
    small = tmp_path / "small.jsonl"
    small.write_text(
        '{"text": "a", "topic": "x"}\n\n{"text": "b"}\n{"text": "c", "topic": 7}\n'
        '{"text": "d", "topic": [1]}\n'
    )
    found = relabel(small, tmp_path / "small", ByColumn("topic"), valid_share=0)
    assert [row.name for row in found.labels] == ["7", "x"]
    bad = [json.loads(line) for line in (tmp_path / "small" / "quarantine.jsonl").open()]
    assert [(row["line"], row["reason"]) for row in bad] == [
        (3, "no label under 'topic'"),
        (5, "no label under 'topic' but a list"),
    ]
    with pytest.raises(
        CorpusError,
        match=r"no training document got a label; .*small\.jsonl line 1: no label under",
    ):
        relabel(small, tmp_path / "none", ByColumn("Topic"))


def test_labels_that_would_be_one_domain_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "a.jsonl"
    place.write_text('{"text": "a", "k": "C++"}\n{"text": "b", "k": "C"}\n')
    with pytest.raises(
        CorpusError, match=r"the labels 'C\+\+' and 'C' would both be the domain C: rename"
    ):
        relabel(place, tmp_path / "out", ByColumn("k"), valid_share=0)
    place.write_text(
        '{"text": "a", "k": "数学"}\n{"text": "b", "k": "'
        + "x" * 65
        + '"}\n{"text": "c", "k": "ok"}\n'
    )
    found = relabel(place, tmp_path / "out", ByColumn("k"), valid_share=0)
    assert found.bad_rows == 2
    assert "cannot name a domain" in (tmp_path / "out" / "quarantine.jsonl").read_text()


def test_awkward_rows_survive_or_are_named(tmp_path: Path) -> None:
    place = tmp_path / "a.jsonl"
    long = "é" * ((16 << 20) // 2 - 20)
    rows = [
        json.dumps({"text": "half a pair elsewhere", "note": "\ud800"}),
        json.dumps({"text": "own history", "cuvee_domains": "mine"}),
        json.dumps({"text": long}, ensure_ascii=False),
    ]
    place.write_text("\n".join(rows))
    found = relabel(place, tmp_path / "out", ByFolder(), valid_share=0)
    assert (
        "longer than 16 MiB with its label" in (tmp_path / "out" / "quarantine.jsonl").read_text()
    )
    assert found.bad_rows == 1
    assert [row for *_, row in read_text(tmp_path / "out")] == [
        {"text": "half a pair elsewhere", "note": "\ud800", "cuvee_domains": ["a", "a"]},
        {"text": "own history", "cuvee_domains": ["a", "a"]},
    ]


def test_a_label_without_training_text_is_set_aside(tmp_path: Path) -> None:
    for split, kinds in (("train", "aab"), ("valid", "abc")):
        (tmp_path / "raw" / split).mkdir(parents=True)
        rows = (json.dumps({"text": f"{split} {i}", "k": kind}) for i, kind in enumerate(kinds))
        (tmp_path / "raw" / split / "all.jsonl").write_text("\n".join(rows))
    found = relabel(tmp_path / "raw", tmp_path / "out", ByColumn("k"))
    assert found.left_out == {"c": 1}
    assert (tmp_path / "out" / "left_out" / "valid" / "c.jsonl.gz").exists()
    assert len(find_sources([tmp_path / "out"])[0]) == 4
    corpus = build(
        [tmp_path / "out"], tmp_path / "corpus", BuildSettings(vocab_size=300), workers=1
    )
    assert corpus.names == ("a", "b")


def test_what_is_there_is_not_overwritten(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = relabel(text, out, ByRole())
    before = content_of(out)
    assert relabel(text, out, ByRole()) == first
    assert content_of(out) == before
    with pytest.raises(CorpusError, match="already holds labels of other sources or settings"):
        relabel(text, out, ByFolder())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CorpusError, match="already holds something else"):
        relabel(text, tmp_path / "full", ByFolder())
    for inside in (text, text / "train" / "labelled", text.parent):
        with pytest.raises(CorpusError, match="contains the other: choose a folder"):
            relabel(text, inside, ByFolder())
    (out / "labels.json").write_text("{}")
    with pytest.raises(CorpusError, match="no report of this version"):
        relabel(text, out, ByRole())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"], (
        "nothing hidden stays"
    )


def test_what_is_refused_before_anything_is_read(text: Path, tmp_path: Path) -> None:
    (text.parent / "plain").mkdir(exist_ok=True)
    plain = text.parent / "plain" / "a.txt"
    plain.write_text("text")
    for refused, way, settings in (
        ("no domain is a target", ByRole(), {}),
        ("no domain is a target", ByFolder(), {"by_role": True}),
        ("no domain 'b' to make a target", ByFolder(), {"targets": ("b",)}),
    ):
        with pytest.raises(CorpusError, match=refused):
            relabel(plain, tmp_path / "out", way, **settings)
    for topics in (1, 2049):
        with pytest.raises(CorpusError, match=f"{topics} topics were requested"):
            ByRandom(topics, seed=0)
    with pytest.raises(CorpusError, match="valid_share is 1"):
        LabelSettings(valid_share=1)
    with pytest.raises(CorpusError, match="max_bad_rows is -1"):
        LabelSettings(max_bad_rows=-1)
    with pytest.raises(CorpusError, match="workers is 0"):
        label([plain], tmp_path / "out", ByFolder(), workers=0)
    assert not list(tmp_path.iterdir())


def test_too_many_labels_are_no_labels(tmp_path: Path) -> None:
    place = tmp_path / "a.jsonl"
    place.write_text("\n".join(json.dumps({"text": f"text {i}", "id": i}) for i in range(2100)))
    with pytest.raises(
        CorpusError, match="more than 2048 labels: is 'id' the column with the label"
    ):
        relabel(place, tmp_path / "out", ByColumn("id"))


@dataclass(frozen=True)
class Counting(Way):
    """Labels by length, counts what it is asked, and fails when told to."""

    step_blocks: ClassVar[int] = 2
    asked: ClassVar[list[int]] = []
    fail_after: ClassVar[int] = 10**9

    def to_json(self) -> dict[str, Any]:
        return {"way": "counting"}

    def labeller(self, work: Path) -> Labeller:
        def answer(items: Sequence[Item]) -> list[str]:
            if len(Counting.asked) >= Counting.fail_after:
                raise KeyboardInterrupt
            Counting.asked.append(len(items))
            return ["long" if len(item.document.text) > 300 else "short" for item in items]

        return answer


@pytest.mark.parametrize("fail_after", [1, 4, 5, 8])
def test_what_a_step_has_labelled_is_not_asked_again(
    fail_after: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_ROWS", 40)
    monkeypatch.setattr(Counting, "asked", [])
    label_writing._labeller.cache_clear()
    relabel(text, tmp_path / "whole", Counting())
    whole = Counting.asked.copy()
    assert len(whole) > 10
    monkeypatch.setattr(Counting, "asked", [])
    monkeypatch.setattr(Counting, "fail_after", fail_after)
    with pytest.raises(KeyboardInterrupt):
        relabel(text, tmp_path / "out", Counting())
    assert not (tmp_path / "out").exists()
    kept = fail_after - fail_after % 2
    monkeypatch.setattr(Counting, "fail_after", 10**9)
    relabel(text, tmp_path / "out", Counting())
    assert Counting.asked == whole[:fail_after] + whole[kept:]
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_damage_between_two_runs_is_found(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_ROWS", 40)
    monkeypatch.setattr(Counting, "fail_after", 4)
    monkeypatch.setattr(Counting, "asked", [])
    with pytest.raises(KeyboardInterrupt):
        relabel(text, tmp_path / "out", Counting())
    progress = tmp_path / ".out.labelling" / ".build" / "progress.json"
    progress.write_text("{}")
    with pytest.raises(CorpusError, match="was altered while the build was interrupted"):
        relabel(text, tmp_path / "out", Counting())


def test_any_number_of_processes_gives_the_same_bytes(text: Path, tmp_path: Path) -> None:
    label([text], tmp_path / "one", ByRandom(3, 0), workers=1)
    label([text], tmp_path / "two", ByRandom(3, 0), workers=2)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_agreement_by_hand() -> None:
    same = agreement({"a": {"x": 5}, "b": {"y": 3}})
    assert same.adjusted_mutual_information == pytest.approx(1)
    assert (same.homogeneity, same.completeness) == pytest.approx((1, 1))
    split = agreement({"a": {"x": 4, "y": 4}, "b": {"z": 8}})
    assert (split.homogeneity, split.completeness) == pytest.approx((1, 2 / 3))
    one = agreement({"a": {"x": 4, "y": 4}})
    assert one.model_dump() == {
        "adjusted_mutual_information": None,
        "homogeneity": None,
        "completeness": None,
    }
    many = 20_000_000
    even = agreement({"a": {"x": many, "y": many}, "b": {"x": many, "y": many}})
    assert even.adjusted_mutual_information == pytest.approx(0, abs=1e-6)

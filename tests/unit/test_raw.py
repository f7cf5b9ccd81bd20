"""Which files are found, what domain they belong to, which role it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuvee.core.errors import CorpusError
from cuvee.data.ingest.sources.raw import TextSource, choose_roles, find_sources


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def found(*places: Path) -> list[tuple[str, str | None, str]]:
    return [(source.domain, source.split, source.label) for source in find_sources(places)[0]]


def test_the_domain_of_a_file_is_its_name(tmp_path: Path) -> None:
    for name in ("law.jsonl", "mail.json.gz", "code.c.jsonl.zst", "web.parquet", "notes.txt"):
        put(tmp_path / name)
        assert find_sources([tmp_path / name])[0][0].path == tmp_path / name
    names = [
        find_sources([tmp_path / name])[0][0].domain
        for name in ("law.jsonl", "mail.json.gz", "code.c.jsonl.zst", "web.parquet", "notes.txt")
    ]
    assert names == ["law", "mail", "code.c", "web", "notes"]


def test_files_and_folders_in_a_folder_are_domains(tmp_path: Path) -> None:
    root = tmp_path / "all"
    put(root / "law.jsonl")
    put(root / "books" / "b" / "2.txt")
    put(root / "books" / "1.txt")
    put(root / "books" / ".hidden" / "0.txt")
    put(root / ".cache.jsonl")
    put(root / "picture.png")
    assert found(root) == [
        ("books", None, "all/books/1.txt"),
        ("books", None, "all/books/b/2.txt"),
        ("law", None, "all/law.jsonl"),
    ]


def test_text_files_right_in_a_folder_are_one_domain(tmp_path: Path) -> None:
    put(tmp_path / "poems" / "1.txt")
    put(tmp_path / "poems" / "2.txt.gz")
    assert [domain for domain, _, _ in found(tmp_path / "poems")] == ["poems", "poems"]


def test_the_parts_of_a_data_set_are_one_domain(tmp_path: Path) -> None:
    put(tmp_path / "web-00000-of-00002.parquet")
    put(tmp_path / "web-00001-of-00002.parquet")
    assert [domain for domain, _, _ in found(tmp_path)] == ["web", "web"]


SPARK = "part-0000{}-0f1a2b3c-aaaa-4bbb-8ccc-1234567890ab-c000"


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("web-0000{}-of-00004-0123456789abcdef", "web"),
        ("web_{}_of_4", "web"),
        ("web.0000{}", "web"),
        ("web_part{}", "web"),
        ("web-shard-{}", "web"),
        ("web.chunk.{}", "web"),
        ("en_head_000{}", "en_head"),
        ("part-0000{}", "given"),
        (SPARK, "given"),
        (f"{SPARK}.snappy", "given"),
        ("0000{}-of-00004", "given"),
        ("000{}", "given"),
        ("00{}_00000", "given"),
        ("web-{}of3", "web"),
        ("web_0a1b2c3{}-aaaa-4bbb-8ccc-1234567890ab", "web"),
        ("part-0000{}-tid-887654321-0f1a2b3c-aaaa-4bbb-8ccc-1234567890ab-7-1-c000.snappy", "given"),
        ("web_v{}", None),
        ("201{}", None),
        ("phase-{}", None),
        ("depart{}", None),
    ],
)
def test_names_of_parts(tmp_path: Path, name: str, domain: str | None) -> None:
    for i in (1, 2):
        put(tmp_path / "given" / f"{name.format(i)}.jsonl")
    expected = [domain] * 2 if domain else [name.format(i) for i in (1, 2)]
    assert [domain for domain, _, _ in found(tmp_path / "given")] == expected


def test_train_and_valid_are_kept(tmp_path: Path) -> None:
    put(tmp_path / "train" / "law.jsonl")
    put(tmp_path / "train" / "books" / "1.txt")
    put(tmp_path / "valid" / "law.jsonl")
    assert [(domain, split) for domain, split, _ in found(tmp_path)] == [
        ("books", "train"),
        ("law", "train"),
        ("law", "valid"),
    ]


@pytest.mark.parametrize("lonely", ["train", "valid"])
def test_train_without_valid_is_no_pair(tmp_path: Path, lonely: str) -> None:
    put(tmp_path / lonely / "law.jsonl")
    put(tmp_path / "validation" / "law.jsonl")
    with pytest.raises(CorpusError, match=f"a folder {lonely}/ but none called"):
        find_sources([tmp_path])


def test_a_table_beside_the_sources_gives_roles(tmp_path: Path) -> None:
    law = put(tmp_path / "law.jsonl")
    table = [{"domain": "law", "role": "target", "docs": 3}, {"domain": "mail"}]
    put(tmp_path / "table.json", json.dumps(table))
    assert find_sources([tmp_path])[1] == {"law": "target", "mail": "source"}
    assert find_sources([law])[1] == {"law": "target", "mail": "source"}
    assert found(tmp_path) == [("law", None, f"{tmp_path.name}/law.jsonl")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "cannot be read"),
        ('{"law": "target"}', "must be a list"),
        ('[{"role": "target"}]', "must be a list"),
        ('[{"domain": "law", "role": "goal"}]', "the role 'goal'"),
        ('[{"domain": "../law", "role": "target"}]', "domain name '../law'"),
        ('[{"domain": ["law"]}]', "domain name"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table: str, message: str) -> None:
    put(tmp_path / "law.jsonl")
    put(tmp_path / "table.json", table)
    with pytest.raises(CorpusError, match=message):
        find_sources([tmp_path])


def test_targets_overrule_the_table() -> None:
    assert choose_roles(["a", "b", "c"], {"a": "target"}, ()) == {
        "a": "target",
        "b": "source",
        "c": "source",
    }
    assert choose_roles(["a", "b", "c"], {"a": "target"}, ["c"]) == {
        "a": "source",
        "b": "source",
        "c": "target",
    }
    with pytest.raises(CorpusError, match="did you mean maths"):
        choose_roles(["law", "maths"], {}, ["math"])
    with pytest.raises(CorpusError, match="the domains are law"):
        choose_roles(["law"], {}, ["zebra"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no file or folder"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(CorpusError, match="holds no text"):
        find_sources([tmp_path])
    with pytest.raises(CorpusError, match="no sources given"):
        find_sources([])
    with pytest.raises(CorpusError, match=r"has no known ending.*\.jsonl"):
        find_sources([put(tmp_path / "law.docx")])
    with pytest.raises(CorpusError, match="domain name 'my law'"):
        find_sources([put(tmp_path / "my law.jsonl")])
    with pytest.raises(CorpusError, match="is a list: give a map-style"):
        find_sources({"law": ["text"]})


def test_content_identifies_a_source(tmp_path: Path) -> None:
    def source(path: Path) -> TextSource:
        return find_sources([path])[0][0]

    a, b, c = (
        put(tmp_path / "a.txt", "one"),
        put(tmp_path / "b.txt", "one"),
        put(tmp_path / "c.txt", "two"),
    )
    assert source(a).digest() == source(b).digest() != source(c).digest()

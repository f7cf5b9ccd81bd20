"""Names of domains that are not valid are refused with the option that renames them."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.core.errors import CorpusError
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.names import is_domain_name, parse_renames, suggested_name
from cuvee.data.corpus.shards import bin_path, write_index
from cuvee.data.ingest.adopt import adopt
from cuvee.data.ingest.build import BuildSettings, build

SHARES: dict[str, Any] = {"vocab_size": 300, "valid_share": 0, "test_share": 0}


def text(path: Path, *topics: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"words of {topic} {i}", "topic": topic} for topic in topics for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shard(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array([1, 7], "<i4").tofile(bin_path(path))
    write_index(path, np.array([2], np.int32), np.dtype("<i4"))
    return path


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("Droit civil", "Droit-civil"),
        ("médecine", "medecine"),
        (unicodedata.normalize("NFD", "médecine"), "medecine"),
        ("a=b", "a-b"),
        ("法律", "domain"),
    ],
)
def test_the_error_for_a_name_gives_the_option_that_mends_it(
    tmp_path: Path, name: str, new: str
) -> None:
    sources = text(tmp_path / "in" / f"{name}.jsonl", "law").parent
    shards = shard(tmp_path / "shards" / name).parent
    known: dict[str, Any] = {"vocab_size": 8, "end_of_text": 7}
    for make in (
        lambda **rename: build(
            [sources], tmp_path / "a", BuildSettings(**SHARES, **rename), workers=1
        ),
        lambda **rename: adopt([shards], tmp_path / "b", **known, **rename),
    ):
        with pytest.raises(CorpusError, match="or rename it with --rename") as error:
            make()
        _, _, option = str(error.value).rpartition("--rename ")
        renames = parse_renames(shlex.split(option))
        assert renames == {name: new}
        assert make(rename=renames).names == (new,)


def test_rename_on_the_command_line(tmp_path: Path) -> None:
    text(tmp_path / "in" / "Droit civil" / "x.jsonl", "law")
    text(tmp_path / "in" / "web.jsonl", "web")
    roles = [{"domain": "Droit civil", "role": "target"}, {"domain": "web"}]
    (tmp_path / "in" / "table.json").write_text(json.dumps(roles))
    command = ["corpus", "build", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    command += ["--vocab-size", "300", "--workers", "1", "--quiet", "--valid-share", "0"]
    renames = ["--rename", "Droit civil=law", "--rename", "web=net"]
    assert CliRunner().invoke(app, [*command, *renames]).exit_code == 0
    corpus = Corpus.open(tmp_path / "out")
    assert [(domain.name, domain.role) for domain in corpus.domains] == [
        ("law", "target"),
        ("net", "source"),
    ]


def test_names_in_a_column_are_renamed_whatever_the_file_is_called(tmp_path: Path) -> None:
    source = text(tmp_path / "all my data.jsonl", "Droit civil", "web")
    settings = BuildSettings(**SHARES, domain_column="topic", max_bad_rows=2)
    with pytest.raises(CorpusError, match=re.escape("--rename 'Droit civil=Droit-civil'")):
        build([source], tmp_path / "corpus", settings, workers=1)
    renamed = BuildSettings(**SHARES, domain_column="topic", rename={"Droit civil": "law"})
    corpus = build([source], tmp_path / "corpus", renamed, workers=1)
    assert corpus.names == ("law", "web")
    other = BuildSettings(**SHARES, domain_column="topic", rename={"Droit": "civil"})
    with pytest.raises(CorpusError, match="no domain 'Droit' to rename to civil"):
        build([source], tmp_path / "other", other, workers=1)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"lwa": "court"}, "no domain 'lwa' to rename; did you mean law"),
        ({"law": "my law"}, "'law' cannot be renamed to 'my law'"),
    ],
)
def test_a_wrong_rename_is_refused(tmp_path: Path, rename: dict[str, str], message: str) -> None:
    source = text(tmp_path / "law.jsonl", "law")
    with pytest.raises(CorpusError, match=message):
        build([source], tmp_path / "out", BuildSettings(**SHARES, rename=rename), workers=1)


@pytest.mark.parametrize("options", [["law"], ["=law"], ["a=b", "a=c"]])
def test_options_that_are_not_renames_are_refused(options: list[str]) -> None:
    with pytest.raises(CorpusError, match="--rename"):
        parse_renames(options)


@given(name=st.text())
def test_a_suggested_name_is_valid(name: str) -> None:
    assert is_domain_name(suggested_name(name))


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_dots_alone_are_no_name_because_files_are_called_after_it(
    tmp_path: Path, name: str
) -> None:
    assert not is_domain_name(name)
    assert suggested_name(name) == "domain"
    source = text(tmp_path / "in.jsonl", *[name] * 21)
    settings = BuildSettings(**SHARES, domain_column="topic")
    with pytest.raises(CorpusError, match="dots alone"):
        build([source], tmp_path / "corpus", settings, workers=1)

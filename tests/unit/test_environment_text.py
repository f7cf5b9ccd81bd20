"""Text out of the environment: real, unique, bounded, the same twice, and never executed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.errors import CorpusError
from cuvee.recipes.demo import environment_text
from cuvee.recipes.demo.environment_text import (
    SPLITS,
    TextDomain,
    gather,
    split_text,
    text_domains,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = tuple(replace(domain, largest=60_000, least=50_000) for domain in text_domains())
    monkeypatch.setattr(environment_text, "text_domains", lambda: domains)
    monkeypatch.setattr(environment_text, "HELD_OUT", 20_000)


@pytest.mark.usefixtures("small")
def test_this_environment_gives_enough_domains_twice_the_same(tmp_path: Path) -> None:
    before = set(sys.modules)
    found = gather(tmp_path / "one")
    assert not {"sympy", "networkx", "transformers", "sqlalchemy"} & (set(sys.modules) - before), (
        "nothing is imported"
    )
    assert len(found) >= 8
    assert {gathered.role for gathered in found} == {"source", "target"}
    assert gather(tmp_path / "two") == found
    documents: list[str] = []
    for gathered in found:
        for split in SPLITS:
            one, two = (
                (tmp_path / run / split / f"{gathered.name}.jsonl").read_bytes()
                for run in ("one", "two")
            )
            assert one == two
            texts = [json.loads(line)["text"] for line in one.splitlines()]
            documents += texts
            size = sum(len(text.encode()) for text in texts)
            if split == "train":
                assert len(texts) == gathered.documents
                assert size == gathered.size
                assert 50_000 <= size < 70_000, (
                    "as much as asked for, and at most one document more"
                )
            else:
                assert 10_000 <= size < 30_000
    assert len(set(documents)) == len(documents), "no document is in two domains or splits"


def test_code_and_docstrings_of_a_file_are_separated(tmp_path: Path) -> None:
    prose = (
        "Says something about this for a sentence that is long enough to be kept, "
        "and then some more of it. " * 3
    )
    module = tmp_path / "module.py"
    module.write_text(
        f'"""{prose} One."""\n\nclass A:\n    """{prose} Two."""\n\n'
        "    def b(self):\n        return 12345\n"
    )
    code = "".join(environment_text._code(iter([module])))
    docs = "".join(environment_text._docstrings(iter([module])))
    assert "return 12345" in code
    assert "sentence" not in code
    assert docs.count("sentence") == 6
    assert "12345" not in docs


def test_broken_files_are_passed_over(tmp_path: Path) -> None:
    broken = [tmp_path / name for name in ("syntax.py", "bytes.py", "nul.py", "missing.py")]
    broken[0].write_text("def (")
    broken[1].write_bytes(b"\xff\xfe\x00")
    broken[2].write_text("x = 1\0")
    assert not any(environment_text._docstrings(iter(broken)))
    assert not any(environment_text._code(iter(broken)))


def test_an_environment_without_text_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few() -> Iterator[str]:
        yield from (f"document {i} " * 50 for i in range(400))

    domains = (
        TextDomain("full", "source", 10**6, few),
        TextDomain("empty", "target", 10**6, lambda: iter(())),
    )
    monkeypatch.setattr(environment_text, "text_domains", lambda: domains)
    with pytest.raises(
        CorpusError, match=r"too little text for the demo \(found: full\).*cuvee corpus build"
    ):
        gather(tmp_path / "text")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@given(st.text(st.sampled_from("ab \n"), max_size=3_000))
def test_pieces_are_bounded_and_hold_the_text_in_order(text: str) -> None:
    pieces = list(split_text(text, largest=500))
    assert all(200 <= len(piece) <= 500 for piece in pieces)
    rest = text
    for piece in pieces:
        found = rest.find(piece)
        assert found >= 0
        rest = rest[found + len(piece) :]


def test_descriptions_are_found_after_an_import_that_replaces_the_metadata() -> None:
    before = list(environment_text._descriptions())
    importlib.import_module("importlib_metadata")  # takes over the finding of distributions
    assert list(environment_text._descriptions()) == before != []

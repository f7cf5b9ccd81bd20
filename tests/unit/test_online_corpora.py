"""The variants of `benchmarks/online.py` are what they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from online_corpora import (
    POOL,
    misset,
    pool_validation,
    read_documents,
    teach_skills,
    write_documents,
)

NAMES = [f"d{k:02d}" for k in range(12)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for part, number in (("train", 40), ("valid", 6), ("test", 6)):
        (tmp_path / part).mkdir()
        for name in NAMES:
            texts = [f"{part} {name} {i} " + "x" * 1000 for i in range(number)]
            write_documents(tmp_path / part / f"{name}.jsonl.gz", texts)
    return tmp_path


def clean() -> Any:
    return SimpleNamespace(names=NAMES)


def held_out(folder: Path, part: str) -> list[str]:
    return sorted(file.name.removesuffix(".jsonl.gz") for file in (folder / part).iterdir())


def test_pooled_validation_text_names_no_domain(raw: Path) -> None:
    pool_validation(raw)
    assert held_out(raw, "valid") == held_out(raw, "test") == [POOL]
    pooled = read_documents(raw / "valid" / f"{POOL}.jsonl.gz")
    assert {text.split()[1] for text in pooled} == set(NAMES)
    assert len({text.split()[1] for text in pooled[:6]}) > 1, "it is shuffled"


def test_what_counts_has_a_tenth_of_its_text(raw: Path) -> None:
    misset(raw, clean())
    counted = held_out(raw, "valid")
    assert counted == held_out(raw, "test") == NAMES[::3]
    sizes = {n: len(read_documents(raw / "train" / f"{n}.jsonl.gz")) for n in NAMES}
    assert {name for name, size in sizes.items() if size == 4} == set(counted)
    assert {size for name, size in sizes.items() if name not in counted} == {40}


def test_skills_are_composed_of_simpler_ones_and_held_out_combinations_are_new(raw: Path) -> None:
    teach_skills(raw, clean())

    def lines(place: str) -> list[tuple[tuple[str, ...], str, str]]:
        found = []
        for text in read_documents(raw / f"{place}.jsonl.gz"):
            for line in text.splitlines():
                left, right = line.split(" = ")
                *names, letter = left.split()
                found.append((tuple(names), letter, right))
        return found

    value = {(names[0], letter): right for names, letter, right in lines("train/skill-1")}
    for level in (2, 3):
        for names, letter, right in lines(f"train/skill-{level}")[:500]:
            assert len(names) == level
            for name in reversed(names):
                letter = value[name, letter]
            assert letter == right
    seen, valid, test = (
        {names for names, _, _ in lines(f"{part}/skill-3")} for part in ("train", "valid", "test")
    )
    assert not seen & valid
    assert not seen & test
    assert not valid & test
    assert held_out(raw, "train") == [NAMES[0], NAMES[10], "skill-1", "skill-2", "skill-3"]
    assert held_out(raw, "valid") == ["skill-3"]

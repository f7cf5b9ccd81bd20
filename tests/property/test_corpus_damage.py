"""A corpus with changed or missing bytes is refused by name, or gives the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cuvee.core.errors import CorpusError, ShardError
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.shards import open_shard
from cuvee.data.ingest.build import BuildSettings, build

FILES = (
    "manifest.json",
    "tokenizer.json",
    "train/law.bin",
    "train/law.idx",
    "valid/law.bin",
    "valid/law.idx",
)
quick = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 30), ("valid", 5)):
        (folder / split).mkdir()
        rows = (
            json.dumps({"text": f"Document {i} is short. " * (1 + i % 4)}) for i in range(count)
        )
        (folder / split / "law.jsonl").write_text("\n".join(rows))
    build([folder], folder / "corpus", BuildSettings(vocab_size=280), workers=1)
    return folder / "corpus"


def damaged(content: bytes, flips: list[tuple[int, int]], keep: float) -> bytes:
    changed = bytearray(content)
    for at, bit in flips:
        changed[at % len(changed)] ^= 1 << bit
    return bytes(changed[: round(len(changed) * keep)])


damages = st.tuples(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=3),
    st.sampled_from([1.0, 1.0, 0.99, 0.5, 0.0]),
)


@given(name=st.sampled_from(FILES), damage=damages)
@quick
def test_no_damage_passes_verification(
    whole: Path, tmp_path: Path, name: str, damage: tuple[list[tuple[int, int]], float]
) -> None:
    folder = tmp_path / "corpus"
    if not folder.exists():
        shutil.copytree(whole, folder)
    content = (whole / name).read_bytes()
    (folder / name).write_bytes(damaged(content, *damage))
    unchanged = (folder / name).read_bytes() == content
    refused = None
    try:
        corpus = Corpus.open(folder)
        corpus.verify()
    except CorpusError as error:
        refused = str(error)
    (folder / name).write_bytes(content)
    if refused is None:
        assert (
            unchanged or corpus.manifest == Corpus.open(whole).manifest
        )  # white space in the manifest is no matter
    else:
        assert not unchanged
        assert str(folder) in refused


@given(damage=damages, splice=st.none() | st.binary(max_size=64), at=st.integers(0, 200))
@example(damage=([(18, 7)], 1.0), splice=None, at=0)
@quick
def test_no_index_breaks_the_reader(
    whole: Path,
    tmp_path: Path,
    damage: tuple[list[tuple[int, int]], float],
    splice: bytes | None,
    at: int,
) -> None:
    """Without hashes to help: what passes is consistent, and everything else is a `ShardError`."""
    content = damaged((whole / "train" / "law.idx").read_bytes(), *damage)
    if splice is not None:
        content = content[:at] + splice + content[at + len(splice) :]
    shutil.copy(whole / "train" / "law.bin", tmp_path / "law.bin")
    (tmp_path / "law.idx").write_bytes(content)
    try:
        pool = open_shard(tmp_path / "law", "law")
    except ShardError:
        return
    starts = pool.document_starts
    assert starts[0] == 0
    assert (starts[1:] > starts[:-1]).all()
    assert starts[-1] < len(pool)
    assert len(pool) * pool.tokens.itemsize == (whole / "train" / "law.bin").stat().st_size
    pool.tokens.sum()  # every byte can be read


@given(content=st.binary(max_size=200))
@quick
def test_random_bytes_are_no_index(whole: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copy(whole / "train" / "law.bin", tmp_path / "law.bin")
    for head in (b"", b"MMIDIDX\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x08"):
        (tmp_path / "law.idx").write_bytes(head + content)
        with pytest.raises(ShardError):
            open_shard(tmp_path / "law", "law")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=json_values, where=st.lists(st.integers(0, 20), min_size=1, max_size=4))
@quick
def test_no_manifest_of_strange_values_breaks_the_reader(
    whole: Path, tmp_path: Path, value: object, where: list[int]
) -> None:
    folder = tmp_path / "corpus"
    if not folder.exists():
        shutil.copytree(whole, folder)
    content = json.loads((whole / "manifest.json").read_text())
    node = content
    for step in where[:-1]:
        inner = [
            child
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list)) and child
        ]
        if not inner:
            break
        node = inner[step % len(inner)]
    key = list(node)[where[-1] % len(node)] if isinstance(node, dict) else where[-1] % len(node)
    before = node[key]
    node[key] = value
    (folder / "manifest.json").write_text(json.dumps(content))
    try:
        Corpus.open(folder)
    except CorpusError:
        return
    assert value == before

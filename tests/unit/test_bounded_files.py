"""Files that no reader may read whole, places where no file may be put, and paths that cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cuvee.core import files
from cuvee.core.errors import CorpusError, StoreError
from cuvee.core.files import write_atomic, write_folder
from cuvee.data.corpus.manifest import read_manifest
from cuvee.data.corpus.tokenizer import read_tokenizer
from cuvee.fleet.store import tabular
from cuvee.fleet.store.address import find_address
from cuvee.probes.questions import read_questions


@pytest.mark.parametrize("read", [read_questions, read_tokenizer])
def test_an_endless_file_is_refused(read: Callable[[Path], Any]) -> None:
    with pytest.raises(CorpusError, match=r"/dev/zero cannot be read .*larger than 64 MiB"):
        read(Path("/dev/zero"))


def test_an_endless_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(
        CorpusError, match=r"manifest.json cannot be read: it is larger than 64 MiB"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("@/dev/zero", "/dev/zero should hold the store's URL"),
        ("/dev/null", "/dev/null cannot be a store"),
        ("a\0b", "cannot be a store"),
        ("a\ud800b", "cannot be a store"),
    ],
)
def test_what_is_no_file_is_no_store(place: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        find_address(place)


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "folder"])
def test_a_file_replaces_nothing_but_a_file(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to("pipe") if kind == "link to a pipe" else (tmp_path / "pipe").rename(place)
    before = place.lstat()
    with pytest.raises(OSError, match=r"it is no regular file: '.*place'"):
        write_atomic(place, "x")
    assert place.lstat() == before


def test_no_file_is_made_among_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/stdout is a link to a file if the output goes to one."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "stdout").symlink_to("file")
    monkeypatch.setattr(files, "_DEVICES", tmp_path)
    with pytest.raises(OSError, match="it is no regular file"):
        write_atomic(tmp_path / "stdout", "x")
    assert (tmp_path / "stdout").is_symlink()


def test_a_folder_replaces_nothing_but_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError, match="file"):
        write_folder(tmp_path / "file", lambda folder: None)
    assert (tmp_path / "file").read_text() == "old"


def long_cells(path: Path) -> None:
    pq.write_table(pa.table({"run": ["x" * 15_000_000] * 36}), path, compression="zstd")


def many_rows(path: Path) -> None:
    pq.write_table(pa.table({"run": pa.nulls(3_000_000, pa.string())}), path)


def one_line(path: Path) -> None:
    path.write_bytes(b'{"a": [' + b"[]," * 4_000_000 + b"[]]}\n")


def commas(path: Path) -> None:
    path.write_bytes(b"a,b\n" + b",\n" * 1_100_000)


@pytest.mark.parametrize(
    ("name", "fill", "message"),
    [
        ("a.parquet", long_cells, "needs more than 192 MiB"),
        ("a.parquet", many_rows, "more than 2,000,000 cells"),
        ("a.jsonl", one_line, "a line of more than 8 MiB"),
        ("a.csv", one_line, "a line of more than 8 MiB"),
        ("a.csv", commas, "more than 2,000,000 cells"),
    ],
)
def test_a_table_that_costs_too_much_memory_is_refused(
    tmp_path: Path, name: str, fill: Callable[[Path], None], message: str
) -> None:
    fill(tmp_path / name)
    with pytest.raises(StoreError, match=message):
        tabular.read_rows(tmp_path / name)

"""`cuvee corpus` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stdlib_corpus import stdlib_corpus


def cuvee(*arguments: str | Path, expect: int = 0) -> str:
    code = "import sys; from cuvee.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "corpus", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    stdlib_corpus(folder)
    return folder


def test_build_show_and_verify(place: Path, tmp_path: Path) -> None:
    sources, out = place / "sources", tmp_path / "corpus"
    (sources / "mail.jsonl").open("a").write("\nnonsense")
    printed = cuvee(
        "build", sources, "-o", out, "--vocab-size", "400", "--target", "mail", "--workers", "2"
    )
    assert "1 bad rows were left out" in printed
    assert "quarantine.jsonl" in printed
    shown = cuvee("show", out)
    for line in ("domain", "bytes/token", "MTLD", "3 domains", "vocabulary 400"):
        assert line in shown
    mail = next(line for line in shown.splitlines() if "mail" in line)
    assert "target" in mail
    fingerprint = json.loads((out / "manifest.json").read_text())["fingerprint"]
    assert fingerprint in cuvee("verify", out, "--quiet")
    again = cuvee("build", sources, "-o", out, "--vocab-size", "400", "--target", "mail", "--quiet")
    assert "3 domains" in again
    options = ("--vocab-size", "400", "--target", "mail", "--quiet", "--json")
    content = json.loads(cuvee("build", sources, "-o", out, *options))
    assert (content["fingerprint"], content["bad_rows"]) == (fingerprint, 1)
    assert content == json.loads(cuvee("show", out, "--json"))


def test_shards_are_taken_in(place: Path, tmp_path: Path) -> None:
    shards = place / "corpus"
    printed = cuvee(
        "build", shards, "-o", tmp_path / "corpus", "--tokenizer", shards / "tokenizer.json"
    )
    assert "3 domains" in printed
    assert [path.name for path in sorted((tmp_path / "corpus").iterdir())] == [
        "manifest.json",
        "tokenizer.json",
    ]
    refused = cuvee("build", shards, "-o", tmp_path / "other", expect=2)
    assert "give the tokenizer.json that wrote them" in refused


def test_mistakes_are_one_line_and_a_remedy(place: Path, tmp_path: Path) -> None:
    assert "there is no corpus folder" in cuvee("show", tmp_path / "nowhere", expect=2)
    assert "there is no file or folder" in cuvee(
        "build", tmp_path / "nowhere", "-o", tmp_path / "c", expect=2
    )
    assert "did you mean mail" in cuvee(
        "build", place / "sources", "-o", tmp_path / "c", "--target", "mial", expect=2
    )
    assert not (tmp_path / "c").exists()
    shard = place / "corpus" / "train" / "mail.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    assert "mail.bin has" in cuvee("show", place / "corpus", expect=2)
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "mail.bin" in cuvee("verify", place / "corpus", "--quiet", expect=2)
    shard.write_bytes(whole)

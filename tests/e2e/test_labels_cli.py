"""`cuvee corpus label` as a user meets it, and the corpus that follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cuvee.cli import main
from cuvee.data.corpus.corpus import Corpus
from labelled_text import content_of, read_text, write_text


def cuvee(*arguments: str | Path, expect: int = 0) -> str:
    code = "import sys; from cuvee.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "corpus", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "raw")


def test_cluster_then_build_with_the_roles_that_came_along(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "topics"
    options = ("--by", "cluster", "--topics", "5", "--seed", "2", "--roles", "--quiet")
    printed = cuvee("label", text, "-o", out, *options, "--workers", "2")
    for words in (
        "of targets",
        "where the domains went",
        "examples",
        "adjusted mutual information",
        "labels.json",
    ):
        assert words in printed
    assert f"next: cuvee corpus build {out} -o CORPUS" in printed
    again = cuvee("label", text, "-o", tmp_path / "again", *options, "--workers", "1", "--json")
    assert json.loads(again) == json.loads((out / "labels.json").read_text())
    assert content_of(out) == content_of(tmp_path / "again")
    cuvee("build", out, "-o", tmp_path / "corpus", "--vocab-size", "300", "--quiet")
    corpus = Corpus.open(tmp_path / "corpus")
    report = json.loads((out / "labels.json").read_text())
    assert [(domain.name, domain.role) for domain in corpus.domains] == [
        (row["name"], row["role"]) for row in report["labels"]
    ]
    assert {domain.role for domain in corpus.domains} == {"source", "target"}
    confusion = report["confusion"]
    assert sum(sum(row.values()) for row in confusion.values()) == len(list(read_text(text)))
    assert all(name.endswith(".target") for name in confusion["numbers"])
    merged = tmp_path / "merged.yaml"
    merged.write_text("".join(f"{domain.name}: {domain.role}\n" for domain in corpus.domains))
    cuvee("label", out, "-o", tmp_path / "two", "--by", f"map:{merged}", "--quiet")
    assert json.loads((tmp_path / "two" / "table.json").read_text())[1]["role"] == "target"


def test_remarks_on_mixed_roles_and_bad_rows(text: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text(
        "".join(
            json.dumps({"content": row["text"], "of": domain}) + "\n"
            for _, domain, row in read_text(text)
        )
    )
    raw.open("a").write("nonsense\n")
    columns = (
        "--text-column",
        "content",
        "--domain-column",
        "of",
        "--target",
        "mail",
        "--quiet",
    )
    printed = cuvee(
        "label", raw, "-o", tmp_path / "out", "--by", "random", "--topics", "2", *columns
    )
    assert "source and target text are mixed in random-0, random-1" in printed
    assert "1 bad rows were left out" in printed
    assert "-o CORPUS --text-column content" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "cluster"], "--by cluster needs the number of labels: add --topics K"),
        (["--by", "cluster", "--topics", "1"], "1 topics were requested: give 2 to 2048"),
        (["--by", "cluster", "--topics", "99999"], "99999 topics were requested"),
        (
            ["--by", "folder", "--topics", "3"],
            "--topics goes with --by cluster or random, not with --by folder",
        ),
        (["--by", "random", "--topics", "3", "--sample", "9"], "--sample goes with --by cluster"),
        (["--by", "role", "--embeddings", "x"], "--embeddings goes with --by cluster"),
        (["--by", "column"], "cannot understand --by column: use column:KEY"),
        (["--by", "folder:x"], "cannot understand --by folder:x"),
        (["--by", "topic"], "cannot label by 'topic': use column:KEY, folder"),
        (["--by", "map:nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["--by", "classifier:nvidia/domain-classifier"], "add the full commit hash of 40 digits"),
        (["--by", "classifier:nowhere"], "there is no folder nowhere"),
        (["--by", "cluster", "--topics", "3", "--embeddings", "all-MiniLM"], "names no embeddings"),
        (
            ["--by", "column:kind", "--domain-column", "id"],
            "domains cannot be read from the column 'id'",
        ),
        (["--by", "role", "--target", "nmbers"], "did you mean numbers?"),
        (
            ["--by", "cluster", "--topics", "2000", "--sample", "3000"],
            "different training documents: ask for fewer",
        ),
    ],
)
def test_mistakes_are_one_line_and_a_remedy(
    options: list[str],
    said: str,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [
        "cuvee",
        "corpus",
        "label",
        str(text),
        "-o",
        str(tmp_path / "out"),
        *options,
        "--workers",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

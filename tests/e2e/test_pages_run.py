"""The README, the tutorial, the how-to pages and the notebook run as written, on the demo's text.

In these pages every `cuvee` line of a `sh` block is a command, and every `python` block is a
program. A block with a title is a file. Blocks of other kinds are not run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.recipes.demo import environment_text
from cuvee.recipes.demo.environment_text import gather, text_domains

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "tutorial.md",
    *sorted((ROOT / "docs" / "how_to").glob("*.md")),
]


class Block(NamedTuple):
    kind: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    found = re.findall(
        r'^```(sh|python|yaml)(?: title="([^"\n]*)")?\n(.*?)^```$',
        page.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return (Block(*one) for one in found)


RUN = [page for page in PAGES if any(one.kind != "yaml" for one in blocks(page))]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's text, smaller, and the repository's examples."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        domains = tuple(replace(one, largest=60_000, least=30_000) for one in text_domains())
        patch.setattr(environment_text, "text_domains", lambda: domains)
        patch.setattr(environment_text, "HELD_OUT", 20_000)
        gather(folder / "cuvee-demo" / "text")
    shutil.copytree(ROOT / "examples", folder / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(next(one for one in blocks(ROOT / "README.md") if one.kind == "sh"), {})
    return folder


def run(block: Block, names: dict[str, object]) -> None:
    if block.title:
        Path(block.title).write_text(block.text)
    elif block.kind == "python":
        exec(compile(block.text, "page", "exec"), names)
    elif block.kind == "sh":
        for line in block.text.replace("\\\n", "").splitlines():
            program, *arguments = shlex.split(line, comments=True) or ["cuvee", "--version"]
            assert program == "cuvee", f"only cuvee's commands are run, not {line!r}"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_its_blocks_run_as_written(page: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)  # as PYTHONPATH is set for a module of your own
    for block in blocks(page):
        run(block, {"__name__": "__page__"})


def test_the_cells_of_the_notebook_run_and_print_what_it_shows(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text())["cells"]
    names: dict[str, object] = {"__name__": "__notebook__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            capsys.readouterr()
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            shown = "".join(line for output in cell["outputs"] for line in output["text"])
            printed = capsys.readouterr().out
            assert len(shown.splitlines()) == len(printed.splitlines())
            assert len(shown) < 2000, "outputs in the repository are short texts"
    assert (work / "notebook-report.html").is_file()


def test_the_readme_has_four_ways_in() -> None:
    kinds = [one.kind for one in blocks(ROOT / "README.md")]
    assert kinds == ["sh", "python", "python", "sh", "sh"]
    lines = [one.text.replace("\n\n", "\n").count("\n") for one in blocks(ROOT / "README.md")]
    assert max(lines) <= 12

"""The documentation: links resolve, and the commands, files and options that it names exist."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuvee.core.registry import METHODS
from cuvee.learning.learn_settings import LearnSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
COMMANDS = (ROOT / "tests" / "golden" / "cli_help.txt").read_text().splitlines()
TEXTS = pytest.mark.parametrize(
    "path", [*PAGES, *EXAMPLES], ids=lambda path: str(path.relative_to(ROOT))
)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The relative links of a page: file and anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{page.name} links to {file}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {file.name}#{anchor}"


def test_every_page_of_the_documentation_is_linked_from_another_page() -> None:
    linked = {file for page in PAGES for file, _ in links(page) if file != page}
    assert [page.name for page in PAGES if page.is_relative_to(DOCS) and page not in linked] == []


def commands(path: Path) -> Iterator[str]:
    """Each `cuvee …` command line of the code blocks or comments and in backticks."""
    text = path.read_text()
    blocks = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    for line in ("\n".join(blocks) if path.suffix == ".md" else text).splitlines():
        if found := re.match(r"[#$ ]*(cuvee .*)", line):
            yield re.split(r"\s#\s|\s{3,}", found[1])[0]
    yield from re.findall(r"`(cuvee [^`\n]+)`", text)


@TEXTS
def test_commands_exist_with_their_options(path: Path) -> None:
    known = {
        " ".join(re.findall(r"^cuvee(?: [a-z]+(?:-[a-z]+)*)+", line)): line for line in COMMANDS
    }
    for command in commands(path):
        name = next((name for name in known if f"{command} ".startswith(f"{name} ")), None)
        if name is None:
            groups = {known_name.rpartition(" ")[0] for known_name in known}
            assert command in groups | {"cuvee --help", "cuvee --version"}, (
                f"{path.name}: {command}"
            )
            continue
        options = set(re.split(r"[ /]", known[name])) | {"--help"}
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", command):
            assert option in options, f"{path.name}: {command}: {option}"


@TEXTS
def test_benchmarks_exist(path: Path) -> None:
    for program in re.findall(r"\b(benchmarks/[a-z0-9_/]+\.py)\b", path.read_text()):
        assert (ROOT / program).is_file(), f"{path.name} names {program}"


@TEXTS
def test_files_of_the_code_exist(path: Path) -> None:
    for file in re.findall(r"`(?:src/)?(cuvee/[a-z0-9_/]+\.py)`", path.read_text()):
        assert (ROOT / "src" / file).is_file(), f"{path.name} names {file}"


@pytest.mark.parametrize("name", METHODS.names())
def test_the_page_of_a_method_names_its_options(name: str) -> None:
    page = DOCS / "methods" / f"{name}.md"
    text = (page if page.is_file() else page.with_name("static.md")).read_text()
    settings = {"data_mixing_agent": [LearnSettings]}.get(name, [])
    options = [f.name for kind in [METHODS.get(name), *settings] for f in dataclasses.fields(kind)]
    assert [option for option in options if not re.search(rf"\b{option}\b", text)] == []

"""Rules of the code base that no other tool checks. Import rules are in `pyproject.toml`."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import TypeGuard

from cuvee.core.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "methods"
STATIC = "static"  # the page of the baselines, which have none of their own


def test_no_folder_has_more_than_twelve_modules() -> None:
    sizes = {
        str(folder.relative_to(ROOT)): len([p for p in folder.glob("*.py") if p.stem != "__init__"])
        for folder in {path.parent for path in (ROOT / "src" / "cuvee").rglob("*.py")}
    }
    assert {folder: size for folder, size in sizes.items() if size > 12} == {}


def test_every_method_has_a_page() -> None:
    static = (PAGES / f"{STATIC}.md").read_text()
    missing = [
        name
        for name in METHODS.names()
        if not (PAGES / f"{name}.md").is_file() and f"`{name}`" not in static
    ]
    assert missing == []


def test_no_page_of_a_method_is_longer_than_120_lines() -> None:
    lengths = {page.name: len(page.read_text().splitlines()) for page in PAGES.glob("*.md")}
    assert {name: length for name, length in lengths.items() if length > 120} == {}


def test_few_lines_are_longer_than_a_hundred_columns() -> None:
    lines = [
        line
        for folder in ("src", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
    ]
    assert sum(len(line) > 100 for line in lines) < 0.005 * len(lines)


def unrelated(node: ast.AST) -> TypeGuard[ast.Assign]:
    """Whether a line assigns values of different kinds to several names, as in `a, b = f(x), 0`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    kinds = {
        ast.dump(value.func) if isinstance(value, ast.Call) else type(value).__name__
        for value in node.value.elts
    }
    return isinstance(node.targets[0], ast.Tuple) and len(kinds) > 1


def test_no_line_has_two_unrelated_assignments() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if unrelated(node)
    ]
    assert found == []


def test_messages_name_extras_that_exist_and_never_an_index_that_has_no_cuvee() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    code = {path: path.read_text() for path in (ROOT / "src" / "cuvee").rglob("*.py")}
    named = {
        extra for text in code.values() for extra in re.findall(r"pip_install\([\"'](\w+)", text)
    }
    assert named
    assert named <= declared["optional-dependencies"].keys()
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*"), ROOT / "README.md"]
    texts = code | {page: page.read_text() for page in pages if page.is_file()}
    assert [path for path, text in texts.items() if re.search(r"pip install '?cuvee\[", text)] == []

"""Makes the site of the pages as they are in the repository.

The README and its neighbours become pages. Patterns in the navigation are expanded. A link to a
file outside `docs/` leads to a copy of it in the site. The reference lists the public names.
"""

from __future__ import annotations

import os
import posixpath
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import cuvee

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
TOP = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
LINK = re.compile(r"(?<=\]\()[^)\s#]+")
NAMES = "<!-- the public names -->"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Expand the patterns of the navigation; an entry of a page that does not exist is left out."""
    pages = sorted(
        [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")], key=_index_first
    )
    pages = [*TOP, *pages]
    left = [page for page in pages if page not in _named(config.nav)]
    config.nav = _expanded(config.nav, pages, left)
    return config


def _index_first(page: str) -> tuple[str, bool, str]:
    folder, _, name = page.rpartition("/")
    return folder, name != "README.md", name


def _named(nav: Any) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    return set().union(*map(_named, nav.values() if isinstance(nav, dict) else nav))


def _expanded(nav: Any, pages: list[str], left: list[str]) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(entries, pages, left) for title, entries in nav.items()}
    entries: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            entries.append(_expanded(entry, pages, left))
        elif "*" in entry:
            depth = entry.count("/")
            entries += [page for page in left if fnmatch(page, entry) and page.count("/") == depth]
        elif entry in pages:
            entries.append(entry)
    return entries


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside `docs/`, and every file outside `docs/` that a page links to."""
    for uri, name in TOP.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    linked = {
        target
        for page in files.documentation_pages()
        for link in LINK.findall(page.content_string)
        if (target := _target(page.src_uri, link)) and target.is_file()
    }
    for path in sorted(linked):
        if not path.is_relative_to(DOCS) and (uri := _uri(path)) not in TOP:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def _target(page: str, link: str) -> Path | None:
    """The file of the repository to which a relative link of a page leads."""
    home = ROOT if page in TOP else (DOCS / page).parent
    target = Path(os.path.normpath(home / link))
    return target if "://" not in link and target.exists() and ROOT in target.parents else None


def _uri(path: Path) -> str:
    """The place of a file of the repository in the site."""
    for uri, name in TOP.items():
        if path == ROOT / name:
            return uri
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to their places in the site, and fill the reference."""
    here = page.file.src_uri

    def led(found: re.Match[str]) -> str:
        target = _target(here, found[0])
        return posixpath.relpath(_uri(target), posixpath.dirname(here)) if target else found[0]

    return LINK.sub(led, markdown).replace(NAMES, _reference())


def _reference() -> str:
    homes = sorted(cuvee._HOMES.items())
    return "\n\n".join(f"::: {home}.{name}" for name, home in homes)

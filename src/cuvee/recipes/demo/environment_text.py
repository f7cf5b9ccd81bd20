"""Real text in eleven domains from the user's own Python environment, without a download.

Packages are located with `find_spec` and not imported. Sources are parsed with `ast`. Licences and
descriptions come from the metadata of installed distributions. Docstrings are separated from code,
so no text occurs in two domains. The same environment gives the same bytes: files are read in the
order of a hash of their paths, until a domain is full.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.domain import Role
from cuvee.core.errors import CorpusError
from cuvee.core.files import write_folder

_LARGEST_FILE = 400_000  # bytes; larger files are generated tables
_DOCUMENT = 4_000  # the most characters of a document; short ones allow a fine train/valid split
_SHORTEST = 200  # characters
_TESTS = frozenset({"tests", "test", "testing"})
_FEWEST_DOMAINS = 8
SPLITS = ("train", "valid", "test")
SCARCE = 40_000
"""Bytes of text of the target domain: what a small collection of documents has."""
HELD_OUT = 120_000
"""Bytes of text of each domain for validation, and as many for the test."""


@dataclass(frozen=True)
class TextDomain:
    """One domain: the source of its documents and its size limit."""

    name: str
    role: Role
    largest: int
    """The most bytes of text to train on."""
    documents: Callable[[], Iterator[str]]
    least: int = 100_000
    """The fewest bytes of text to train on; a domain with less is left out."""


@dataclass(frozen=True)
class Gathered:
    """What was found of one domain."""

    name: str
    role: Role
    documents: int
    """Documents to train on."""
    size: int
    """Their bytes of UTF-8 text."""


def text_domains() -> tuple[TextDomain, ...]:
    """Return nine source and two target domains.

    Their sizes differ on purpose, so that the natural mixture is not uniform.
    """
    library = (
        "sqlalchemy",
        "pydantic",
        "huggingface_hub",
        "transformers",
        "numpy",
        "alembic",
        "rich",
        "fsspec",
    )
    return (
        TextDomain("python-manual", "source", 500_000, _python_manual),
        TextDomain("python-stdlib", "source", 800_000, lambda: _code(_stdlib_files())),
        TextDomain(
            "library-docs",
            "source",
            1_000_000,
            lambda: _docstrings(_package_files((*library, "networkx"), "*.py")),
        ),
        TextDomain(
            "library-code",
            "source",
            900_000,
            lambda: _code(_package_files(("torch", *library), "*.py")),
        ),
        TextDomain(
            "unit-tests",
            "source",
            400_000,
            lambda: _code(_package_files(("numpy",), "test_*.py", tests=True)),
        ),
        TextDomain(
            "type-stubs",
            "source",
            300_000,
            lambda: _texts(_package_files(("numpy", "torch"), "*.pyi")),
        ),
        TextDomain("cpp-headers", "source", 700_000, lambda: _texts(_header_files())),
        TextDomain("licences", "source", 200_000, _licences),
        TextDomain("readmes", "source", 300_000, _descriptions),
        TextDomain(
            "mathematics",
            "target",
            SCARCE,
            lambda: _docstrings(_package_files(("sympy", "mpmath"), "*.py")),
            least=SCARCE,
        ),
    )


def gather(
    folder: Path, on_domain: Callable[[Gathered], None] = lambda gathered: None
) -> tuple[Gathered, ...]:
    """Write `folder/<split>/<domain>.jsonl` with one `{"text": …}` per line; return what was found.

    The splits are train, valid and test. The folder is written completely or not at all. No
    document occurs twice, in any domain or split. A domain that has not `least` bytes to train on
    is left out. Raises `CorpusError` if fewer than eight domains or no target domain remain.
    """
    found: list[Gathered] = []

    def fill(temporary: Path) -> None:
        seen: set[bytes] = set()
        for split in SPLITS:
            (temporary / split).mkdir()
        for domain in text_domains():
            gathered = _write(domain, temporary, seen)
            if gathered.size >= domain.least:
                found.append(gathered)
                on_domain(gathered)
            else:
                for split in SPLITS:
                    _path(temporary, split, domain).unlink()
        if len(found) < _FEWEST_DOMAINS or not any(gathered.role == "target" for gathered in found):
            names = ", ".join(gathered.name for gathered in found) or "none"
            raise CorpusError(
                f"this Python environment has too little text for the demo (found: {names}); "
                "install cuvee with its dependencies by pip into a virtual environment, or build "
                "your own corpus with `cuvee corpus build`"
            )

    write_folder(folder, fill)
    return tuple(found)


def _write(domain: TextDomain, folder: Path, seen: set[bytes]) -> Gathered:
    """Give each document to the split that its hash names, until every split is full."""
    largest = {"train": domain.largest, "valid": HELD_OUT, "test": HELD_OUT}
    documents = dict.fromkeys(SPLITS, 0)
    size = dict.fromkeys(SPLITS, 0)
    with ExitStack() as files:
        paths = {split: _path(folder, split, domain) for split in SPLITS}
        opened = {
            split: files.enter_context(open(path, "w", encoding="utf-8"))
            for split, path in paths.items()
        }
        for piece in _pieces(domain.documents(), seen):
            split = _split_of(piece)
            if size[split] < largest[split]:
                opened[split].write(json.dumps({"text": piece}, ensure_ascii=False) + "\n")
                documents[split] += 1
                size[split] += len(piece.encode())
            elif all(size[name] >= largest[name] for name in SPLITS):
                break
    return Gathered(domain.name, domain.role, documents["train"], size["train"])


def _path(folder: Path, split: str, domain: TextDomain) -> Path:
    return folder / split / f"{domain.name}.jsonl"


def _pieces(documents: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """Yield the pieces of `documents` that are not in `seen`, and add them to it."""
    for text in documents:
        for piece in split_text(text):
            digest = _digest(piece)
            if digest not in seen:
                seen.add(digest)
                yield piece


def _digest(piece: str) -> bytes:
    return hashlib.sha256(" ".join(piece.split()).encode()).digest()


def _split_of(piece: str) -> str:
    """Half of the documents are for training, a quarter each for validation and test."""
    return ("train", "train", "valid", "test")[_digest(piece)[0] % 4]


def split_text(text: str, largest: int = _DOCUMENT) -> Iterator[str]:
    """Yield pieces of at most `largest` characters. Pieces under 200 characters are dropped.

    A piece ends at the last blank line that fits, or else at the last line end that fits.
    """
    rest = text.strip()
    while len(rest) >= _SHORTEST:
        if len(rest) <= largest:
            cut = len(rest)
        else:
            half = largest // 2
            cut = (
                max(rest.rfind("\n\n", half, largest), 0)
                or max(rest.rfind("\n", half, largest), 0)
                or largest
            )
        piece = rest[:cut].strip("\n")
        rest = rest[cut:].strip("\n")
        if len(piece) >= _SHORTEST:
            yield piece


def _shuffled(files: Iterable[Path], root: Path) -> Iterator[Path]:
    """Files in a fixed random order that does not depend on the file system or on names."""
    usable = (file for file in files if file.is_file() and file.stat().st_size <= _LARGEST_FILE)
    yield from sorted(
        usable, key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest()
    )


def _package_root(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)  # does not import a top-level package
    except (ImportError, ValueError):
        return None
    return (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else None
    )


def _package_files(names: tuple[str, ...], pattern: str, *, tests: bool = False) -> Iterator[Path]:
    """Files of the packages in turn, so a domain that is soon full still has some of each."""
    yield from _in_turn(
        [_files_of(root, pattern, tests) for name in names if (root := _package_root(name))]
    )


def _files_of(root: Path, pattern: str, tests: bool) -> Iterator[Path]:
    kept = (
        file
        for file in root.rglob(pattern)
        if bool(_TESTS & set(file.relative_to(root).parts)) == tests
    )
    yield from _shuffled(kept, root)


def _in_turn(turns: list[Iterator[Path]]) -> Iterator[Path]:
    while turns:
        for files in list(turns):
            if (file := next(files, None)) is None:
                turns.remove(files)
            else:
                yield file


def _header_files() -> Iterator[Path]:
    if root := _package_root("torch"):
        include = root / "include"
        parts = [include / part for part in ("ATen", "c10", "torch") if (include / part).is_dir()]
        files = (
            file for part in parts for file in part.rglob("*.h") if file.parent.name != "ops"
        )  # ops is generated
        yield from _shuffled(files, include)


def _stdlib_files() -> Iterator[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    elsewhere = {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "pydoc_data",
        "encodings",
        "lib2to3",
    }
    files = (
        file for file in root.rglob("*.py") if not elsewhere & set(file.relative_to(root).parts)
    )
    yield from _shuffled(files, root)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _texts(files: Iterator[Path]) -> Iterator[str]:
    for file in files:
        yield _read(file)


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for invalid escapes in other packages
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _documented(tree: ast.Module) -> Iterator[tuple[str, ast.Expr, str]]:
    """Yield (name, docstring statement, docstring) of the module and of every definition in it."""
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                pending.append((f"{prefix}.{child.name}".lstrip("."), child))
        assert isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and (text := ast.get_docstring(node)):
            yield prefix, first, text


def _docstrings(files: Iterator[Path]) -> Iterator[str]:
    for file in files:
        if tree := _parse(_read(file)):
            for name, _, text in _documented(tree):
                yield f"{name}\n\n{text}" if name else text


def _code(files: Iterator[Path]) -> Iterator[str]:
    """Sources without docstrings, which belong to another domain."""
    for file in files:
        source = _read(file)
        if tree := _parse(source):
            lines = source.splitlines()
            for _, node, _ in _documented(tree):
                for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[line] = ""
            yield "\n".join(lines)


def _python_manual() -> Iterator[str]:
    """The language reference of `help("topic")`, then the docstrings of the standard library."""
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    yield from _docstrings(_stdlib_files())


def _distributions() -> list[importlib.metadata.Distribution]:
    named = [
        (distribution.metadata["Name"] or "", distribution)
        for distribution in importlib.metadata.distributions()
    ]
    return [distribution for _, distribution in sorted(named, key=lambda pair: pair[0].lower())]


def _licences() -> Iterator[str]:
    for distribution in _distributions():
        for file in distribution.files or ():
            named = file.name.lower().startswith(("licen", "copying", "notice", "authors"))
            if named and any(part.endswith(".dist-info") for part in file.parts):
                yield _read(Path(str(distribution.locate_file(file))))


def _descriptions() -> Iterator[str]:
    """The description of each distribution, as the package index shows it."""
    for distribution in _distributions():
        # The file itself: `metadata` has no description once a package imported importlib_metadata.
        metadata = distribution.read_text("METADATA") or ""
        yield metadata.partition("\n\n")[2]

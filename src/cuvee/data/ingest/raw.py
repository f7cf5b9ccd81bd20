"""Raw text: which files hold it, what domain each belongs to, and which domains are the target.

    SRC a file                      its domain is the file's name
    SRC a folder                    each file in it is a domain by its name, each folder in it a domain by its name,
                                    with every file below; .txt files right in it form one domain, named after the folder
    SRC a folder with train/, valid/   both are read so, and the split is kept

A file's name counts without `.jsonl.gz` and the like, and without `-00003-of-00010`, so that the parts of one data set stay
together. `table.json` beside the sources may give roles: `[{"domain": "math", "role": "target"}, …]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from cuvee.core.domain import Role, Split
from cuvee.core.errors import CorpusError
from cuvee.core.files import sha256_of
from cuvee.core.mixture import NAME_PATTERN

Format = Literal["jsonl", "parquet", "txt", "rows"]

_SUFFIXES: Mapping[str, Format] = {
    f"{plain}{packed}": form
    for plain, form in ((".jsonl", "jsonl"), (".json", "jsonl"), (".txt", "txt"))
    for packed in ("", ".gz", ".zst")
} | {".parquet": "parquet"}  # type: ignore[assignment]
_PART = re.compile(r"-\d+-of-\d+$")
_TABLE = "table.json"
_TABLE_BYTES = 64 << 20


@dataclass(frozen=True)
class TextSource:
    """One file of raw text, or the rows of one data set held in memory.

    `domain` is the domain of all its rows unless a column says otherwise; `split` is None where documents are split by
    hash; `label` names it in the manifest and `place` in messages; `size` is in bytes, or rows for a data set.
    """

    domain: str
    split: Split | None
    format: Format
    label: str
    size: int
    path: Path | None = None
    rows: Any = None

    @property
    def place(self) -> str:
        return str(self.path) if self.path else self.label

    def digest(self) -> str:
        """Identifies the content: the sha256 of a file, the fingerprint of a data set."""
        if self.path is not None:
            return sha256_of(self.path)
        return f"{self.rows._fingerprint}:{len(self.rows)}"


def find_sources(
    places: Sequence[Path | str] | Mapping[str, Any],
) -> tuple[list[TextSource], dict[str, Role]]:
    """The sources in `places` in a fixed order, and the roles that tables beside them give.

    `places` are files and folders, or a mapping from domain names to Hugging Face map-style data sets.
    Raises `CorpusError` for what is missing, empty, unreadable or badly named.
    """
    if isinstance(places, Mapping):
        return [_data_set(name, rows) for name, rows in places.items()], {}
    try:
        return _find([Path(place) for place in places])
    except OSError as error:
        raise CorpusError(f"{error.filename} cannot be read: {error.strerror}") from error


def _find(places: Sequence[Path]) -> tuple[list[TextSource], dict[str, Role]]:
    sources: list[TextSource] = []
    for place in places:
        if not place.exists():
            raise CorpusError(f"there is no file or folder {place}; give the place of the raw text")
        if place.is_dir():
            found = [
                source
                for folder, split in splits_of(place)
                for source in _domains(folder, place, split)
            ]
        else:
            found = [_file(place, place.name, None)]
        if not found:
            known = ", ".join(
                sorted({suffix.removesuffix(".gz").removesuffix(".zst") for suffix in _SUFFIXES})
            )
            raise CorpusError(
                f"{place} holds no text: expected files that end in {known} (.gz and .zst too)"
            )
        sources += found
    if not sources:
        raise CorpusError("no sources given: name at least one file or folder of text")
    return sources, read_tables(places)


def check_domain_name(name: Any, place: str) -> str:
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise CorpusError(
            f"{place} gives the domain name {name!r}: use 1 to 64 letters, digits, dots, underscores or hyphens"
        )
    return name


def read_tables(places: Iterable[Path]) -> dict[str, Role]:
    """The roles that `table.json` files in or beside `places` give, by domain."""
    roles: dict[str, Role] = {}
    for place in places:
        path = (place if place.is_dir() else place.parent) / _TABLE
        if path.is_file():
            roles |= _read_table(path)
    return roles


def choose_roles(
    names: Sequence[str], table: Mapping[str, Role], targets: Sequence[str]
) -> dict[str, Role]:
    """A role for each of `names`: `targets` if there are any, else what the tables say, else source."""
    for target in targets:
        if target not in names:
            near = get_close_matches(target, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the domains are {', '.join(names)}"
            raise CorpusError(f"no domain {target!r} to make a target; {hint}")
    if targets:
        return {name: "target" if name in targets else "source" for name in names}
    return {name: table.get(name, "source") for name in names}


def splits_of(folder: Path) -> list[tuple[Path, Split | None]]:
    """The folders of domains in `folder`: its train/ and valid/, or itself with no split given."""
    has_train, has_valid = (folder / "train").is_dir(), (folder / "valid").is_dir()
    if has_train != has_valid:
        there, lacking = ("train", "valid") if has_train else ("valid", "train")
        raise CorpusError(
            f"{folder} has a folder {there}/ but none called {lacking}/: give it both to keep them apart, or name the "
            f"folder {folder / there} itself to have its documents split"
        )
    return (
        [(folder / "train", "train"), (folder / "valid", "valid")]
        if has_train
        else [(folder, None)]
    )


def _domains(folder: Path, root: Path, split: Split | None) -> Iterator[TextSource]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry == root / _TABLE:
            continue
        if entry.is_dir():
            for path in sorted(entry.rglob("*")):
                hidden = any(part.startswith(".") for part in path.relative_to(entry).parts)
                if not hidden and path.is_file() and _suffix(path):
                    yield _file(path, _label(path, root), split, entry.name)
        elif entry.is_file() and _suffix(entry):
            loose_text = _SUFFIXES[_suffix(entry)] == "txt"
            yield _file(
                entry, _label(entry, root), split, root.resolve().name if loose_text else None
            )


def _label(path: Path, root: Path) -> str:
    return f"{root.resolve().name}/{path.relative_to(root)}"


def _file(path: Path, label: str, split: Split | None, domain: str | None = None) -> TextSource:
    suffix = _suffix(path)
    if not suffix:
        raise CorpusError(
            f"{path} has no ending that is known: expected one of {', '.join(_SUFFIXES)}"
        )
    name = domain or _PART.sub("", path.name.removesuffix(suffix))
    return TextSource(
        domain=check_domain_name(name, str(path)),
        split=split,
        format=_SUFFIXES[suffix],
        label=label,
        size=path.stat().st_size,
        path=path,
    )


def _suffix(path: Path) -> str:
    return next(
        (suffix for suffix in _SUFFIXES if path.name.endswith(suffix) and path.name != suffix), ""
    )


def _data_set(name: str, rows: Any) -> TextSource:
    check_domain_name(name, "the mapping of data sets")
    if not (
        hasattr(rows, "_fingerprint") and hasattr(rows, "column_names") and hasattr(rows, "__len__")
    ):
        raise CorpusError(
            f"{name} is a {type(rows).__name__}: give a map-style `datasets.Dataset` (choose a split of a DatasetDict, "
            "and write an IterableDataset to Parquet first)"
        )
    return TextSource(
        domain=name, split=None, format="rows", label=f"dataset:{name}", size=len(rows), rows=rows
    )


def _read_table(path: Path) -> dict[str, Role]:
    expected = f'{path} must be a list like [{{"domain": "math", "role": "target"}}, …]'
    try:
        with open(path, "rb") as file:
            rows = json.loads(file.read(_TABLE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{expected}; it cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and "domain" in row for row in rows
    ):
        raise CorpusError(f"{expected}; it is not")
    roles: dict[str, Role] = {}
    for row in rows:
        role = row.get("role", "source")
        if role not in ("source", "target"):
            raise CorpusError(
                f"{path} gives {row['domain']!r} the role {role!r}: use source or target"
            )
        roles[check_domain_name(row["domain"], str(path))] = role
    return roles

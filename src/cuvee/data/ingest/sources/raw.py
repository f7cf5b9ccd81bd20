"""Find raw text: the files, the domain of each, and the target domains.

    SRC is a file      its name is the domain
    SRC is a folder    each file and each subfolder in it is a domain, named after it. A subfolder
                       includes all files below it. The .txt files directly in SRC form one domain,
                       named after SRC.
    SRC has train/ and valid/   both are read in this way, and define the splits, with test/ if it
                                is there
    SRC is a data set           of the Hugging Face Hub or of `datasets`: see `hub.py`

Endings such as `.jsonl.gz` and part numbers such as `-00003-of-00010` are removed from names, so
the parts of one data set form one domain. A number in the names of several files is a part number
too if it has leading zeros in one of them and equally many digits in all. If nothing is left of a
name, as of `part-00003`, the domain is named after the folder. A file `table.json` beside the sources may name domains
and give their roles: `[{"domain": "math", "role": "target"}, …]`. A file named after a domain of
the table is that domain, even if its name ends like a part number.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cuvee.core.domain import SPLITS, Role, Split
from cuvee.core.errors import CorpusError
from cuvee.core.files import read_json, sha256_of
from cuvee.data.corpus.names import check_all_used, check_domain_name, renamed
from cuvee.data.ingest.sources import hub
from cuvee.data.ingest.sources.files import SUFFIXES, Format, files_below, is_within, suffix_of
from cuvee.data.ingest.sources.places import path_of

_PART = re.compile(
    r"""
      (^|[-._])\d+[-_]?of[-_]?\d+ (-[0-9a-f]{8,})? $                  # web-00000-of-00010-0a1b2c3d
    | (^|[-._])(\d{5,}|0\d+) $                                       # web.00000, 0000
    | (^|[-._])(part|chunk|shard|piece)[-._]?\d+ $                   # web_part1
    | (^|[-._])(part-\d+(-tid-\d+)?-)?                              # Spark, Databricks, web_UUID
      [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12} (-\d+)* ([-._]c\d+)? (\.\w+)? $
    """,
    re.VERBOSE,
)
_DIGITS = re.compile(r"\d+")
_LEAST_DIGITS = 2
_MANY = 3  # names that differ by a number only
_TABLE = "table.json"


@dataclass(frozen=True)
class TextSource:
    """One file of raw text, or one data set in memory.

    `domain` is the domain of all rows unless a column gives it. `split` is None if documents are
    split by hash. `label` identifies the source in the manifest. `size` is in bytes, or in rows for
    a data set.
    """

    domain: str
    split: Split | None
    format: Format
    label: str
    size: int
    path: Path | None = None
    rows: Any = None
    text_column: str = ""
    """The column with the text, if it is not the one of the other sources."""

    @property
    def place(self) -> str:
        """The path or label to show in messages."""
        return str(self.path) if self.path else self.label

    def digest(self) -> str:
        """Return the sha256 of a file, or the fingerprint of a data set."""
        if self.path is not None:
            return sha256_of(self.path)
        return f"{self.rows._fingerprint}:{len(self.rows)}"


def find_sources(
    places: Sequence[Path | str] | Mapping[str, Any],
    renames: Mapping[str, str] | None = None,
    *,
    named_by_rows: bool = False,
) -> tuple[list[TextSource], dict[str, Role]]:
    """Return the sources in `places` in a fixed order, and the roles from tables beside them.

    `places` are files and folders, here or at URLs, or a mapping from domain names to Hugging Face map-style data
    sets. `renames` (see `names.checked_renames`) gives new names to domains. With `named_by_rows`,
    a column names the domains, and the names of files do not matter. Raises `CorpusError` if a
    place is missing, empty, unreadable or badly named.
    """
    table: dict[str, Role] = {}
    if isinstance(places, Mapping):
        found = [_data_set(name, rows) for name, rows in places.items()]
    else:
        try:
            found, table = _find([path_of(place) for place in places])
        except OSError as error:
            reason = error.strerror or error
            raise CorpusError(f"{error.filename or 'a source'} cannot be read: {reason}") from error
    renames = renames or {}
    roles = rename_roles(table, renames)
    if named_by_rows:
        return found, roles
    check_all_used(renames, {source.domain for source in found})
    return [
        replace(source, domain=check_domain_name(renamed(source.domain, renames), source.place))
        for source in found
    ], roles


def _find(places: Sequence[Path]) -> tuple[list[TextSource], dict[str, Role]]:
    table = read_tables(places)
    unread: list[Path] = []
    sources: list[TextSource] = []
    whole = whole_names(places, table)
    for place in places:
        if not place.exists():
            place = _cached(str(place))
        found = list(_sources_in(place, table, whole, unread))
        if not found:
            known = ", ".join(
                sorted({suffix.removesuffix(".gz").removesuffix(".zst") for suffix in SUFFIXES})
            )
            raise CorpusError(
                f"{place} holds no text: expected files that end in {known} (.gz and .zst too)"
            )
        sources += found
    remark_unread(unread, SUFFIXES)
    remark_numbers(source.domain for source in sources if source.domain not in table)
    remark_splits(one.domain for one in sources if one.split is None and one.domain not in table)
    if not sources:
        raise CorpusError("no sources given: name at least one file or folder of text")
    return sources, table


def _cached(place: str) -> Path:
    """The data set of the Hub that is called `place`, which is no path."""
    folder = hub.cached_folder(place) if hub.is_name(place) else None
    if folder is None:
        raise CorpusError(f"there is no file or folder {place}; {_remedy(place)}")
    return folder


def _sources_in(
    place: Path, table: Mapping[str, Role], whole: Mapping[str, str], unread: list[Path]
) -> Iterator[TextSource]:
    if not place.is_dir():
        yield _file(place, place.name, None, _domain_of(place, table, whole))
    elif data_set := hub.data_set(place):
        yield from _of_data_set(data_set, place, unread)
    else:
        for folder, split in splits_of(place):
            yield from _domains(folder, place, split, table, unread)


def _of_data_set(data_set: hub.DataSet, root: Path, unread: list[Path]) -> Iterator[TextSource]:
    unread += data_set.unread
    for file in data_set.files:
        yield _file(file.path, _label(file.path, root), file.split, file.domain)


def _remedy(place: str) -> str:
    """What to do about a place that is no path."""
    if hub.is_name(place):
        return (
            "give the path of the raw text. A data set of the Hugging Face Hub that is not cached on "
            f"this machine is downloaded first: hf download --repo-type dataset {place}"
        )
    return "give the path of the raw text"


def rename_roles(table: Mapping[str, Role], renames: Mapping[str, str]) -> dict[str, Role]:
    """Return the roles under the new names. Raises `CorpusError` for a name that is not valid."""
    return {check_domain_name(renamed(name, renames), _TABLE): role for name, role in table.items()}


def read_tables(places: Iterable[Path]) -> dict[str, Role]:
    """Return the roles by domain, as written, from `table.json` files in or beside `places`."""
    roles: dict[str, Role] = {}
    for place in places:
        path = (place if place.is_dir() else place.parent) / _TABLE
        if path.is_file():
            roles |= _read_table(path)
    return roles


def choose_roles(
    names: Sequence[str], table: Mapping[str, Role], targets: Sequence[str]
) -> dict[str, Role]:
    """Return the role of each name: from `targets` if given, else from the table, else "source".

    Raises `CorpusError` if a target is not among `names`.
    """
    for target in targets:
        if target not in names:
            near = get_close_matches(target, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the domains are {', '.join(names)}"
            raise CorpusError(f"no domain {target!r} to make a target; {hint}")
    if targets:
        return {name: "target" if name in targets else "source" for name in names}
    return {name: table.get(name, "source") for name in names}


def splits_of(folder: Path) -> list[tuple[Path, Split | None]]:
    """Return the folders in `folder` that hold domains, with the split of each.

    These are its train/, valid/ and, if there is one, test/, or the folder itself with split None.
    Raises `CorpusError` if only one of train/ and valid/ exists, unless it is a saved data set.
    """
    has_train = (folder / "train").is_dir()
    has_valid = (folder / "valid").is_dir()
    if has_train != has_valid and hub.data_set(folder) is None:
        present, missing = ("train", "valid") if has_train else ("valid", "train")
        raise CorpusError(
            f"{folder} has a folder {present}/ but none called {missing}/: add it to define the "
            f"splits, or give {folder / present} itself to split its documents"
        )
    if not (has_train and has_valid):
        return [(folder, None)]
    return [(folder / split, split) for split in SPLITS if (folder / split).is_dir()]


def _domains(
    folder: Path,
    root: Path,
    split: Split | None,
    table: Mapping[str, Role],
    unread: list[Path],
) -> Iterator[TextSource]:
    entries = sorted(folder.iterdir())
    whole = whole_names(entries, table)
    for entry in entries:
        if entry.name.startswith(".") or entry == root / _TABLE or entry.name in hub.ABOUT:
            continue
        if entry.is_symlink() and entry.is_dir() and is_within(folder, entry):
            unread.append(entry)
            continue
        if entry.is_dir() and split is None and (data_set := hub.data_set(entry, entry.name)):
            yield from _of_data_set(data_set, root, unread)
        elif entry.is_dir():
            for path in sorted(files_below(entry)):
                if path.name in hub.ABOUT:
                    continue
                if path.is_file() and suffix_of(path):
                    yield _file(path, _label(path, root), split, entry.name)
                else:
                    unread.append(path)
        elif entry.is_file() and suffix_of(entry):
            loose_text = SUFFIXES[suffix_of(entry)] == "txt"
            domain = root.resolve().name if loose_text else _domain_of(entry, table, whole)
            yield _file(entry, _label(entry, root), split, domain)
        else:
            unread.append(entry)


def remark_unread(unread: Sequence[Path], known: Iterable[str]) -> None:
    """Warn of files that were not read, with the `known` endings."""
    if unread:
        shown = ", ".join(map(str, unread[:5])) + (", …" if len(unread) > 5 else "")
        warnings.warn(
            f"{len(unread)} files were not read, because they are dangling links, have unknown "
            f"endings or differ in format from the rest of a data set: {shown}. Known endings: "
            f"{', '.join(known)}",
            stacklevel=2,
        )


def remark_splits(names: Iterable[str]) -> None:
    """Warn of domains that are called like the validation or test split of a data set."""
    if found := sorted({name for name in names if hub.names_split(name)}):
        warnings.warn(
            f"{', '.join(found)} will be a domain like any other, and be trained on: if it is held "
            "out, put the text into folders train/ and valid/ (and test/)",
            stacklevel=2,
        )


def remark_numbers(names: Iterable[str]) -> None:
    """Warn of three or more domains whose names differ by a number only."""
    stems: dict[str, set[str]] = {}
    for name in names:
        stems.setdefault(re.sub(r"\d+", "#", name), set()).add(name)
    for stem, alike in stems.items():
        if "#" in stem and len(alike) >= _MANY:
            warnings.warn(
                f"{len(alike)} domains differ by a number only "
                f"({', '.join(sorted(alike)[:3])}, …): if they are parts of one data set, put "
                "them in one folder, whose name is then the domain",
                stacklevel=2,
            )


def _label(path: Path, root: Path) -> str:
    return f"{root.resolve().name}/{path.relative_to(root)}"


def _domain_of(path: Path, table: Mapping[str, Role], whole: Mapping[str, str]) -> str:
    """Return the name of a file without its ending, and without a part number.

    The part number stays if `table` has a domain of that name. A name that is nothing else gives
    way to that of the folder. `whole` is what `whole_names` returned.
    """
    suffix = suffix_of(path)
    if not suffix:
        raise CorpusError(f"{path} has no known ending: expected one of {', '.join(SUFFIXES)}")
    name = path.name[: -len(suffix)]
    if name in table:
        return name
    plain = _without_part(name)
    if plain == name and name in whole:
        plain = whole[name]
    return plain or path.resolve().parent.name


def _without_part(name: str) -> str:
    """Remove part numbers from the end of a name: there may be several, as in `001_00003`."""
    while name and (shorter := _PART.sub("", name)) != name:
        name = shorter
    return name


def whole_names(paths: Iterable[Path], table: Mapping[str, Role]) -> dict[str, str]:
    """Return the name of the whole by the names that differ in a number with leading zeros.

    Those are the names of files of text, without their endings, that `table` has not. The number
    has leading zeros in one of them and equally many digits in all, as in `09` and `10`. Warns
    where no other sign of parts is in the names.
    """
    names = {path.name[: -len(ending)] for path in paths if (ending := suffix_of(path))}
    groups: dict[tuple[str, str, int], set[str]] = {}
    for name in names - set(table):
        for match in _DIGITS.finditer(name):
            frame = (name[: match.start()], name[match.end() :], len(match[0]))
            groups.setdefault(frame, set()).add(name)
    whole: dict[str, str] = {}
    for (before, after, width), alike in groups.items():
        zeros = any(name[len(before)] == "0" for name in alike)
        if width < _LEAST_DIGITS or len(alike) < 2 or not zeros:
            continue
        rest = f"{before.rstrip('-._')}{after if before else after.lstrip('-._')}"
        unsure = sorted(name for name in alike if _without_part(name) == name)
        whole |= dict.fromkeys(alike, _without_part(rest))
        if unsure:
            warnings.warn(
                f"{len(alike)} files are read as parts of one domain ({min(alike)} to "
                f"{max(alike)}): list their names in table.json if they are domains",
                stacklevel=2,
            )
    return whole


def _file(path: Path, label: str, split: Split | None, domain: str) -> TextSource:
    return TextSource(
        domain=domain,
        split=split,
        format=SUFFIXES[suffix_of(path)],
        label=label,
        size=path.stat().st_size,
        path=path,
    )


def _data_set(name: str, rows: Any) -> TextSource:
    if not (
        hasattr(rows, "_fingerprint") and hasattr(rows, "column_names") and hasattr(rows, "__len__")
    ):
        raise CorpusError(
            f"{name} is a {type(rows).__name__}: give a map-style `datasets.Dataset` (choose a "
            "split of a DatasetDict; write an IterableDataset to Parquet first)"
        )
    return TextSource(
        domain=name, split=None, format="rows", label=f"dataset:{name}", size=len(rows), rows=rows
    )


def _read_table(path: Path) -> dict[str, Role]:
    expected = f'{path} must be a list like [{{"domain": "math", "role": "target"}}, …]'
    try:
        rows = read_json(path)
    except (OSError, ValueError) as error:
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
        if not isinstance(row["domain"], str):
            check_domain_name(row["domain"], str(path))
        roles[row["domain"]] = role
    return roles

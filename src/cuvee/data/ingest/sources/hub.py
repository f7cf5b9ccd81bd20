"""Data sets as the Hugging Face Hub and `datasets` keep them on this machine: files, domains, splits.

    owner/name              the copy in the cache of the Hub, else that in the cache of `datasets`
    datasets--owner--name   such a copy; its newest snapshot is read
    owner___name            the other one; the newest version of each configuration is read
    FOLDER                  of `hf download --local-dir FOLDER`, or of `save_to_disk(FOLDER)`

A data set is one domain, and each of several configurations is one. The files of its `validation`
and `test` splits are for validation and test only. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.domain import Split
from cuvee.core.files import read_json
from cuvee.data.ingest.sources.files import SUFFIXES, files_below, suffix_of

ABOUT = frozenset(("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"))
"""What `datasets` writes beside the text of a data set; it is no text."""
_BESIDE = ABOUT | {"README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
_CACHED = "datasets--"
_LINE_BYTES = 1000
_SAVED = ("dataset_dict.json", "state.json")
_INFO = "dataset_info.json"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"\w[\w.-]*")
# The words by which `datasets` recognises splits in the names of files and folders.
_KEYWORDS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "valid": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {word: split for split, words in _KEYWORDS.items() for word in words}


@dataclass(frozen=True)
class DataFile:
    """A file of a data set. `split` is None if its documents are split by hash."""

    path: Path
    domain: str
    split: Split | None


@dataclass(frozen=True)
class DataSet:
    """The files of a data set, and those that were not read."""

    files: tuple[DataFile, ...]
    unread: tuple[Path, ...]


def names_split(name: str) -> bool:
    """Whether a name is one of the words for validation or test, as in `test.jsonl`."""
    return _WORDS.get(name.lower(), "train") != "train"


def is_name(place: str) -> bool:
    """Whether `place` is written like the name of a data set of the Hub."""
    return _NAME.fullmatch(place) is not None


def cached_folder(name: str) -> Path | None:
    """Return where the data set `owner/name` is cached on this machine, if it is."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    places = (
        Path(HF_HUB_CACHE) / f"{_CACHED}{name.replace('/', '--')}",
        prepared / name.replace("/", "___"),
    )
    return next((place for place in places if (found := data_set(place)) and found.files), None)


def data_set(folder: Path, domain: str = "") -> DataSet | None:
    """Return the files of the data set in `folder`, or None if it is not one.

    `domain` replaces the name of the data set.
    """
    snapshot = _snapshot(folder)
    if snapshot is not None:
        return _in_folder(snapshot, domain or _own_name(snapshot.parent.parent))
    if "___" in folder.name and folder.is_dir():
        return _prepared(folder, domain)
    if (folder / ".cache" / "huggingface").is_dir() or _has(folder, *_SAVED):
        return _in_folder(folder, domain or folder.resolve().name)
    if _has(folder, _INFO):
        found = [path for path in folder.iterdir() if not path.name.startswith("cache-")]
        return _of(sorted(found), folder, domain or _name_in(folder / _INFO))
    return None


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _snapshot(folder: Path) -> Path | None:
    """The snapshot that `folder` is or holds: that of `refs/main`, else the newest."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(_CACHED):
        return folder if folder.is_dir() else None
    if not folder.name.startswith(_CACHED) or not (folder / "snapshots").is_dir():
        return None
    main = folder / "refs" / "main"
    commit = _commit_in(main) if main.is_file() else ""
    if commit and (folder / "snapshots" / commit).is_dir():
        return folder / "snapshots" / commit
    copies = list((folder / "snapshots").iterdir())
    return max(copies, key=lambda copy: copy.stat().st_mtime, default=None)


def _commit_in(path: Path) -> str:
    """The commit in a file of `refs`, or ""."""
    with path.open("rb") as file:
        text = file.read(_LINE_BYTES).decode(errors="replace").strip()
    return text if _COMMIT.fullmatch(text) else ""


def _own_name(cached: Path) -> str:
    return cached.name.rpartition("--")[2]


def _name_in(info: Path) -> str:
    """The name of the data set in a `dataset_info.json`, else that of its folder."""
    try:
        content = read_json(info)
    except ValueError:
        content = None
    known = content if isinstance(content, dict) else {}
    found = known.get("dataset_name") or known.get("builder_name")
    return found if isinstance(found, str) else info.parent.resolve().name


def _in_folder(folder: Path, name: str) -> DataSet:
    return _of(sorted(files_below(folder)), folder, name)


def _prepared(folder: Path, domain: str) -> DataSet:
    """The newest version of each configuration that `load_dataset` prepared."""
    newest: dict[str, Path] = {}
    for info in sorted(folder.glob(f"*/*/*/{_INFO}"), key=lambda info: info.stat().st_mtime):
        newest[info.relative_to(folder).parts[0]] = info.parent
    name = domain or folder.name.rpartition("___")[2]
    found = {
        part: data_set(place, part if len(newest) > 1 else name) for part, place in newest.items()
    }
    sets = [one for one in found.values() if one]
    return DataSet(
        tuple(file for one in sets for file in one.files),
        tuple(path for one in sets for path in one.unread),
    )


def _of(paths: Sequence[Path], root: Path, name: str) -> DataSet:
    """Sort the files of the most common format below `root` into domains and splits."""
    known = [path for path in paths if path.name not in _BESIDE]
    formats = Counter(SUFFIXES[suffix] for path in known if (suffix := suffix_of(path)))
    chosen = max(formats, key=lambda form: (formats[form], form != "txt"), default=None)
    text = [path for path in known if path.is_file() and SUFFIXES.get(suffix_of(path)) == chosen]
    unread = tuple(path for path in known if path not in set(text) and not path.is_dir())
    parts = {path: path.relative_to(root).parts for path in text}
    configurations = {path: _configuration(parts[path][:-1]) for path in text}
    several = len(set(configurations.values())) > 1
    splits = {path: _split_in(parts[path]) for path in text}
    by_hash = "valid" not in splits.values()
    alone = set(splits.values()) <= {"test"}
    return DataSet(
        tuple(
            DataFile(
                path,
                (configurations[path] if several else "") or name,
                None if alone or (by_hash and splits[path] != "test") else splits[path],
            )
            for path in text
        ),
        unread,
    )


def _configuration(folders: Iterable[str]) -> str:
    """The first folder that is named neither after a split nor `data`, or ""."""
    return next((part for part in folders if part != "data" and part not in _WORDS), "")


def _split_in(parts: Sequence[str]) -> Split:
    """The split that a file's name or else a folder's name contains; "train" without one."""
    for part in reversed(parts):
        for word in re.split(r"[^a-zA-Z0-9]+", part.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return "train"

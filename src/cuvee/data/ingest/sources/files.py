"""Which files hold text, in which format, and the files below a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

Format = Literal["jsonl", "csv", "parquet", "arrow", "txt", "rows"]

SUFFIXES: Mapping[str, Format] = {
    f"{plain}{packed}": form
    for plain, form in (
        (".jsonl", "jsonl"),
        (".ndjson", "jsonl"),
        (".json", "jsonl"),
        (".csv", "csv"),
        (".txt", "txt"),
    )
    for packed in ("", ".gz", ".zst")
} | {".parquet": "parquet", ".arrow": "arrow"}  # type: ignore[assignment]


def suffix_of(path: Path) -> str:
    """Return the known ending of a name, in small letters whatever its own, or ""."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), "")


def is_within(folder: Path, other: Path) -> bool:
    """Whether `folder` is `other`, which may be a link, or lies below it."""
    real = folder.resolve()
    return other.resolve() in (real, *real.parents)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder` that are not hidden.

    Follows links to folders, but enters none of its own parents.
    """
    stack = [(folder, frozenset([folder.resolve()]))]
    while stack:
        place, above = stack.pop()
        for entry in place.iterdir():
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry
            elif (real := entry.resolve()) not in above:
                stack.append((entry, above | {real}))

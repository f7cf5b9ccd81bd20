"""Find `.bin`/`.idx` pairs, and which of them are parts of one domain.

    SRC is one of the files   its name is the domain
    SRC is a folder           each pair in it is a domain, named after it. A subfolder is a domain
                              with all pairs below it as its parts.
    SRC has train/ and valid/ both are read in this way, with test/ if it is there

Names lose the `_text_document` that Megatron-LM's preprocessing appends. Pairs whose names differ
in a part number only are one domain if the numbers are 0…n−1 or 1…n for n ≥ 2.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cuvee.core.domain import Split
from cuvee.core.errors import CorpusError
from cuvee.data.corpus.manifest import NAME, read_manifest
from cuvee.data.corpus.names import check_all_used, check_domain_name, renamed
from cuvee.data.ingest.sources.files import files_below
from cuvee.data.ingest.sources.places import is_url
from cuvee.data.ingest.sources.raw import read_tables, remark_numbers, remark_unread, splits_of

_DOCUMENT = "_text_document"
_PART = re.compile(r"(?P<stem>.+?)[-._](?P<number>\d+)(?:-of-\d+)?")
_ENDINGS = (".idx", ".bin")
_BESIDE = {NAME, "table.json", "tokenizer.json", "tokenizer_config.json", "quarantine.jsonl"}
"""Files that may lie beside shards and are not meant to be read as shards."""


@dataclass(frozen=True)
class Found:
    """The files of one domain and split: the common paths of its parts, without the ending."""

    name: str
    split: Split
    parts: tuple[Path, ...]


@dataclass(frozen=True)
class Finding:
    """What is in the sources: the shards, the names that were folded or are known, and the files left out."""

    shards: list[Found]
    folded: dict[str, list[str]]
    kept: set[str]
    unread: list[Path]

    def renamed(self, renames: Mapping[str, str]) -> Finding:
        """Return it under new names (see `names.checked_renames`).

        Raises `CorpusError` if a name is not valid, or an old name is not there.
        """
        check_all_used(renames, {shard.name for shard in self.shards})
        named = [
            replace(
                shard, name=check_domain_name(renamed(shard.name, renames), f"{shard.parts[0]}.idx")
            )
            for shard in self.shards
        ]
        return replace(self, shards=named)

    def remark(self) -> None:
        """Warn of folded names, of files that were not read, and of names that look like parts."""
        for name, parts in self.folded.items():
            warnings.warn(
                f"{len(parts)} shards are read as parts of the domain {name} ({parts[0]} to "
                f"{parts[-1]}): list their names in table.json if they are domains",
                stacklevel=3,
            )
        remark_unread(self.unread, _ENDINGS)
        remark_numbers(shard.name for shard in self.shards if shard.name not in self.kept)


def find_shards(places: Sequence[Path | str]) -> Finding:
    """Return the `.bin`/`.idx` pairs in `places`, which are such files or folders.

    Places at URLs have none: shards are mapped into memory, so they must be on this machine. Names
    are as the files give them. Raises `CorpusError` if a folder cannot be read.
    """
    shards: list[Found] = []
    unread: list[Path] = []
    paths = [Path(place) for place in places if not is_url(place)]
    try:
        for place in paths:
            shards += _in_folder(place, unread) if place.is_dir() else _pair(place, "train")
        kept = set(read_tables(paths)).union(*map(_corpus_names, paths))
    except OSError as error:
        raise CorpusError(f"{error.filename} cannot be read: {error.strerror}") from error
    times = Counter((shard.name, shard.split) for shard in shards)
    kept |= {name for (name, _), count in times.items() if count > 1}  # an error of the caller
    folded = _part_names({shard.name for shard in shards}, kept)
    joined = _fold(shards, {part: name for name, parts in folded.items() for part in parts})
    return Finding(joined, folded, kept, unread)


def _in_folder(place: Path, unread: list[Path]) -> Iterator[Found]:
    folders = splits_of(place)
    if folders[0][1] is not None:
        splits = [folder for folder, _ in folders]
        unread += [
            entry
            for entry in sorted(place.iterdir())
            if entry not in splits and entry.name not in _BESIDE and entry.name[0] != "."
        ]
    for folder, split in folders:
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                paths = sorted(files_below(entry), key=_in_number_order)
                pairs = [path for path in paths if _is_pair(path, unread)]
                if pairs:
                    yield Found(entry.name, split or "train", tuple(map(_prefix, pairs)))
            elif _is_pair(entry, unread):
                yield from _pair(entry, split or "train")


def _is_pair(path: Path, unread: list[Path]) -> bool:
    """Whether `path` is an index. Any file that belongs to none is added to `unread`."""
    if path.suffix == ".idx" and path.is_file():
        return True
    belongs = path.suffix == ".bin" and path.with_suffix(".idx").is_file()
    if not belongs and path.name not in _BESIDE:
        unread.append(path)
    return False


def _pair(path: Path, split: Split) -> list[Found]:
    if path.suffix not in _ENDINGS:
        return []
    return [Found(path.stem.removesuffix(_DOCUMENT), split, (_prefix(path),))]


def _prefix(path: Path) -> Path:
    return path.with_suffix("")


def _in_number_order(path: Path) -> list[tuple[int, str]]:
    """The order in which part 10 follows part 9."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)]


def _corpus_names(place: Path) -> set[str]:
    """The domains of a corpus in `place`, whose names are not names of parts."""
    try:
        return {domain.name for domain in read_manifest(place).domains}
    except CorpusError:
        return set()


def _part_names(names: set[str], kept: set[str]) -> dict[str, list[str]]:
    """Return the names that are parts, in the order of their numbers, by the name of the whole."""
    groups: dict[str, dict[str, int]] = {}
    for name in names - kept:
        if match := _PART.fullmatch(name):
            frame = name[: match.start("number")] + "#" + name[match.end("number") :]
            groups.setdefault(frame, {})[name] = int(match["number"])
    complete = [
        sorted(numbers, key=numbers.__getitem__)
        for numbers in groups.values()
        if _is_complete(list(numbers.values()))
    ]
    stems = [_stem(parts[0]) for parts in complete]
    taken = names | {stem for stem, times in Counter(stems).items() if times > 1}
    return {stem: parts for stem, parts in zip(stems, complete, strict=True) if stem not in taken}


def _is_complete(numbers: Sequence[int]) -> bool:
    """Whether the numbers are 0…n−1 or 1…n, each once, for n ≥ 2."""
    return len(numbers) > 1 and sorted(numbers) in (
        list(range(len(numbers))),
        list(range(1, len(numbers) + 1)),
    )


def _stem(part: str) -> str:
    match = _PART.fullmatch(part)
    assert match
    return match["stem"].removesuffix(_DOCUMENT)


def _fold(shards: Sequence[Found], whole: dict[str, str]) -> list[Found]:
    """Give the parts the name of the whole, and put the parts of each split into number order."""
    parts: dict[tuple[str, Split], list[Found]] = {}
    for shard in shards:
        if shard.name in whole:
            parts.setdefault((whole[shard.name], shard.split), []).append(shard)
    order = {name: i for i, name in enumerate(whole)}
    return [shard for shard in shards if shard.name not in whole] + [
        replace(
            members[0],
            name=name,
            parts=tuple(
                path
                for shard in sorted(members, key=lambda shard: order[shard.name])
                for path in shard.parts
            ),
        )
        for (name, _), members in parts.items()
    ]

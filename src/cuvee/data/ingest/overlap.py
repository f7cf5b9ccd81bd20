"""Counts documents that a given `train/` has in common with `valid/` and `test/`, and those that
two files have in common, in bounded memory.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from cuvee.core.domain import SPLITS, Split

_MOST = 1 << 20  # hashes held of all splits together
_COPY = 0.5  # of a file's documents in another file: then one is probably a copy of the other
_FEW = 10  # documents, of which nothing is said
_SHOWN = 5


def rank_of(text: str) -> int:
    """Return 64 bits of a hash of `text` that do not depend on its blanks and ends of lines."""
    words = " ".join(text.split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


class Overlap:
    """Holds the hashes below `below`, which is halved whenever they become too many.

    Counts are scaled up accordingly.
    """

    def __init__(self) -> None:
        self.below = 2**64
        self._files: dict[Split | None, dict[int, int]] = {one: {} for one in (*SPLITS, None)}
        """The first file of each hash, by the split that the sources give."""
        self._in_file: Counter[int] = Counter()
        self._common: Counter[tuple[int, int]] = Counter()

    def add(self, split: Split | None, ranks: Sequence[int], file: int = 0) -> None:
        """Add documents of the source with the number `file`."""
        known = self._files[split]
        for rank in ranks:
            if rank < self.below:
                first = known.setdefault(rank, file)
                self._in_file[file] += 1
                if first != file:
                    self._common[first, file] += 1
        while sum(map(len, self._files.values())) > _MOST:
            self._halve()

    def _halve(self) -> None:
        """Hold half of the hashes. Counts of earlier documents become half, rounded up."""
        self.below //= 2
        for split, known in self._files.items():
            self._files[split] = {rank: file for rank, file in known.items() if rank < self.below}
        for counts in (self._in_file, self._common):
            for key in counts:
                counts[key] = (counts[key] + 1) // 2  # type: ignore[index]

    @property
    def held(self) -> int:
        """How many hashes are held."""
        return sum(map(len, self._files.values()))

    def warn(self, files: Mapping[int, str] | None = None) -> None:
        """Warn if validation or test documents are training documents too, and say how many.

        Also warn of files that have most of their documents in common. `files` are the names of
        the sources by number; the others are not compared.
        """
        self._warn_of("valid", "validation")
        self._warn_of("test", "test")
        self._warn_of_copies(files or {})

    def _warn_of(self, split: Split, word: str) -> None:
        held_out = self._files[split].keys()
        if common := len(self._files["train"].keys() & held_out):
            warnings.warn(
                f"{self._about}{common * self._times} of the {self._about}"
                f"{len(held_out) * self._times} different {word} documents are also in train/: "
                f"{word} losses will be too low; remove them from one of the two",
                stacklevel=3,
            )

    def _warn_of_copies(self, files: Mapping[int, str]) -> None:
        copies = [
            f"{self._about}{common * self._times} of {files[second]} are also in {files[first]}"
            for (first, second), common in self._common.most_common()
            if first in files
            and second in files
            and common >= _FEW
            and common >= _COPY * min(self._in_file[first], self._in_file[second])
        ]
        if copies:
            more = f", and {len(copies) - _SHOWN} more pairs" if len(copies) > _SHOWN else ""
            warnings.warn(
                f"files have documents in common: {'; '.join(copies[:_SHOWN])}{more}. They count "
                "twice; leave one of the files out if it is a copy",
                stacklevel=3,
            )

    @property
    def _times(self) -> int:
        return 2**64 // self.below

    @property
    def _about(self) -> str:
        return "about " if self._times > 1 else ""

"""Counts documents that a given `train/` has in common with `valid/` and `test/`, in bounded
memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from cuvee.core.domain import SPLITS, Split

_MOST = 1 << 20  # hashes held of all splits together


class Overlap:
    """Holds the hashes below `below`, which is halved whenever they become too many.

    Counts are scaled up accordingly.
    """

    def __init__(self) -> None:
        self.below = 2**64
        self._ranks: dict[Split, set[int]] = {split: set() for split in SPLITS}

    def add(self, split: Split | None, ranks: Sequence[int]) -> None:
        if split is None:
            return
        self._ranks[split].update(rank for rank in ranks if rank < self.below)
        while sum(map(len, self._ranks.values())) > _MOST:
            self.below //= 2
            for known in self._ranks.values():
                known.difference_update([rank for rank in known if rank >= self.below])

    def warn(self) -> None:
        """Warn if validation or test documents are training documents too, and say how many."""
        self._warn_of(self._ranks["valid"], "validation")
        self._warn_of(self._ranks["test"], "test")

    def _warn_of(self, held_out: set[int], word: str) -> None:
        if common := len(self._ranks["train"] & held_out):
            times = 2**64 // self.below
            about = "about " if times > 1 else ""
            warnings.warn(
                f"{about}{common * times} of the {about}{len(held_out) * times} different {word} documents are also in "
                f"train/: {word} losses will be too low; remove them from one of the two",
                stacklevel=3,
            )

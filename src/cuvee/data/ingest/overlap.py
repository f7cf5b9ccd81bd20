"""Counts documents that a given `train/` and a given `valid/` have in common, in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from cuvee.core.domain import Split

_MOST = 1 << 20  # hashes held of both splits together


class Overlap:
    """Holds the hashes below `below`, which is halved whenever they become too many. Counts are scaled up accordingly."""

    def __init__(self) -> None:
        self.below = 2**64
        self._ranks: dict[Split, set[int]] = {"train": set(), "valid": set()}

    def add(self, split: Split | None, ranks: Sequence[int]) -> None:
        if split is None:
            return
        self._ranks[split].update(rank for rank in ranks if rank < self.below)
        while sum(map(len, self._ranks.values())) > _MOST:
            self.below //= 2
            for known in self._ranks.values():
                known.difference_update([rank for rank in known if rank >= self.below])

    def warn(self) -> None:
        """Warn if validation documents are training documents too, and say how many."""
        train, valid = self._ranks["train"], self._ranks["valid"]
        if common := len(train & valid):
            times = 2**64 // self.below
            about = "about " if times > 1 else ""
            warnings.warn(
                f"{about}{common * times} of the {about}{len(valid) * times} different validation documents are also in "
                "train/: validation losses will be too low; remove them from one of the two",
                stacklevel=2,
            )

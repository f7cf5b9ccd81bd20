"""`FleetWatch`: where the runs of a store stand, how fast they go and how long they will take, for whoever looks on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cuvee.fleet.store.rows import RunSummary, Tally
from cuvee.fleet.store.store import Store

_WINDOW = 60.0  # seconds over which speed is measured


@dataclass(frozen=True)
class FleetStatus:
    """`tokens_per_second` and `seconds_left` are of all workers of all drivers together, measured while this watch looked on;
    None while it has seen too little."""

    tally: Tally
    running: tuple[RunSummary, ...]
    failed: tuple[RunSummary, ...]
    tokens_per_second: float | None
    seconds_left: float | None

    @property
    def retried(self) -> int:
        """Attempts that came to nothing and were, or will be, followed by another one."""
        return max(0, self.tally.lost_attempts - self.tally.failed)


class FleetWatch:
    """Of the runs of a group, or of all runs in the store."""

    def __init__(
        self, store: Store, group: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._group = group
        self._clock = clock
        self._seen: deque[tuple[float, int, float]] = (
            deque()
        )  # when; tokens and shares of runs done by then
        self._moves = False

    def look(self, tally: Tally | None = None) -> FleetStatus:
        """`tally` saves counting again."""
        tally = tally or self._store.tally(self._group)
        running = self._store.runs(self._group, "running") if tally.running else []
        failed = self._store.runs(self._group, "failed") if tally.failed else []
        now = self._clock()
        if (
            self._seen and not self._moves
        ):  # time counts from the first thing that was done: before, workers were starting
            self._moves = tally.cost.tokens > self._seen[0][1]
            self._seen.clear()
        self._seen.append((now, tally.cost.tokens, tally.progress))
        while self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()
        then, tokens, progress = self._seen[0]
        speed = (tally.cost.tokens - tokens) / (now - then) if now > then else None
        pace = (tally.progress - progress) / (now - then) if now > then else 0.0
        left = tally.open - (tally.progress - tally.done - sum(run.progress for run in failed))
        return FleetStatus(
            tally, tuple(running), tuple(failed), speed, left / pace if pace > 0 else None
        )

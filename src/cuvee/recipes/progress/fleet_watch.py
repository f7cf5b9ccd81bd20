"""`FleetWatch`: the state of the runs in a store, their speed and their remaining time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cuvee.core.epochs import TokensRead
from cuvee.fleet.store.rows import Interval, RunSummary, Tally
from cuvee.fleet.store.store import Store
from cuvee.policies.guard.operator import Request
from cuvee.recipes.progress.watch import TREND, DomainProgress, domain_progress

_WINDOW = 60.0  # seconds over which speed is measured


@dataclass(frozen=True)
class FleetStatus:
    """The state of the runs at one time.

    `tokens_per_second` and `seconds_left` cover all workers of all drivers, measured by this watch
    over the last minute. They are None until there are enough measurements.
    """

    tally: Tally
    running: tuple[RunSummary, ...]
    failed: tuple[RunSummary, ...]
    tokens_per_second: float | None
    seconds_left: float | None
    requests: tuple[Request, ...] = ()
    """Those of operators to the runs that are running."""
    domains: tuple[DomainProgress, ...] = ()
    """Those of the only run that is running; none if there are several."""

    @property
    def retried(self) -> int:
        """Failed attempts that were, or will be, followed by another attempt."""
        return max(0, self.tally.lost_attempts - self.tally.failed)


class FleetWatch:
    """Watches the runs of a group, or all runs in the store if `group` is None."""

    def __init__(
        self, store: Store, group: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._group = group
        self._clock = clock
        # Times; tokens and shares of runs that were done by then.
        self._seen: deque[tuple[float, int, float]] = deque()
        self._moves = False
        self._followed = ""
        self._number = 0
        self._read = TokensRead()
        self._recent: deque[Interval] = deque(maxlen=TREND + 1)

    def look(self, tally: Tally | None = None) -> FleetStatus:
        """Return the current state. A `tally` that is already known saves a query."""
        tally = tally or self._store.tally(self._group)
        running = self._store.listing(self._group, "running").runs if tally.running else ()
        failed = self._store.listing(self._group, "failed").runs if tally.failed else ()
        now = self._clock()
        # Speed is measured from the first progress on: before it, workers were starting.
        if self._seen and not self._moves:
            self._moves = tally.cost.tokens > self._seen[0][1]
            self._seen.clear()
        self._seen.append((now, tally.cost.tokens, tally.progress))
        while self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()
        then, tokens, progress = self._seen[0]
        speed = (tally.cost.tokens - tokens) / (now - then) if now > then else None
        pace = (tally.progress - progress) / (now - then) if now > then else 0.0
        left = tally.open - (tally.progress - tally.done - sum(run.progress for run in failed))
        open_runs = {run.id for run in running}
        asked = self._store.requests(group=self._group) if running else []
        return FleetStatus(
            tally,
            tuple(running),
            tuple(failed),
            speed,
            left / pace if pace > 0 else None,
            tuple(request for request in asked if request.run_id in open_runs),
            self._domains(running[0]) if len(running) == 1 else (),
        )

    def _domains(self, run: RunSummary) -> tuple[DomainProgress, ...]:
        """The domains of a run. Only intervals that are new since the last call are read."""
        if run.id != self._followed or run.intervals + 1 < self._number:
            self._followed = run.id
            self._number = 0
            self._read = TokensRead()
            self._recent.clear()
        for interval in self._store.intervals(run.id, first=self._number):
            self._read.add(interval.signals)
            self._number = interval.number + 1
            self._recent.append(interval)
        if len(self._recent) < 2 or self._recent[-1].mixture is None:
            return ()
        first = next(one.mixture for one in self._recent if one.mixture is not None)
        last = self._recent[-1]
        return domain_progress(last.signals, last.mixture or first, first, self._read)

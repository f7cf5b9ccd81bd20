"""The live view of a fleet: counts, speed, cost, and a row per active run.

Without a terminal it prints plain lines.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from cuvee.cli.display.clock import time_of
from cuvee.cli.display.live import domain_bars
from cuvee.cli.display.printable import one_line

if TYPE_CHECKING:
    from cuvee.fleet.store.rows import RunSummary
    from cuvee.policies.guard.operator import Request
    from cuvee.recipes.progress.fleet_watch import FleetStatus

_ROWS = 20  # active runs with a row of their own
_SILENCE = 30.0  # seconds after which a log gets a line even if no run has ended


class FleetView(AbstractContextManager["FleetView"]):
    """`show` displays a status. At the end it prints the final status and why runs failed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: FleetStatus | None = None
        self._said: tuple[int, int] | None = None
        self._said_at = 0.0
        self._asked: set[str] = set()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=self.picture, refresh_per_second=4, transient=True
            )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        if self._status is None:
            return
        self._say(_line(self._status))
        for run in self._status.failed:
            self._say(
                one_line(
                    f"failed: {run.id} ({run.name}) after {run.attempts} attempts: {run.reason}"
                )
            )

    def show(self, status: FleetStatus) -> None:
        self._status = status
        if not self._live:
            for request in status.requests:
                if (line := request_line(request)) not in self._asked:
                    self._asked.add(line)
                    self._say(line)
        ended = status.tally.done, status.tally.failed
        if self._live or not status.tally.open:
            return
        if ended != self._said or time.monotonic() - self._said_at > _SILENCE:
            self._said = ended
            self._said_at = time.monotonic()
            self._say(_line(status))

    def picture(self) -> RenderableType:
        if self._status is None:
            return "reading the store"
        tally = self._status.tally
        counts = _table(
            "waiting",
            "running",
            "done",
            "failed",
            "retried",
            "tokens/s",
            "time left",
            "tokens",
            "FLOPs",
            "time",
        )
        counts.add_row(
            *(
                f"{count:,}"
                for count in (
                    tally.waiting,
                    tally.running,
                    tally.done,
                    tally.failed,
                    self._status.retried,
                )
            ),
            _speed(self._status.tokens_per_second),
            _left(self._status.seconds_left),
            f"{tally.cost.tokens:,}",
            f"{tally.cost.flops:.2e}",
            time_of(tally.cost.seconds),
        )
        runs = _table(
            "run", "done", "intervals", "attempt", "tokens", "tokens/s", "time left", "worker"
        )
        for run in self._status.running[:_ROWS]:
            runs.add_row(*_cells(run))
        if len(self._status.running) > _ROWS:
            runs.add_row(f"{len(self._status.running) - _ROWS} others")
        domains = self._status.domains
        bars: list[RenderableType] = ["", domain_bars(domains)] if domains else []
        asked = (request_line(request) for request in self._status.requests[-_ROWS:])
        return Group(counts, "", runs, *bars, *asked)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def request_line(request: Request) -> str:
    """Return what became of an operator's request."""
    since = "waits" if request.interval is None else f"from interval {request.interval:,} on"
    return one_line(f"operator of {request.run_id}: {request.text()}, {since} ({request.author})")


def _line(status: FleetStatus) -> str:
    tally = status.tally
    going = ""
    if tally.open:
        going = f"; {_speed(status.tokens_per_second)} tokens/s, {_left(status.seconds_left)} left"
    return (
        f"{tally.done} done, {tally.running} running, {tally.waiting} waiting, "
        f"{tally.failed} failed, {status.retried} retried{going}; "
        f"{tally.cost.tokens:,} tokens, {tally.cost.flops:.2e} FLOPs, "
        f"{time_of(tally.cost.seconds)} so far"
    )


def _cells(run: RunSummary) -> tuple[str, ...]:
    """The cells of a run's row. Speed and time left count all attempts, lost work included."""
    speed = run.cost.tokens / run.cost.seconds if run.cost.seconds > 0 else None
    left = run.cost.seconds * (1.0 - run.progress) / run.progress if run.progress > 0 else None
    host, _, rest = (run.worker or "").partition("/")
    pid = rest.split("/")[1] if rest.count("/") == 2 else ""
    counts = f"{run.progress:.0%}", f"{run.intervals:,}", f"{run.attempts}", f"{run.cost.tokens:,}"
    return one_line(run.id), *counts, _speed(speed), _left(left), one_line(f"{host} {pid}".strip())


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in ("run", "worker") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def _speed(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _left(seconds: float | None) -> str:
    return "?" if seconds is None else time_of(seconds)

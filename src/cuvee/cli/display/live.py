"""The live view of training: rows of runs and bars of the mixture; plain lines in logs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table

from cuvee.cli.display.clock import time_of
from cuvee.cli.display.console import console
from cuvee.cli.display.printable import one_line
from cuvee.recipes.progress.watch import DomainProgress, Observer, Progress, Unobserved

_BARS = 12  # domains with a bar
_WIDTH = 32  # characters of the longest bar
_LINES = 20  # plain lines per run
_STOPPING = (
    "stopping: the current interval ends and is saved first; Ctrl-C again stops at once without it"
)


class LiveView(Observer, AbstractContextManager["LiveView"]):
    """Updates in place: one row per run. With a single run, its mixture is shown below."""

    def __init__(self, console: Console) -> None:
        self._running: dict[str, Progress | None] = {}
        self._stopping = False
        self._live = Live(
            console=console, get_renderable=self.picture, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stopping(self) -> None:
        self._stopping = True

    def begin(self, run_id: str, note: str) -> None:
        self._running[run_id] = None
        self._live.console.print(f"{run_id} {note}", style="bold")

    def interval(self, progress: Progress) -> None:
        self._running[progress.run_id] = progress

    def end(self, run_id: str, note: str) -> None:
        self._running.pop(run_id, None)
        self._live.console.print(f"{run_id} {note}", style="bold")

    def picture(self) -> RenderableType:
        table = Table(
            Column("run", overflow="fold"),
            "step",
            "done",
            "loss",
            "valid",
            "tokens/s",
            "time left",
            box=None,
            padding=(0, 2, 0, 0),
        )
        for run_id, progress in list(self._running.items()):
            table.add_row(run_id, *(_cells(progress) if progress else ("", "starting")))
        shown = [progress for progress in self._running.values() if progress]
        bars = [domain_bars(shown[0].domains)] if len(shown) == 1 else []
        return Group(table, *bars, *([_STOPPING] if self._stopping else []))


class PlainView(Observer, AbstractContextManager["PlainView"]):
    """Prints a line from time to time, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: dict[str, int] = {}

    def __exit__(self, *_: object) -> None:
        pass

    def stopping(self) -> None:
        threading.Thread(target=self._say, args=(_STOPPING,)).start()

    def begin(self, run_id: str, note: str) -> None:
        self._say(f"{run_id} {note}")

    def interval(self, progress: Progress) -> None:
        line = int(progress.progress * _LINES)
        if line == self._printed.get(progress.run_id):
            return
        self._printed[progress.run_id] = line
        step, done, loss, valid, speed, left = _cells(progress)
        self._say(
            f"{progress.run_id} step {step} ({done}) loss {loss} valid {valid} "
            f"{speed} tokens/s, {left} left"
        )

    def end(self, run_id: str, note: str) -> None:
        self._say(f"{run_id} {note}")

    def _say(self, line: str) -> None:
        self._console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)


class QuietView(Unobserved, AbstractContextManager["QuietView"]):
    def __exit__(self, *_: object) -> None:
        pass


def view(quiet: bool = False) -> LiveView | PlainView | QuietView:
    """Return the view that fits standard error: live on a terminal, else plain lines."""
    if quiet:
        return QuietView()
    to = console(stderr=True)
    return LiveView(to) if to.is_terminal else PlainView(to)


def _cells(progress: Progress) -> tuple[str, str, str, str, str, str]:
    left = progress.seconds_left
    return (
        f"{progress.step:,}",
        f"{progress.progress:.0%}",
        _number(progress.loss),
        _number(progress.valid_loss),
        f"{progress.tokens_per_second:,.0f}",
        "?" if left is None else time_of(left),
    )


def domain_bars(domains: Sequence[DomainProgress]) -> Table:
    """The domains with the largest shares as bars, relative to the largest, and the rest.

    Beside each are its natural share, where the share is going, and how often it was read.
    """
    ranked = sorted(domains, key=lambda domain: -domain.share)
    table = Table("domain", "epochs", "natural", "share", "", box=None, padding=(0, 2, 0, 0))
    for one in ranked[:_BARS]:
        bar = "█" * round(_WIDTH * one.share / max(ranked[0].share, 1e-12))
        share = f"{one.share:.3f} {_trend(one)}"
        table.add_row(one.name, f"{one.epochs:.2f}", f"{one.natural:.3f}", share, bar)
    if rest := ranked[_BARS:]:
        sums = [
            f"{sum(each):.3f}" for each in zip(*((d.natural, d.share) for d in rest), strict=True)
        ]
        most = max(one.epochs for one in rest)
        table.add_row(f"{len(rest)} others", f"≤ {most:.2f}", *sums, "")
    return table


def _trend(domain: DomainProgress) -> str:
    """An arrow if the share has changed by more than a twentieth of itself."""
    if abs(domain.change) <= 0.05 * domain.share:
        return "→"
    return "↑" if domain.change > 0 else "↓"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

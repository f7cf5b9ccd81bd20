"""The console through which the command line prints tables, bars, live views and lines.

Domain names, reasons, paths and settings may come from other people. So no string is interpreted as
markup, and control characters are escaped. All of `cuvee.cli` prints through here or `lines`.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cuvee.cli.display.lines import PIPE_WIDTH
from cuvee.cli.display.printable import printable


class PlainConsole(Console):
    """A console that prints every string literally, without markup."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(
            printable(text), **{**options, "markup": False, "emoji": False, "highlight": False}
        )


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal, or 240 columns wide for a file or a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    return PlainConsole(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH)


class Stages:
    """Shows each stage of some work as a separate bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, share: float) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(printable(stage), total=1.0)
        self._bar.update(self._tasks[stage], completed=share)


def progress_bar(*, disable: bool) -> Progress:
    """Return the bar for `Stages`, on standard error."""
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console(stderr=True),
        disable=disable,
    )

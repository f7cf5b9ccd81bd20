"""Prints lines of plain text without heavy imports, for commands and errors without tables."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, Literal

import typer

from cuvee.cli.display.printable import printable

PIPE_WIDTH = 240
"""Columns of a file or a pipe."""


def say(
    text: str = "", *, error: bool = False, colour: Literal["red", "yellow"] | None = None
) -> None:
    """Print `text` with control characters escaped, on standard error if `error`.

    Without colour if NO_COLOR is set: https://no-color.org.
    """
    typer.secho(printable(text), fg=None if os.environ.get("NO_COLOR") else colour, err=error)


def say_warnings() -> None:
    """Print warnings as single lines on standard error from now on."""

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if sys.stderr is not None:
            say(f"warning: {message}", error=True, colour="yellow")

    warnings.showwarning = show

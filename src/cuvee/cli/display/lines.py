"""Lines of plain text. Loads nothing heavy, for commands and errors that print no table."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Literal

import typer

from cuvee.cli.display.printable import printable


def say(
    text: str = "", *, error: bool = False, colour: Literal["red", "yellow"] | None = None
) -> None:
    """Prints `text` with control characters written out; with `error` on the error stream."""
    typer.secho(printable(text), fg=colour, err=error)


def say_warnings() -> None:
    """From now on a warning is one line on the error stream."""

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if sys.stderr is not None:
            say(f"warning: {message}", error=True, colour="yellow")

    warnings.showwarning = show

"""Where tables and live views go."""

from __future__ import annotations

import sys

from rich.console import Console

_PIPE_WIDTH = 240


def console(stderr: bool = False) -> Console:
    """As wide as the terminal; wide enough for a whole row when the output goes into a file or a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH)

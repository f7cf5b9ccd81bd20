"""Tables of text that fit the terminal, and JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from typing import Any

from cuvee.cli.display.lines import PIPE_WIDTH, say
from cuvee.cli.display.printable import one_line

_LAID_OUT = 500  # rows; a longer table is printed without wrapping
_LEAST = 12  # characters of the last column, which wraps


class Listing:
    """A table whose rows are added one by one.

    Columns in `numbers` are aligned at the right. If the terminal is too narrow, columns in
    `spare` are left out, the first one first. The last column wraps.
    """

    def __init__(
        self, *columns: str, numbers: Sequence[str] = (), spare: Sequence[str] = ()
    ) -> None:
        self._columns = columns
        self._numbers = numbers
        self._spare = spare
        self._rows: list[tuple[str, ...]] = []

    def add(self, *cells: str) -> None:
        """Add a row, with control characters escaped."""
        self._rows.append(tuple(map(one_line, cells)))

    def print(self) -> None:
        """Print the table on standard output."""
        every = (self._columns, *self._rows)
        widths = [max(map(len, cells)) for cells in zip(*every, strict=True)]
        if len(self._rows) > _LAID_OUT:
            screen = get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
            self._print_plainly(self._fitting(widths, screen), widths)
            return
        from rich.table import Table

        from cuvee.cli.display.console import console

        out = console()
        columns = self._fitting(widths, out.width)

        table = Table(box=None, padding=(0, 2, 0, 0))
        for i in columns:
            name = self._columns[i]
            justify: Any = "right" if name in self._numbers else "left"
            table.add_column(name, justify=justify, overflow="fold")
        for row in self._rows:
            table.add_row(*(row[i] for i in columns))
        out.print(table, highlight=False)

    def _fitting(self, widths: Sequence[int], width: int) -> list[int]:
        columns = list(range(len(self._columns)))
        for name in self._spare:
            needed = sum(widths[i] + 2 for i in columns[:-1])
            if needed + min(widths[columns[-1]], _LEAST) <= width:
                break
            columns.remove(self._columns.index(name))
        return columns

    def _print_plainly(self, columns: Sequence[int], widths: Sequence[int]) -> None:
        """Aligned columns without wrapping, which take no time to lay out."""
        places = [
            f"{{{i}:{'>' if self._columns[i] in self._numbers else '<'}{widths[i]}}}"
            for i in columns
        ]
        line = "  ".join(places).format
        say("\n".join(line(*row).rstrip() for row in (self._columns, *self._rows)))


def say_json(content: Any) -> None:
    """Print one JSON document. What JSON does not know is printed as text."""
    say(json.dumps(content, indent=2, default=str))


def say_json_lines(records: Iterable[Any]) -> None:
    """Print each record as a line of JSON."""
    for record in records:
        say(json.dumps(record))

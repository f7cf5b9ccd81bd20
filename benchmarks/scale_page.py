"""The figures of docs/lab/scale.md, from what `scale.py` measured (docs/lab/results/scale.json).

`headline.py --page` calls `with_figures`. It fills the last cell of each row of the page's tables:
the text of the row's first cell says which figure that is. A row without a figure is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Result = Mapping[str, Any]


def _of(unit: str, *keys: Any) -> Callable[[Result], str]:
    """Return a figure that stands at `keys`, with its unit."""

    def figure(result: Result) -> str:
        found: Any = result
        for key in keys:
            found = found[key]
        return f"{found:.2g} {unit}".rstrip() if found < 100 else f"{found:,.0f} {unit}".rstrip()

    return figure


def _decision(method: str) -> Callable[[Result], str]:
    """Return the seconds of a decision, and those of the first one after a resume."""

    def figure(result: Result) -> str:
        found = result["decisions"][method]
        if "refused" in found:
            return f"refused: {found['refused']}"
        return f"{found['next_s']:.2g} s; the first {found['first_s']:.2g} s"

    return figure


FIGURES: Mapping[str, Callable[[Result], str]] = {
    "state, with a cap for each domain and one mixture logged for later": _of(
        "MB", "stream", "state_megabytes"
    ),
    "save the state": _of("s", "stream", "save_state_s"),
    "load the state": _of("s", "stream", "load_state_s"),
    "seek from the last change to the end of the run": _of("s", "stream", "seek_s"),
    "change the mixture": _of("s", "stream", "set_mixture_s"),
    "first batch after a change": _of("s", "stream", "batch_after_a_change_s"),
    "open the corpus": _of("s", "stream", "open_corpus_s"),
    "build the stream": _of("s", "stream", "open_stream_s"),
    **{
        method: _decision(method)
        for method in ("natural", "odm", "ado", "gain", "ac_odm", "hds", "history")
    },
    "ac_odm at a tenth of the domains, with learning": _of(
        "s", "decisions", "learning", "ac_odm", "next_s"
    ),
    "hds at a tenth of the domains, with learning": _of(
        "s", "decisions", "learning", "hds", "next_s"
    ),
    "audit record of the guard, `gain`": _of("MB", "decisions", "gain", "audit_megabytes"),
    "audit record with an agent's observations, `ac_odm`": _of(
        "MB", "decisions", "ac_odm", "audit_megabytes"
    ),
    "history of the run in memory, on paper": _of("GB", "decisions", "history_gigabytes_on_paper"),
    "size of an interval": _of("MB", "store", 0, "megabytes_a_row"),
    "intervals written a second": _of("", "store", 0, "rows_written_a_second"),
    "intervals read a second": _of("", "store", 0, "rows_read_a_second"),
    "four runs of 10,000 domains and 20 intervals": lambda result: _page(result, 0),
    "two runs of 22 domains and 100,000 intervals": lambda result: _page(result, 1),
}


def _page(result: Result, at: int) -> str:
    found = result["report"][at]
    return f"{found['seconds']:.2g} s, {found['megabytes']:.2g} MB"


def with_figures(text: str, result: Result | None) -> str:
    """Return the page with the last cell of each row of its tables filled in.

    Without a result the page stays as it is.
    """
    if result is None:
        return text
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not line.startswith("| ") or lines[i + 1].startswith("|---"):
            continue
        *cells, _ = line.strip().strip("|").split("|")
        name = cells[0].strip()
        lines[i] = f"|{'|'.join(cells)}| {FIGURES[name](result)} |"
    return "\n".join(lines)

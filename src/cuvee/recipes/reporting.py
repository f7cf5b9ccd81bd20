"""From stored runs to tables and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Run
from cuvee.fleet.rows import RunSummary
from cuvee.fleet.store import Store
from cuvee.report.page import write_report
from cuvee.report.summary import summarise
from cuvee.report.tables import Table, final_table, paired_table


def tables(runs: Sequence[Run], baseline: str | None = None) -> list[tuple[str, Table]]:
    """What a comparison comes down to, with headings: final losses and cost, and paired differences if there are any."""
    summary = summarise(runs, baseline, bytes_per_token=_widths(runs))
    paired = paired_table(summary)
    final = (("At the end", final_table(summary)),)
    return [*final, (f"Against {summary.baseline}, paired by seed", paired)] if paired else [*final]


def write(runs: Sequence[Run], path: Path, title: str, baseline: str | None = None) -> Path:
    """The page about runs that are all finished."""
    return write_report(runs, path, title, baseline=baseline, bytes_per_token=_widths(runs))


def write_stored(store: Store, summaries: Sequence[RunSummary], path: Path, title: str) -> Path:
    """The page about runs in any state; those that recorded nothing are left out. Raises `StoreError` if that is all."""
    begun = [summary for summary in summaries if summary.intervals]
    if not begun:
        raise StoreError(f"none of {len(summaries)} runs in {store!r} has recorded anything to report yet")
    runs = [store.load(summary.id) for summary in begun]
    statuses = {one.id: f"{one.status}: {one.reason}" if one.reason else one.status for one in begun}
    return write_report(runs, path, title, statuses=statuses, bytes_per_token=_widths(runs))


def _widths(runs: Sequence[Run]) -> dict[str, float]:
    """Bytes a token by domain, as the runs' configurations say."""
    widths: dict[str, float] = {}
    for run in runs:
        own: Mapping[str, float] = run.config.get("bytes_per_token", {})
        widths.update(own)
    return widths

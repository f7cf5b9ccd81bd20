"""Turns runs into tables for a terminal, and a store into a report page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Run
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.report.page import write_report
from cuvee.report.summary import summarise
from cuvee.report.tables import Table, final_table, paired_table
from cuvee.report.words import fallback, final_loss


def tables(runs: Sequence[Run], baseline: str | None = None) -> list[tuple[str, Table]]:
    """Return the tables of a comparison with headings.

    They are final losses and cost, and paired differences if runs of equal seeds exist. The
    headings say whether losses are test or validation losses.
    """
    summary = summarise(runs, baseline)
    loss = final_loss(summary)
    note = fallback(summary)
    heading = f"{loss.capitalize()} at the end" + (f". {note}" if note else "")
    final = (heading, final_table(summary))
    paired = paired_table(summary)
    against = f"Against {summary.baseline}, paired by seed: {loss}"
    return [final, (against, paired)] if paired else [final]


def write_stored(store: Store, summaries: Sequence[RunSummary], path: Path, title: str) -> Path:
    """Write the page about runs in any state. Runs without a recorded interval are left out.

    Raises `StoreError` if no run remains.
    """
    begun = [summary for summary in summaries if summary.intervals]
    if not begun:
        raise StoreError(
            f"none of {len(summaries)} runs in {store!r} has recorded anything to report yet"
        )
    statuses = {
        one.id: f"{one.status}: {one.reason}" if one.reason else one.status for one in begun
    }
    return write_report([store.load(one.id) for one in begun], path, title, statuses=statuses)

"""What the live page shows of a store: plain rows and figures, without a web framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Run
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.recipes.progress.fleet_watch import FleetStatus, FleetWatch
from cuvee.report.figures.folding import folded
from cuvee.report.figures.losses import curve_figure
from cuvee.report.figures.mixtures import epochs_figure, mixture_figure
from cuvee.report.summary import MOST_METHODS, summarise
from cuvee.report.tables import measures
from cuvee.report.words import duration

_ROWS, _EVENTS = 60, 30
_ORDER = ("running", "dead", "waiting", "failed", "done")
RUN_COLUMNS = (
    "run",
    "state",
    "done",
    "intervals",
    "attempts",
    "tokens",
    "time",
    "worker or reason",
)
EVENT_COLUMNS = ("interval", "step", "verdict", "limits", "alarms", "reason")


class Dashboard:
    """Reads a store for the page. What was read of a run is kept until the run has more."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._watches: dict[str | None, FleetWatch] = {}
        self._runs: dict[str, tuple[int, Run]] = {}

    def status(self, group: str | None) -> FleetStatus:
        """Return counts, speed and time left of the runs of a group, or of all."""
        return self._watches.setdefault(group, FleetWatch(self.store, group)).look()

    def listed(self, group: str | None) -> list[RunSummary]:
        """Return the runs that are under way first, then the newest others."""
        runs = self.store.listing(group).runs
        newest = sorted(runs, key=lambda run: -run.updated)
        return sorted(newest, key=lambda run: _ORDER.index(run.state))[:_ROWS]

    def load(self, run: RunSummary) -> Run:
        """Return a run as far as it is recorded."""
        known = self._runs.get(run.id)
        if known is None or known[0] != run.intervals:
            known = run.intervals, self.store.load(run.id)
            self._runs[run.id] = known
        return known[1]

    def run_figures(self, run: RunSummary) -> Mapping[str, go.Figure]:
        """Return the figures of one run: mixture and epochs over time."""
        few = folded(summarise([self.load(run)]))
        method = few.methods[0]
        return {"Mixture": mixture_figure(few, method), "Epochs": epochs_figure(few, method)}

    def losses(self, group: str | None) -> go.Figure | None:
        """Return the validation losses of the first runs of `listed`, a line for each.

        None if none has begun, or if their corpora have no domain in common.
        """
        begun = [run for run in self.listed(group) if run.intervals][:MOST_METHODS]
        runs = [self.load(run) for run in begun]
        try:
            summary = summarise([replace(run, config={"method": run.id}) for run in runs])
        except ConfigError:
            return None
        if not summary.domains:
            return None
        figure = curve_figure(summary, measures(summary)[-1][1])
        return figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25})

    def events(self, run: RunSummary) -> list[tuple[str, ...]]:
        """Return the guard's newest decisions that were more than accepted, newest first."""
        found = []
        for number, metrics in enumerate(self.store.metrics(run.id), start=1):
            record = metrics.get("guard") or {}
            if record and (record.get("verdict") != "accepted" or record.get("alarms")):
                found.append(_event(number, record))
        return found[::-1][:_EVENTS]


def run_row(run: RunSummary) -> tuple[str, ...]:
    """Return the cells of `RUN_COLUMNS`."""
    return (
        run.id,
        run.state,
        f"{run.progress:.0%}",
        f"{run.intervals:,}",
        f"{run.attempts}",
        f"{run.cost.tokens:,}",
        duration(run.cost.seconds),
        run.reason or (run.worker if run.state == "running" else "") or "",
    )


def _event(number: int, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of `EVENT_COLUMNS`."""
    return (
        f"{number}",
        f"{record.get('step')}",
        f"{record.get('verdict')}",
        ", ".join(map(str, record.get("limits") or ())),
        "; ".join(f"{name}: {why}" for name, why in (record.get("alarms") or {}).items()),
        f"{record.get('reason') or ''}",
    )

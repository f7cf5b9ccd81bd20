"""What the live page shows of a store: plain rows and figures, without a web framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Run
from cuvee.fleet.store.reading import BadAttempt, Worker
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.fleet.worker_name import is_alive, readable
from cuvee.recipes.progress.fleet_watch import FleetStatus, FleetWatch
from cuvee.report.figures.folding import folded
from cuvee.report.figures.losses import curve_figure
from cuvee.report.figures.mixtures import epochs_figure, mixture_figure
from cuvee.report.summary import MOST_METHODS, summarise
from cuvee.report.tables import measures
from cuvee.report.words import amount, duration

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
HOST_COLUMNS = ("host", "workers", "training", "done", "failed or lost", "tokens", "last sign")
WORKER_COLUMNS = (
    "worker",
    "state",
    "trains",
    "lease left",
    "done",
    "failed or lost",
    "tokens",
    "last sign",
)
BAD_COLUMNS = ("run", "attempt", "outcome", "reason", "worker", "ended", "tokens")


@dataclass(frozen=True)
class Fleet:
    """The workers of a store: a sentence, and the rows of three tables."""

    summary: str
    hosts: Sequence[Sequence[str]]
    workers: Sequence[Sequence[str]]
    bad: Sequence[Sequence[str]]


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

    def fleet(self, group: str | None) -> Fleet:
        """Return who trains the runs of a group, or of all, and which attempts came to nothing."""
        workers = self.store.workers(group)
        by_host: dict[str, list[Worker]] = {}
        for worker in workers:
            by_host.setdefault(host_of(worker.name), []).append(worker)
        shown = sorted(workers, key=lambda worker: not worker.holds)[:_ROWS]
        return Fleet(
            _fleet_summary(workers, len(by_host)),
            [_host_row(host, found) for host, found in by_host.items()],
            [_worker_row(worker) for worker in shown],
            [_bad_row(attempt) for attempt in self.store.bad_attempts(group, _EVENTS)],
        )

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
        return curve_figure(summary, measures(summary)[-1][1])

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
        run.reason or (readable(run.worker) if run.state == "running" else ""),
    )


def host_of(worker: str) -> str:
    """Return the host in a worker's name, or the whole name if it has another form."""
    return worker.partition("/")[0]


def _fleet_summary(workers: Sequence[Worker], hosts: int) -> str:
    if not workers:
        return "No worker has claimed a run yet."
    held = sum(len(worker.holds) for worker in workers if not worker.dead)
    dead = sum(len(worker.holds) for worker in workers if worker.dead)
    bad = sum(worker.bad for worker in workers)
    seen = f"{_count(len(workers), 'worker')} on {_count(hosts, 'host')} so far"
    gone = f" and {_count(dead, 'run')} whose worker is gone" if dead else ""
    return (
        f"{seen}. {_count(held, 'run')} in training{gone}. {_count(bad, 'attempt')} failed or lost."
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _host_row(host: str, workers: Sequence[Worker]) -> tuple[str, ...]:
    """Return the cells of `HOST_COLUMNS`."""
    return (
        host,
        f"{len(workers)}",
        f"{sum(len(worker.holds) for worker in workers if not worker.dead)}",
        *_record(workers),
    )


def _worker_row(worker: Worker) -> tuple[str, ...]:
    """Return the cells of `WORKER_COLUMNS`."""
    left = min(worker.holds.values(), default=None)
    lease = "" if left is None else duration(left) if left > 0 else "expired"
    return readable(worker.name), _state(worker), ", ".join(worker.holds), lease, *_record([worker])


def _state(worker: Worker) -> str:
    if worker.dead:
        return "dead"
    if worker.holds:
        return "training"
    return "ended" if is_alive(worker.name) is False else "no run"


def _record(workers: Sequence[Worker]) -> tuple[str, ...]:
    """Return the cells that hosts and workers share."""
    return (
        f"{sum(worker.done for worker in workers):,}",
        f"{sum(worker.bad for worker in workers):,}",
        amount(sum(worker.tokens for worker in workers)),
        _ago(min(worker.silent for worker in workers)),
    )


def _bad_row(attempt: BadAttempt) -> tuple[str, ...]:
    """Return the cells of `BAD_COLUMNS`."""
    return (
        attempt.run,
        f"{attempt.number}",
        attempt.outcome,
        attempt.reason,
        readable(attempt.worker),
        _ago(attempt.ago),
        amount(attempt.tokens),
    )


def _ago(seconds: float) -> str:
    return f"{duration(round(seconds))} ago"


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

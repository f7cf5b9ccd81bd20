"""Turns runs into tables for a terminal, and a store into a report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.errors import StoreError
from cuvee.core.protocols import Metrics
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.evaluation.claims import Answered
from cuvee.evaluation.verdicts import Verdict
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store
from cuvee.recipes.config.schema import CompareConfig
from cuvee.recipes.housekeeping import folder_of
from cuvee.recipes.reports.claims import answered_claims
from cuvee.recipes.stores import begun, open_store
from cuvee.report.answers import Evaluations, answer_table
from cuvee.report.page import write_report
from cuvee.report.steering import Steering, steering
from cuvee.report.summary import summarise
from cuvee.report.tables import (
    Cell,
    Row,
    Table,
    final_table,
    measures,
    paired_table,
    spread_table,
)
from cuvee.report.verdict import Card, card
from cuvee.report.words import (
    ABSENT,
    claim_sentence,
    fallback,
    final_loss,
    interval,
    measure,
    signed,
)


@dataclass(frozen=True)
class Written:
    """What a comparison came to, as its report says it."""

    card: Card | None
    verdicts: Mapping[str, Verdict]
    claims: Sequence[str]
    tables: Sequence[tuple[str, Table]]
    """Tables with their headings."""


def tables(
    runs: Sequence[Run],
    baseline: str | None = None,
    steered: Mapping[str, Steering] | None = None,
    evaluations: Evaluations | None = None,
) -> list[tuple[str, Table]]:
    """Return the tables of a comparison with headings.

    They are final losses and cost, paired differences if runs of equal seeds exist, and results of
    `cuvee evaluate` if there are any. The headings say whether losses are test or validation
    losses. `steered` says by run id who steered it.
    """
    summary = summarise(runs, baseline, steered=steered)
    loss = final_loss(summary)
    note = fallback(summary)
    heading = f"{loss.capitalize()} at the end" + (f". {note}" if note else "")
    final = [(heading, final_table(summary))]
    paired = paired_table(summary)
    spread = spread_table(summary)
    final += [("Where the spread over seeds comes from", spread)] if spread else []
    against = f"Against {summary.baseline}, paired by seed: {loss}"
    if len(measures(summary)) > 1:
        against += f". The verdict is about the {measure(summary)}"
    final += [(against, paired)] if paired else []
    answers = answer_table(summary, evaluations or {})
    final += [("Results of `cuvee evaluate`", answers)] if answers else []
    return final


def report_path(config: CompareConfig, model: str, given: Path | None, several: bool) -> Path:
    """Return the file of a comparison's report: `given`, or NAME.html in `out`.

    With several models, the model's name is added, as in NAME-llama-1m.html.
    """
    path = given or config.out / f"{config.name}.html"
    return path.with_name(f"{path.stem}-{model}{path.suffix}") if several else path


def write_comparison(config: CompareConfig, runs: Sequence[Run], path: Path) -> Written:
    """Write the report of a comparison and return what it says, with its claims as sentences."""
    group = config.group(Corpus.open(config.corpus).fingerprint)
    with open_store(config.store, must_exist=True) as store:
        recorded = _recorded(store, {run.id: store.metrics(run.id) for run in runs})
    summary = summarise(runs, config.baseline_label, steered=recorded["steered"])
    claims = answered_claims(config.out, group, summary)
    write_report(runs, path, config.name, baseline=config.baseline_label, claims=claims, **recorded)
    return Written(
        card(summary),
        summary.verdicts,
        [claim_sentence(one) for one in claims],
        tables(runs, config.baseline_label, recorded["steered"], recorded["evaluations"]),
    )


def _recorded(store: Store, metrics: Mapping[str, Sequence[Metrics]]) -> dict[str, Any]:
    """What the store knows of runs besides their trajectories, as `write_report` takes it.

    `metrics` are those of each run, by its id.
    """
    found = {run_id: steering(of_run) for run_id, of_run in metrics.items()}
    return {
        "metrics": metrics,
        "steered": {run_id: one for run_id, one in found.items() if one is not None},
        "evaluations": {run_id: store.evaluations(run_id) for run_id in metrics},
    }


def by_model_table(
    compared: Mapping[str, Sequence[Run]], baseline: str | None = None
) -> tuple[str, Table]:
    """Return each method's difference to the baseline by model, with its verdict."""
    found = {name: summarise(runs, baseline).verdicts for name, runs in compared.items()}
    labels = list(dict.fromkeys(label for one in found.values() for label in one))
    rows = []
    for label in labels:
        cells = [_by_model(one.get(label)) for one in found.values()]
        rows.append(Row(label, "", tuple(cells)))
    return "Difference to the baseline by model", Table(tuple(found), tuple(rows))


def _by_model(verdict: Verdict | None) -> Cell:
    if verdict is None:
        return Cell(ABSENT)
    spread = interval(verdict.difference)
    note = f"{spread}; {verdict.outcome}" if spread else verdict.outcome
    return Cell(signed(verdict.difference.mean), note)


def write_stored(store: Store, summaries: Sequence[RunSummary], path: Path, title: str) -> Path:
    """Write the page about runs in any state. Runs without a recorded interval are left out.

    If all runs are of one group, the page has the claims that were registered for it beside them.
    Raises `StoreError` if no run remains.
    """
    found = begun(summaries)
    if not found:
        raise StoreError(
            f"none of {len(summaries)} runs in the store {store.address.shown} has recorded anything to report yet"
        )
    statuses = {
        one.id: f"{one.status}: {one.reason}" if one.reason else one.status for one in found
    }
    read = [store.load_with_metrics(one.id) for one in found]
    runs = [run for run, _ in read]
    recorded = _recorded(store, {run.id: metrics for run, metrics in read})
    claims: list[Answered] = []
    group, *others = {one.group for one in found}
    folder = folder_of(found[0])
    if group and not others and folder:
        summary = summarise(runs, statuses=statuses, steered=recorded["steered"])
        claims = answered_claims(folder.parent, group, summary)
    return write_report(runs, path, title, statuses=statuses, claims=claims, **recorded)

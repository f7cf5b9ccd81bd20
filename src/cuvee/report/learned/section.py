"""The part of the report about learned policies: sentences, a table by domain and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from cuvee.core.protocols import Metrics
from cuvee.core.trajectory import Run
from cuvee.report.document import Panel
from cuvee.report.figures.colours import DASHES, method_colour
from cuvee.report.figures.style import style, thinned
from cuvee.report.learned.diagnosis import Diagnosis, diagnose, sentences
from cuvee.report.summary import Summary
from cuvee.report.tables import Cell, Row, Table
from cuvee.report.words import ABSENT, number, signed

_POINTS = 60


@dataclass(frozen=True)
class Section:
    """What a method's policy learned in one run."""

    label: str
    run: str
    sentences: Sequence[str]
    table: Table
    panel: Panel


def sections(summary: Summary, recorded: Mapping[str, Sequence[Metrics]]) -> list[Section]:
    """Return a section for each method in the figures that learned during its runs.

    It is about the first run whose metrics are in `recorded`, by run id, and compares it with the
    baseline's run of the same seed.
    """
    found = []
    theirs = {view.run.seed: view.run for view in summary.methods[0].finished}
    for place, method in enumerate(summary.shown):
        views = method.finished or method.runs
        run = next((view.run for view in views if recorded.get(view.run.id)), None)
        if run is None:
            continue
        other = theirs.get(run.seed) if place else None
        against = (summary.baseline, other) if other else None
        diagnosis = diagnose(run, recorded[run.id], against)
        if diagnosis is not None:
            words = sentences(diagnosis)
            panel = Panel(
                f"plot-learned-{place}",
                "Exploration",
                f"Entropy and change of the mixture of {method.label} over a run",
                _figure(diagnosis, run),
            )
            found.append(Section(method.label, run.id, words, _table(diagnosis), panel))
    return found


def _table(found: Diagnosis) -> Table:
    fell = f"Loss fell further than {found.against}’s" if found.against else "Loss fell"
    columns = ["Natural", "Last quarter", fell]
    columns += [found.preference.capitalize()] if found.preference else []
    rows = []
    for k in np.argsort(-found.weights_K, kind="stable").tolist():
        cells = [
            Cell(f"{found.natural_K[k]:.1%}"),
            Cell(f"{found.weights_K[k]:.1%}"),
            Cell(signed(float(found.fall_K[k])) if np.isfinite(found.fall_K[k]) else ABSENT),
        ]
        if found.preference:
            value = float(found.preference_K[k])
            text = f"{value:.3g}".replace("-", "−") if np.isfinite(value) else ABSENT
            cells.append(Cell(text, value=value if np.isfinite(value) else None))
        rows.append(Row(found.names[k], "", tuple(cells)))
    return Table(tuple(columns), tuple(rows))


def _figure(found: Diagnosis, run: Run) -> go.Figure:
    tokens_T = run.trajectory.tokens_T1()[1:].astype(np.float64)
    curves = {
        "entropy over uniform’s": (tokens_T, found.entropy_T),
        "change, share of the batch": (tokens_T[1:], found.change_T),
    }
    if len(found.critic_error_T):
        highest = float(found.critic_error_T.max()) or 1.0
        late_T = tokens_T[-len(found.critic_error_T) :]
        curves[f"critic’s error, of {number(highest)}"] = (late_T, found.critic_error_T / highest)
    figure = go.Figure()
    for index, (name, (x_T, y_T)) in enumerate(curves.items()):
        figure.add_scatter(
            x=thinned(x_T, _POINTS),
            y=thinned(y_T, _POINTS),
            name=name,
            mode="lines",
            line={"color": method_colour(index), "dash": DASHES[index % len(DASHES)], "width": 2},
            hovertemplate="%{y:.3f}",
        )
    style(figure, "", height=280)
    figure.update_yaxes(range=[0, 1.05], tickformat=".1f")
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin_t=44,
    )
    return figure

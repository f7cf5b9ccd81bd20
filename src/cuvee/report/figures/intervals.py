"""The plot of all methods against the baseline: paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from cuvee.evaluation.statistics import Estimate
from cuvee.report.figures.colours import FAINT, GRID, INK, PAPER, method_colour, method_marker
from cuvee.report.figures.style import plain, short, style
from cuvee.report.summary import Summary
from cuvee.report.views import Scores

Value = Callable[[Scores], float | None]
_ROW = 38  # pixels
_SEEDS = 8  # of more, single seeds are not drawn
_MARGIN = 118  # pixels for names


def interval_figure(summary: Summary, value: Value, margin: float = 0.0) -> go.Figure | None:
    """Each method's mean difference to the baseline, with a 95 % interval and its seeds.

    The lowest is on top. A mark is filled if its interval excludes zero. Differences within ±
    `margin` count as ties; that band is shaded. None if no seed is shared with the baseline.
    """
    theirs = summary.methods[0].by_seed(value)
    rows = []
    for index, method in enumerate(summary.shown[1:], start=1):
        if (found := summary.difference(method, summary.methods[0], value)) is not None:
            ours = method.by_seed(value)
            pairs = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
            rows.append((index, method.label, found, pairs))
    if not rows:
        return None
    rows.sort(key=lambda row: row[2].mean)
    figure = go.Figure()
    for place, (index, label, found, pairs) in enumerate(rows):
        if 1 < len(pairs) <= _SEEDS:
            figure.add_scatter(
                x=pairs,
                y=[place] * len(pairs),
                name=f"{plain(label)}, seeds",
                mode="markers",
                marker={"color": FAINT, "symbol": "line-ns-open", "size": 9, "opacity": 0.6},
                hovertemplate="%{x:+.4f}",
            )
        _add_estimate(figure, place, index, label, found)
    style(figure, "", height=58 + _ROW * (len(rows) + 1))
    _add_baseline(figure, summary.baseline, len(rows), margin)
    figure.update_xaxes(title_text="difference, nats per token", tickformat=".3~g", nticks=5)
    figure.update_yaxes(
        range=[len(rows) - 0.5, -1.1],
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=[plain(short(row[1])) for row in rows],
        tickfont={"color": INK, "size": 13},
        showgrid=False,
    )
    figure.update_layout(margin_l=_MARGIN, margin_r=20)
    return figure


def _add_estimate(figure: go.Figure, place: int, index: int, label: str, found: Estimate) -> None:
    low = found.mean if found.low is None else found.low
    high = found.mean if found.high is None else found.high
    colour = method_colour(index)
    figure.add_scatter(
        x=[found.mean],
        y=[place],
        name=plain(label),
        mode="markers",
        marker={
            "color": colour if found.excludes_zero else PAPER,
            "symbol": method_marker(index),
            "size": 11,
            "line": {"color": colour, "width": 2},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - found.mean],
            "arrayminus": [found.mean - low],
            "color": colour,
            "thickness": 2,
            "width": 5,
        },
        hovertemplate="%{x:+.4f}",
    )


def _add_baseline(figure: go.Figure, baseline: str, rows: int, margin: float) -> None:
    if margin:
        figure.add_vrect(
            x0=-margin, x1=margin, fillcolor=GRID, opacity=0.6, line_width=0, layer="below"
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1.2})
    figure.add_annotation(
        x=0, y=-0.8, text=plain(short(baseline)), showarrow=False, bgcolor=PAPER, borderpad=2
    )

"""What all figures share: layout, labels at the ends of lines, and thinning of long curves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import one_line
from cuvee.report.figures.colours import FAINT, GRID, INK, PAPER

LABELS = 104
"""Pixels to the right of a plot with labels at the ends of its lines."""
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_LINE = 13  # pixels between two labels
_LONGEST = 15  # characters of a label


@dataclass(frozen=True)
class Label:
    """A label at the right edge of a plot, at the height `y`, with a square of `colour`."""

    y: float
    text: str
    colour: str


def plain(text: str) -> str:
    """Escape a name: Plotly interprets some HTML, and a browser characters that reverse text."""
    return html.escape(one_line(text), quote=False)


def short(text: str) -> str:
    """Cut a name to the width of a label."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def style(figure: go.Figure, y_title: str, height: int) -> None:
    """Set the common layout of all panels. The x axis counts tokens."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "color": FAINT,
        "nticks": 6,
    }
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56 if y_title else 40, "r": 14, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONTS, "size": 12, "color": INK},
        hoverlabel={"bgcolor": PAPER, "bordercolor": GRID, "font": {"color": INK}},
        hovermode="closest",
        dragmode=False,
        showlegend=False,
    )
    figure.update_xaxes(**axis, tickformat="~s", title={"text": "tokens", "standoff": 8})
    figure.update_yaxes(**axis, title={"text": y_title, "standoff": 8})


def add_labels(figure: go.Figure, labels: Sequence[Label], low: float, high: float) -> None:
    """Write `labels` beside a plot whose y axis goes from `low` to `high`, so that none overlap.

    Those that do not fit are left out, the last ones first.
    """
    layout = figure.layout
    pixels = layout.height - layout.margin.t - layout.margin.b
    gap = (high - low) * _LINE / pixels
    kept = sorted(labels[: int(pixels / _LINE)], key=lambda label: label.y)
    for label, y in zip(kept, _apart([label.y for label in kept], gap, low, high), strict=True):
        square = f'<span style="color:{label.colour}">■</span>'
        figure.add_annotation(
            x=1,
            xref="x domain",
            xanchor="left",
            xshift=3,
            y=y,
            yanchor="middle",
            showarrow=False,
            text=f"{square} {plain(short(label.text))}",
            font={"size": 11},
        )
    figure.update_layout(margin_r=LABELS)


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ascending positions near `wanted` (ascending), `gap` apart, within the bounds."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + gap if placed else low + gap / 2))
    ceiling = high - gap / 2
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def bins(count: int, most: int) -> list[int]:
    """Return the starts of at most `most` stretches of `count` intervals of nearly equal length."""
    starts = np.linspace(0, count, min(count, most) + 1)[:-1].astype(int)
    return [int(start) for start in np.unique(starts)]


def thinned(values: FloatArray, most: int) -> FloatArray:
    """Return at most `most` of the values, the first and the last among them."""
    if len(values) <= most:
        return values
    return np.asarray(values[np.linspace(0, len(values) - 1, most).round().astype(int)])

"""The plots, as Plotly figures in the light theme. Each is one panel; the page arranges them.

Panels have no titles. The page writes titles as text, so they are escaped, wrapped and available to
screen readers.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.report.colours import (
    DASHES,
    FAINT,
    GRID,
    INK,
    MARKERS,
    PAPER,
    domain_colours,
    method_colour,
)
from cuvee.report.summary import MethodView, RunView, Scores, Summary

MANY_SEEDS = 8
"""The number of seeds above which their lines become a band, so that the page stays small."""
_MANY = 16
"""The number of domains above which a stack is taller and has thinner lines."""

Value = Callable[[Scores], float | None]


def mixture_figure(summary: Summary, method: MethodView) -> go.Figure:
    """Shares of the batch by domain over tokens, as a stacked area.

    Source domains are at the bottom, target domains are hatched on top. Shares are means over the
    seeds that reached an interval. A mixture holds for one interval, so edges are steps.
    """
    domains = method.runs[0].run.trajectory.domains
    ordered = sorted(domains, key=lambda domain: domain.is_target)
    tokens_T1, weights_TK = _mean_mixture(method, [domain.name for domain in ordered])
    figure = go.Figure()
    add_stack(figure, tokens_T1, weights_TK, ordered, "%{y:.1%} at %{x:.3s} tokens")
    style(figure, "share of the batch", height=360 if len(domains) > _MANY else 260)
    figure.update_xaxes(range=[0, summary.longest])
    figure.update_yaxes(range=[0, 1], tickformat=".0%", showgrid=False)
    return figure


def add_stack(
    figure: go.Figure,
    x_T1: FloatArray,
    weights_TK: FloatArray,
    ordered: Sequence[Domain],
    hover: str,
    **place: int,
) -> None:
    """Add a path of mixtures (T, K) as a stacked area in the order of `ordered`.

    `x_T1` are the edges of its T intervals.
    """
    colours = domain_colours(ordered)
    many = len(ordered) > _MANY
    for k, domain in enumerate(ordered):
        first_target = domain.is_target and (k == 0 or not ordered[k - 1].is_target)
        figure.add_scatter(
            x=x_T1,
            y=np.append(weights_TK[:, k], weights_TK[-1:, k]),  # the last mixture holds to the end
            name=plain(domain.name),
            meta=domain.name,
            mode="lines",
            stackgroup="mixture",
            line={"shape": "hv", "width": 0.2 if many else 0.6, "color": PAPER},
            fillcolor=colours[domain.name],
            fillpattern={
                "shape": "/",
                "size": 6 if many else 8,
                "solidity": 0.12,
                "fgcolor": PAPER,
                "bgcolor": colours[domain.name],
            }
            if domain.is_target
            else None,
            hovertemplate=hover,
            showlegend=False,
            **place,
        )
        if first_target and k:
            below_T = weights_TK[:, :k].sum(axis=1)
            edge = {"shape": "hv", "width": 2, "color": INK}
            y = np.append(below_T, below_T[-1:])
            figure.add_scatter(
                x=x_T1, y=y, mode="lines", line=edge, hoverinfo="skip", showlegend=False, **place
            )


def curve_figure(summary: Summary, value: Value, *, height: int = 300) -> go.Figure:
    """One summary loss over tokens: a line per seed, or a band of many, and a thick line for their mean."""

    def at(view: RunView) -> FloatArray:
        return np.array([value(scores) for scores in view.scores_P], dtype=np.float64)

    return _lines(summary, at, height, "nats per token")


def domain_figure(summary: Summary, k: int) -> go.Figure:
    """A small figure of the validation loss of domain number `k` of the summary over tokens."""
    return _lines(summary, lambda view: view.loss_PK[:, k], 150, "")


def trade_figure(summary: Summary) -> go.Figure:
    """Target loss against source loss: each run's path from its start to its last validation.

    Left is better on the source domains, down is better on the target domains.
    """
    figure = go.Figure()
    for index, method in enumerate(summary.methods):
        alone = len(method.scored) == 1
        for view in method.scored:
            path = [(scores.source, scores.target) for scores in view.scores_P]
            figure.add_scatter(
                x=[source for source, _ in path],
                y=[target for _, target in path],
                name=plain(method.label),
                mode="lines+markers",
                line={
                    "color": method_colour(index),
                    "width": 1.6 if alone else 0.7,
                    "dash": DASHES[index % len(DASHES)],
                },
                marker={
                    "color": method_colour(index),
                    "symbol": MARKERS[index % len(MARKERS)],
                    "size": [0] * (len(path) - 1) + [11],
                },
                hovertemplate="source %{x:.4f}, target %{y:.4f}",
                showlegend=False,
            )
    style(figure, "target mean, nats per token", height=360)
    figure.update_xaxes(
        title_text="source mean, nats per token", tickformat=None, rangemode="normal"
    )
    return figure


def plain(text: str) -> str:
    """Escape a name, because Plotly interprets some HTML in labels."""
    return html.escape(text, quote=False)


def _lines(
    summary: Summary, at: Callable[[RunView], FloatArray], height: int, title: str
) -> go.Figure:
    figure = go.Figure()
    for index, method in enumerate(summary.methods):
        colour = method_colour(index)
        dash = DASHES[index % len(DASHES)]
        views = [view for view in method.runs if len(view.tokens_P)]
        if len(views) > MANY_SEEDS:
            _add_band(
                figure, [(view.tokens_P.astype(np.float64), at(view)) for view in views], colour
            )
        elif len(views) > 1:
            for view in views:
                line = {"color": colour, "width": 0.8}
                hidden = {"opacity": 0.35, "hoverinfo": "skip", "showlegend": False}
                figure.add_scatter(x=view.tokens_P, y=at(view), mode="lines", line=line, **hidden)
        if views:
            shared = min(len(view.tokens_P) for view in views)
            mean_P = np.mean([at(view)[:shared] for view in views], axis=0)
            figure.add_scatter(
                x=views[0].tokens_P[:shared],
                y=mean_P,
                name=plain(method.label),
                mode="lines+markers" if shared == 1 else "lines",
                line={"color": colour, "width": 2, "dash": dash},
                marker={"size": 6},
                hovertemplate="%{y:.4f}",
                showlegend=False,
            )
    style(figure, title, height)
    figure.update_xaxes(range=[0, summary.longest * 1.01])
    if not title:
        figure.update_xaxes(title_text=None, nticks=4, tickangle=0)
        figure.update_layout(margin_b=24)
    return figure


def _add_band(
    figure: go.Figure, curves: Sequence[tuple[FloatArray, FloatArray]], colour: str
) -> None:
    """Add the range of many curves, as far as all of them reach, in one trace."""
    shared = min(len(x_P) for x_P, _ in curves)
    x_P = curves[0][0][:shared]
    y_SP = np.array([y_P[:shared] for _, y_P in curves])
    figure.add_scatter(
        x=np.append(x_P, x_P[::-1]),
        y=np.append(y_SP.max(axis=0), y_SP.min(axis=0)[::-1]),
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        hoverinfo="skip",
        showlegend=False,
    )


def style(figure: go.Figure, y_title: str, height: int) -> None:
    """Set the common layout of all panels. The x axis counts tokens."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "color": FAINT,
        "title_standoff": 8,
    }
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56 if y_title else 40, "r": 14, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 12,
            "color": INK,
        },
        hoverlabel={"bgcolor": PAPER, "bordercolor": GRID, "font": {"color": INK}},
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(**axis, tickformat="~s", title_text="tokens", nticks=6)
    figure.update_yaxes(**axis, title_text=y_title, nticks=6)


def _mean_mixture(method: MethodView, names: list[str]) -> tuple[FloatArray, FloatArray]:
    """Return ((T + 1,) tokens, (T, K) weights), means over runs of the intervals all have."""
    ran = [view for view in method.runs if len(view.run.trajectory)]
    shared = min(len(view.run.trajectory) for view in ran)
    stacked = [_weights(view, names)[:shared] for view in ran]
    return ran[0].tokens_T1[: shared + 1].astype(np.float64), np.mean(stacked, axis=0)


def _weights(view: RunView, names: list[str]) -> FloatArray:
    shares: list[Mapping[str, float]] = [
        mixture.as_dict() for mixture in view.run.trajectory.mixtures
    ]
    rows = [[share.get(name, 0.0) for name in names] for share in shares]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))

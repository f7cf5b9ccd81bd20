"""Plots of losses: over tokens, by domain, and of target domains against source domains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from cuvee.core.arrays import FloatArray
from cuvee.report.figures.colours import method_colour, method_dash, method_marker
from cuvee.report.figures.style import plain, style, thinned
from cuvee.report.summary import MANY_SEEDS, Summary
from cuvee.report.views import MethodView, RunView, Scores

_POINTS, _FEW_POINTS = 40, 20
"""The most points of a curve, in large figures and in the small ones of domains."""

Value = Callable[[Scores], float | None]


def curve_figure(summary: Summary, value: Value, *, height: int = 300) -> go.Figure:
    """One summary loss over tokens: a line per seed, or a band of many, and a thick mean line."""
    figure = go.Figure()
    for index, method in enumerate(summary.shown):
        views = [view for view in method.runs if len(view.tokens_P)]
        curves = [_curve(view, value) for view in views]
        if len(views) > MANY_SEEDS:
            _add_band(figure, curves, method_colour(index))
        elif len(views) > 1:
            for view, (tokens_P, loss_P) in zip(views, curves, strict=True):
                figure.add_scatter(
                    x=thinned(tokens_P, _POINTS),
                    y=thinned(loss_P, _POINTS),
                    name=f"{plain(method.label)}, seed {view.run.seed}",
                    mode="lines",
                    line={"color": method_colour(index), "width": 0.8},
                    opacity=0.35,
                    hoverinfo="skip",
                )
        if views:
            _add_mean(figure, method, index, curves, most=_POINTS)
    style(figure, "nats per token", height)
    figure.update_xaxes(range=[0, summary.longest * 1.01])
    return figure


def domain_figure(summary: Summary, k: int) -> go.Figure:
    """The mean validation loss over seeds on domain number `k` over tokens: a small figure."""
    figure = go.Figure()
    for index, method in enumerate(summary.shown):
        views = [view for view in method.runs if len(view.tokens_P)]
        if views:
            curves = [(view.tokens_P.astype(np.float64), view.loss_PK[:, k]) for view in views]
            _add_mean(figure, method, index, curves, most=_FEW_POINTS)
    style(figure, "", height=150)
    figure.update_xaxes(range=[0, summary.longest * 1.01], title_text=None, nticks=4, tickangle=0)
    figure.update_layout(margin_b=24)
    return figure


def trade_figure(summary: Summary) -> go.Figure:
    """Target loss against source loss: each method's mean path, and where each run ended.

    Left is better on the source domains, down is better on the target domains.
    """
    figure = go.Figure()
    for index, method in enumerate(summary.shown):
        views = [view for view in method.scored if view.scores_P]
        if not views:
            continue
        paths = [
            np.array([(scores.source, scores.target) for scores in view.scores_P]) for view in views
        ]
        shared = min(map(len, paths))
        mean_P2 = thinned(np.mean([path[:shared] for path in paths], axis=0), _POINTS)
        ends_S2 = np.array([path[-1] for path in paths])
        look = {"color": method_colour(index)}
        hover = "source %{x:.4f}, target %{y:.4f}"
        figure.add_scatter(
            x=mean_P2[:, 0],
            y=mean_P2[:, 1],
            name=plain(method.label),
            mode="lines",
            line={**look, "width": 1.6, "dash": method_dash(index)},
            hovertemplate=hover,
        )
        figure.add_scatter(
            x=ends_S2[:, 0],
            y=ends_S2[:, 1],
            name=f"{plain(method.label)}, ends",
            mode="markers",
            marker={**look, "symbol": method_marker(index), "size": 10, "opacity": 0.85},
            hovertemplate=hover,
        )
    style(figure, "target mean, nats per token", height=360)
    figure.update_xaxes(
        title_text="source mean, nats per token", tickformat=None, rangemode="normal"
    )
    return figure


def _curve(view: RunView, value: Value) -> tuple[FloatArray, FloatArray]:
    losses_P = np.array([value(scores) for scores in view.scores_P], dtype=np.float64)
    return view.tokens_P.astype(np.float64), losses_P


def _add_mean(
    figure: go.Figure,
    method: MethodView,
    index: int,
    curves: Sequence[tuple[FloatArray, FloatArray]],
    most: int,
) -> None:
    """Add the mean of the curves, as far as all of them reach, with at most `most` points."""
    shared = min(len(x_P) for x_P, _ in curves)
    mean_P = np.mean([y_P[:shared] for _, y_P in curves], axis=0)
    figure.add_scatter(
        x=thinned(curves[0][0][:shared], most),
        y=thinned(mean_P, most),
        name=plain(method.label),
        mode="lines+markers" if shared == 1 else "lines",
        line={"color": method_colour(index), "width": 2, "dash": method_dash(index)},
        hovertemplate="%{y:.4f}",
    )


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
    )

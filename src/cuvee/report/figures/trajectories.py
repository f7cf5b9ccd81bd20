"""A figure of collections of trajectories: target shares over progress, and some whole paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Trajectory
from cuvee.report.figures.colours import FAINT, INK
from cuvee.report.figures.mixtures import add_stack
from cuvee.report.figures.style import plain, style

_LINES = 80  # more lines cannot be distinguished


def trajectories_figure(
    collections: Mapping[str, Sequence[Trajectory]], stacks: int = 3
) -> go.Figure:
    """A row per collection: its target shares over progress, then its first `stacks` trajectories.

    Target shares are thin lines with their median in bold. Trajectories are stacked areas with
    source domains at the bottom and target domains hatched on top. Raises `ConfigError` for an
    empty collection.
    """
    if not collections or not all(collections.values()):
        raise ConfigError("there are no trajectories to draw")
    columns = 1 + min(stacks, max(map(len, collections.values())))
    numbers = [*(f", no. {number}" for number in range(columns - 1))]
    titles = [
        plain(f"{label}{ending}" if label else ending.lstrip(":, "))
        for label in collections
        for ending in (": target share", *numbers)
    ]
    figure = make_subplots(
        rows=len(collections),
        cols=columns,
        subplot_titles=titles,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.12 / len(collections),
    )
    for row, made in enumerate(collections.values(), start=1):
        _add_shares(figure, made, row)
        for column, trajectory in enumerate(made[:stacks], start=2):
            ordered = sorted(trajectory.domains, key=lambda domain: domain.is_target)
            order_K = [trajectory.names.index(domain.name) for domain in ordered]
            weights_TK = trajectory.weights_TK()[:, order_K]
            add_stack(
                figure,
                _edges(trajectory),
                weights_TK,
                ordered,
                "%{y:.1%} at %{x:.0%}",
                row=row,
                col=column,
            )
    style(figure, "", height=60 + 240 * len(collections))
    figure.update_layout(margin_t=40)
    figure.update_annotations(font_size=12)
    figure.update_xaxes(tickformat=".0%", title_text=None, range=[0, 1])
    figure.update_xaxes(title_text="progress", row=len(collections))
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    return figure


def _add_shares(figure: go.Figure, made: Sequence[Trajectory], row: int) -> None:
    shares = [
        trajectory.weights_TK()[:, [domain.is_target for domain in trajectory.domains]].sum(axis=1)
        for trajectory in made
    ]
    lines = [
        (trajectory, share_T, FAINT, 0.5)
        for trajectory, share_T in zip(made[:_LINES], shares, strict=False)
    ]
    if len({len(share_T) for share_T in shares}) == 1:
        lines.append((made[0], np.median(shares, axis=0), INK, 2.5))
    for trajectory, share_T, colour, width in lines:
        figure.add_scatter(
            x=_edges(trajectory),
            y=np.append(share_T, share_T[-1:]),
            mode="lines",
            line={"color": colour, "width": width, "shape": "hv"},
            hovertemplate="%{y:.1%} at %{x:.0%}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )


def _edges(trajectory: Trajectory) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(T + 1,) progress at the edges of the intervals."""
    return np.array([signals.progress for signals in trajectory.signals])

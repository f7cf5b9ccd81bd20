"""Plots of mixtures over time: shares of the batch, and how often each domain was read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, natural_K
from cuvee.report.figures.colours import INK, OTHER, PAPER, domain_colours, focused_colours
from cuvee.report.figures.style import Label, add_labels, bins, plain, style, thinned
from cuvee.report.summary import Summary
from cuvee.report.views import MethodView, RunView

_MANY = 16
"""The number of domains above which a stack is taller and has thinner lines."""
_INTERVALS = 40
"""The most mixtures that are drawn. More are averaged over stretches of equal length."""
_POINTS = 24  # of a line of epochs
TAKEN = "not decided by its policy"
"""The name of the marks at intervals that a fallback, an operator or the like decided."""
_LABELLED = 0.015  # the smallest share at the end that gets a label


def mixture_figure(summary: Summary, method: MethodView) -> go.Figure:
    """Shares of the batch by domain over tokens, as a stacked area beside the natural shares.

    Source domains are at the bottom, target domains are hatched on top. Shares are means over the
    seeds that reached an interval. A mixture holds for one interval, so edges are steps.
    """
    domains = method.runs[0].run.trajectory.domains
    ordered = stacked_order(domains, summary.top)
    colours = focused_colours(domains, summary.top)
    tokens_T1, weights_TK = _mean_mixture(method, [domain.name for domain in ordered])
    tokens_T1, weights_TK = _binned(tokens_T1, weights_TK)
    figure = go.Figure()
    _add_natural(figure, ordered, colours)
    add_stack(figure, tokens_T1, weights_TK, ordered, "%{y:.1%} at %{x:.3s} tokens", colours)
    style(figure, "share of the batch", height=360 if len(domains) > _MANY else 280)
    figure.update_xaxes(range=[0, summary.longest], domain=[0.075, 1])
    figure.update_yaxes(range=[0, 1], tickformat=".0%", showgrid=False, anchor="free", position=0)
    figure.update_layout(
        barmode="stack",
        bargap=0,
        xaxis2={"domain": [0.01, 0.055], "anchor": "y", "showticklabels": False},
        meta={"natural": dict(zip(_names(ordered), natural_K(ordered).tolist(), strict=True))},
    )
    _add_taken(figure, method)
    add_labels(figure, _share_labels(ordered, weights_TK[-1], summary, colours), 0, 1)
    return figure


def epochs_figure(summary: Summary, method: MethodView) -> go.Figure:
    """How often each domain was read over tokens: its tokens so far over those available."""
    domains = method.runs[0].run.trajectory.domains
    colours = focused_colours(domains, summary.top)
    tokens_T1, epochs_TK = _epochs(method, domains)
    tokens_T1, epochs_TK = thinned(tokens_T1, _POINTS), thinned(epochs_TK, _POINTS)
    figure = go.Figure()
    for k, domain in sorted(enumerate(domains), key=lambda pair: pair[1].name in summary.top):
        figure.add_scatter(
            x=tokens_T1,
            y=epochs_TK[:, k],
            name=plain(domain.name),
            meta=domain.name,
            mode="lines",
            line={
                "color": colours[domain.name],
                "width": 2 if domain.name in summary.top else 1,
                "dash": "dash" if domain.is_target else "solid",
            },
            hovertemplate="%{y:.2f} times after %{x:.3s} tokens",
        )
    style(figure, "times read", height=360 if len(domains) > _MANY else 280)
    top = max(1.05, 1.08 * float(epochs_TK[-1].max(initial=0.0)))
    figure.update_xaxes(range=[0, summary.longest])
    figure.update_yaxes(range=[0, top], tickformat=None)
    figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dot"})
    most = sorted(range(len(domains)), key=lambda k: -epochs_TK[-1, k])
    named = [k for k in most if domains[k].name in summary.top or k in most[:4]]
    labels = [Label(float(epochs_TK[-1, k]), *_named(domains[k], colours)) for k in named]
    add_labels(figure, labels, 0, top)
    return figure


def add_stack(
    figure: go.Figure,
    x_T1: FloatArray,
    weights_TK: FloatArray,
    ordered: Sequence[Domain],
    hover: str,
    colours: Mapping[str, str] | None = None,
    **place: int,
) -> None:
    """Add a path of mixtures (T, K) as a stacked area in the order of `ordered`.

    `x_T1` are the edges of its T intervals.
    """
    colours = colours or domain_colours(ordered)
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
            fillpattern=_hatching(domain, colours, 6 if many else 8),
            hovertemplate=hover,
            **place,
        )
        if first_target and k:
            below_T = weights_TK[:, :k].sum(axis=1)
            edge = {"shape": "hv", "width": 2, "color": INK}
            y = np.append(below_T, below_T[-1:])
            figure.add_scatter(x=x_T1, y=y, mode="lines", line=edge, hoverinfo="skip", **place)


def stacked_order(domains: Sequence[Domain], top: Collection[str]) -> list[Domain]:
    """Return source domains first, then target domains; those of `top` next to the edge."""

    def place(domain: Domain) -> tuple[bool, bool]:
        return domain.is_target, (domain.name in top) != domain.is_target

    return sorted(domains, key=place)


def _add_taken(figure: go.Figure, method: MethodView) -> None:
    """Mark the intervals of any run that something else than the method's policy decided."""
    x = sorted(
        {
            float(view.tokens_T1[t : t + 2].mean())
            for view in _begun(method)
            for t in (view.steering.taken if view.steering else ())
            if t < len(view.run.trajectory)
        }
    )
    if x:
        figure.add_scatter(
            x=thinned(np.array(x), _INTERVALS),
            y=[1.0] * min(len(x), _INTERVALS),
            name=TAKEN,
            mode="markers",
            marker={"symbol": "triangle-down", "size": 9, "color": INK, "line_width": 0},
            cliponaxis=False,
            hovertemplate="%{x:.3s} tokens",
        )


def _add_natural(figure: go.Figure, ordered: Sequence[Domain], colours: Mapping[str, str]) -> None:
    for domain, share in zip(ordered, natural_K(ordered).tolist(), strict=True):
        figure.add_bar(
            x=["natural"],
            y=[share],
            xaxis="x2",
            name=plain(domain.name),
            meta=domain.name,
            marker={
                "color": colours[domain.name],
                "line": {"width": 0},
                "pattern": _hatching(domain, colours, 6),
            },
            hovertemplate="natural share %{y:.1%}",
        )


def _hatching(domain: Domain, colours: Mapping[str, str], size: int) -> dict[str, object] | None:
    if not domain.is_target:
        return None
    look = {"fgcolor": PAPER, "bgcolor": colours[domain.name]}
    return {"shape": "/", "size": size, "solidity": 0.12, **look}


def _share_labels(
    ordered: Sequence[Domain], end_K: FloatArray, summary: Summary, colours: Mapping[str, str]
) -> list[Label]:
    """Labels of the domains with a fair share at the end, and of the others of each role."""
    middle_K = np.cumsum(end_K) - end_K / 2
    top_K = np.array([domain.name in summary.top for domain in ordered])
    target_K = np.array([domain.is_target for domain in ordered])
    labels = []
    for role_K in (~target_K, target_K):
        rest_K = role_K & ~top_K
        if rest_K.any():
            middle = float(np.average(middle_K[rest_K], weights=end_K[rest_K] + 1e-12))
            labels.append(Label(middle, f"{rest_K.sum()} others", OTHER))
    largest = [int(k) for k in np.argsort(-end_K, kind="stable")]
    return labels + [
        Label(float(middle_K[k]), *_named(ordered[k], colours))
        for k in largest
        if top_K[k] and end_K[k] >= _LABELLED
    ]


def _named(domain: Domain, colours: Mapping[str, str]) -> tuple[str, str]:
    return domain.name, colours[domain.name]


def _names(domains: Sequence[Domain]) -> list[str]:
    return [domain.name for domain in domains]


def _binned(tokens_T1: FloatArray, weights_TK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Average the mixtures over stretches of intervals, if there are more than are drawn."""
    starts = bins(len(weights_TK), _INTERVALS)
    if len(starts) == len(weights_TK):
        return tokens_T1, weights_TK
    lengths_T = np.diff([*starts, len(weights_TK)])
    means_TK = np.add.reduceat(weights_TK, starts, axis=0) / lengths_T[:, None]
    return np.append(tokens_T1[starts], tokens_T1[-1]), means_TK


def _mean_mixture(method: MethodView, names: list[str]) -> tuple[FloatArray, FloatArray]:
    """Return ((T + 1,) tokens, (T, K) weights), means over runs of the intervals all have."""
    ran = _begun(method)
    shared = min(len(view.run.trajectory) for view in ran)
    stacked = [view.weights_TK(names)[:shared] for view in ran]
    return ran[0].tokens_T1[: shared + 1].astype(np.float64), np.mean(stacked, axis=0)


def _epochs(method: MethodView, domains: Sequence[Domain]) -> tuple[FloatArray, FloatArray]:
    """Return ((T + 1,) tokens, (T + 1, K) epochs so far), means over runs."""
    ran = _begun(method)
    shared = min(len(view.run.trajectory) for view in ran) + 1
    sizes_K = np.array([max(domain.tokens, 1) for domain in domains], dtype=np.float64)
    read_TK = np.mean([view.read_TK(_names(domains))[:shared] for view in ran], axis=0)
    return ran[0].tokens_T1[:shared].astype(np.float64), read_TK / sizes_K


def _begun(method: MethodView) -> list[RunView]:
    return [view for view in method.runs if len(view.run.trajectory)]

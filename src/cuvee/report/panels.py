"""The panels of the report: each figure with its heading and its words for screen readers."""

from __future__ import annotations

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import natural_K
from cuvee.report.document import Panel
from cuvee.report.figures.intervals import interval_figure
from cuvee.report.figures.losses import curve_figure, domain_figure, trade_figure
from cuvee.report.figures.mixtures import epochs_figure, mixture_figure
from cuvee.report.summary import Measure, Summary
from cuvee.report.tables import measures
from cuvee.report.views import MethodView
from cuvee.report.words import final_loss, interval, number, signed

_HEADINGS: dict[Measure, str] = {
    "Mean": "All domains",
    "Source": "Source domains",
    "Target": "Target domains",
    "Source/target average": "Average of source and target",
    "Objective": "Weighted by the objective",
}


def interval_panels(summary: Summary) -> list[Panel]:
    """One panel per summary loss, that by which methods are ranked first."""
    found = summary.verdicts
    panels: list[Panel] = []
    widest_last = measures(summary)[::-1]
    for name, value in sorted(widest_last, key=lambda one: one[0] != summary.ranked_by):
        first = name == summary.ranked_by
        several = any(one.difference.pairs > 1 for one in found.values())
        margin = next(iter(found.values())).margin if first and several else 0.0
        figure = interval_figure(summary, value, margin)
        if figure is not None:
            what = f"{final_loss(summary)}, {_HEADINGS[name].lower()}"
            words = f"Differences in {what}, to {summary.baseline}"
            if first:
                words += ": " + "; ".join(
                    f"{label} {signed(one.difference.mean)} ({interval(one.difference) or 'one seed'})"
                    for label, one in found.items()
                )
            place = f"plot-interval-{len(panels)}"
            panels.append(Panel(place, _HEADINGS[name], words, figure))
    return panels


def mixture_panels(summary: Summary) -> list[Panel]:
    panels = []
    for index, method in enumerate(summary.shown):
        ran = [view for view in method.runs if len(view.run.trajectory)]
        if ran:
            last = ran[0].run.trajectory.last_mixture
            assert last is not None
            top = sorted(last.as_dict().items(), key=lambda pair: -pair[1])[:3]
            shares = ", ".join(f"{name} {share:.0%}" for name, share in top)
            words = f"Mixture of {method.label} over time; at the end {shares}"
            figure = mixture_figure(summary, method)
            heading = _seeds(summary, method)
            panels.append(Panel(f"plot-mixture-{index}", heading, words, figure))
    return panels


def epochs_panels(summary: Summary) -> list[Panel]:
    panels = []
    for index, method in enumerate(summary.shown):
        if any(len(view.run.trajectory) for view in method.runs):
            figure = epochs_figure(summary, method)
            words = f"How often {method.label} has read each domain over time"
            heading = _seeds(summary, method)
            panels.append(Panel(f"plot-epochs-{index}", heading, words, figure))
    return panels


def _seeds(summary: Summary, method: MethodView) -> str:
    ran = sum(bool(len(view.run.trajectory)) for view in method.runs)
    what = "runs" if summary.levels else "seeds"
    return method.label + (f", mean of {ran} {what}" if ran > 1 else "")


def trade_panel(summary: Summary) -> Panel | None:
    if not summary.has_roles or not any(method.scored for method in summary.shown):
        return None
    return Panel(
        "plot-trade",
        "Target loss against source loss",
        "Target loss against source loss, by method",
        trade_figure(summary),
    )


def curve_panels(summary: Summary) -> list[Panel]:
    if not summary.domains:
        return []
    panels = []
    for name, value in measures(summary):
        if name == "Source/target average":
            continue
        ends = ", ".join(
            f"{method.label} {number(method.validated_mean(value))}" for method in summary.shown
        )
        heading = _HEADINGS[name]
        words = f"Validation loss over tokens, {heading.lower()}; at the end {ends}"
        panels.append(
            Panel(f"plot-loss-{name.lower()}", heading, words, curve_figure(summary, value))
        )
    return panels


def domain_panels(summary: Summary) -> list[Panel]:
    """One small panel per domain; target domains first, then those that differ most."""
    differences_K = _largest_differences(summary)
    natural = dict(
        zip((domain.name for domain in summary.domains), natural_K(summary.domains), strict=True)
    )
    order = sorted(
        range(len(summary.domains)),
        key=lambda k: (not summary.domains[k].is_target, -differences_K[k]),
    )
    panels = []
    for place, k in enumerate(order):
        domain = summary.domains[k]
        words = (
            f"Validation loss on {domain.name} over tokens, by method; "
            "the table below has the final figures"
        )
        keys = {
            "role": float(place),
            "difference": -float(differences_K[k]),
            "share": -float(natural[domain.name]),
        }
        figure = domain_figure(summary, k)
        panels.append(Panel(f"plot-domain-{k}", domain.name, words, figure, domain.is_target, keys))
    return panels


def _largest_differences(summary: Summary) -> FloatArray:
    """(K,) the largest absolute difference of a method's mean final loss to the baseline's."""
    means = [
        np.mean([view.final_K for view in method.scored if view.final_K is not None], axis=0)
        for method in summary.shown
        if any(view.final_K is not None for view in method.scored)
    ]
    if len(means) < 2:
        return np.zeros(len(summary.domains))
    return np.asarray(np.abs(np.array(means[1:]) - means[0]).max(axis=0))

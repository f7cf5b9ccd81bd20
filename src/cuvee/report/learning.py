"""The diagnostics page of a learned policy: what it does, how it was evaluated, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.files import write_atomic
from cuvee.core.trajectory import Trajectory
from cuvee.learning.coverage import Coverage, coverage
from cuvee.report.document import Panel, fill
from cuvee.report.figures.colours import DASHES, FAINT, INK, domain_colours, method_colour
from cuvee.report.figures.mixtures import add_stack
from cuvee.report.figures.style import plain, style
from cuvee.report.figures.trajectories import trajectories_figure

_MOST_RUNS = 120  # drawn in a figure
_FLAT = 0.003  # standard deviations of a return; if mixtures differ by less, nothing was learned


@dataclass(frozen=True)
class Evaluated:
    """The estimated gain over the best static mixture after some updates, with its interval."""

    update: int
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class SpaceView:
    """The diagnostics of one domain space, with T decisions, N runs and K domains.

    Values of the critic are in standard deviations of returns.
    """

    name: str
    domains: tuple[Domain, ...]
    path_TK: FloatArray
    """The policy's mixtures in a dynamics model that is fitted to the logged runs."""
    target_shares_NT: FloatArray
    """Target shares of the runs from which it was learned or on which it was evaluated."""
    best_N: FloatArray
    """1 for the runs with the highest returns, else 0."""
    values: Mapping[str, FloatArray]
    """(T,) each: the critic's values of some mixtures, by name."""
    q_std_T: FloatArray
    """How much the critic's values differ between mixtures."""
    disagreement_T: FloatArray
    """How much the twin critics disagree about these differences."""
    evaluations: Sequence[Evaluated]
    heuristics: Mapping[str, tuple[float, float, float]]
    """Mean score of the policy, of the best runs and of all runs, by heuristic."""
    verdict: Sequence[str]
    """The conclusions of the evaluation, as sentences."""

    @property
    def target_T(self) -> FloatArray:
        return np.asarray(
            self.path_TK[:, [domain.is_target for domain in self.domains]].sum(axis=1)
        )


@dataclass(frozen=True)
class LoggedSpace:
    """The logged runs of one set of domains and one length. `coverage` is None for one run."""

    domains: tuple[Domain, ...]
    trajectories: tuple[Trajectory, ...]
    coverage: Coverage | None

    @property
    def name(self) -> str:
        return f"{len(self.domains)} domains, {len(self.trajectories[0])} intervals"

    @property
    def figures(self) -> dict[str, str]:
        """Numbers on how much of the mixture space the runs cover, as rows of a table."""
        found = self.coverage
        count = len(self.trajectories)
        if found is None:
            return {"runs": str(count)}
        return {
            "runs": str(count),
            "distance between two runs (mean total variation at the same time)": (
                f"{found.distance:.3f}"
            ),
            "distance of their target shares": f"{found.target_distance:.3f}",
            "distance of their source parts": f"{found.source_distance:.3f}",
            "change from one interval to the next (mean total variation)": f"{found.change:.3f}",
            "domains that a run gives twice their natural share": f"{found.emphasised:.0%}",
            "domains that any run gives twice their natural share": f"{found.ever_emphasised:.0%}",
            "entropy of mixtures over ln K, 5 % to 95 %": "{:.2f} to {:.2f}".format(*found.entropy),
        }


def logged_spaces(trajectories: Sequence[Trajectory]) -> list[LoggedSpace]:
    """Group finished trajectories by domains and number of intervals."""
    spaces: dict[object, list[Trajectory]] = {}
    for one in trajectories:
        if len(one):
            spaces.setdefault((one.names, len(one)), []).append(one)
    return [
        LoggedSpace(found[0].domains, tuple(found), coverage(found) if len(found) > 1 else None)
        for found in spaces.values()
    ]


def alarms(view: SpaceView) -> list[str]:
    """Warnings for the reader: flat Q values, collapse to one domain, a constant policy."""
    found = []
    q_std, disagreement = float(view.q_std_T.mean()), float(view.disagreement_T.mean())
    if q_std <= max(disagreement, _FLAT):
        found.append(
            f"Flat Q: values of different mixtures differ by {q_std:.2g} standard deviations of a "
            "return, and the twin critics disagree about those differences by "
            f"{disagreement:.2g}. What was learned beyond behaviour cloning is noise: learn "
            "longer, or from more runs."
        )
    largest_T = view.path_TK.max(axis=1)
    if (largest_T > 0.9).mean() >= 0.5:
        name = view.domains[int(np.bincount(view.path_TK.argmax(axis=1)).argmax())].name
        found.append(
            f"Collapse: {name} has over 90 % of the batch in {(largest_T > 0.9).mean():.0%} of the "
            "decisions."
        )
    moved = 0.5 * np.abs(np.diff(view.path_TK, axis=0)).sum(axis=1)
    if len(moved) and moved[len(moved) // 4 :].max(initial=0.0) < 0.005:
        found.append(
            "Constant: after its first quarter the policy keeps one mixture; a static mixture "
            "would do as well."
        )
    return found


def write_diagnostics(
    views: Sequence[SpaceView],
    path: Path | str,
    title: str,
    facts: Mapping[str, str] | None = None,
    logged: Sequence[LoggedSpace] = (),
    verdict: Sequence[str] = (),
) -> Path:
    """Write the page about a policy and return its path.

    `views` are the domain spaces in which it was evaluated. `logged` are the runs from which it was
    learned. `verdict` has the conclusions about a policy without views.
    """
    sections = [(view, alarms(view), _panels(view, number)) for number, view in enumerate(views)]
    spaces = [(space, _logged_panel(space, number)) for number, space in enumerate(logged)]
    panels = [panel for *_, own in sections for panel in own.values()]
    panels += [panel for _, panel in spaces]
    page = fill(
        "learning.html",
        f"{title}: the learned policy",
        facts or {},
        panels,
        sections=sections,
        spaces=spaces,
        summary=verdict,
        legend=domain_colours,
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page)
    return target


def _logged_panel(space: LoggedSpace, number: int) -> Panel:
    return Panel(
        f"logged-{number}",
        space.name,
        f"Mixtures over progress of {len(space.trajectories)} logged runs",
        trajectories_figure({"": space.trajectories}),
    )


def _panels(view: SpaceView, number: int) -> dict[str, Panel]:
    start, end = view.target_T[0], view.target_T[-1]
    found = {
        "target": Panel(
            f"target-{number}",
            "Target share over time",
            f"Target share of the policy over a run, from {start:.0%} to {end:.0%}, against the "
            "logged runs",
            _target_figure(view),
        ),
        "domains": Panel(
            f"domains-{number}",
            "By domain",
            "Share of the batch by domain over a run",
            _domain_figure(view),
        ),
        "values": Panel(
            f"values-{number}",
            "What the critic expects",
            "Expected return of the policy’s own mixture and of others in its place, over a run",
            _value_figure(view),
        ),
        "q_std": Panel(
            f"q_std-{number}",
            "How far it tells mixtures apart",
            f"Deviation of Q over mixtures, {view.q_std_T.mean():.3g} on average, and disagreement "
            f"of the twin critics, {view.disagreement_T.mean():.3g}",
            _lines(
                view,
                {"between mixtures": view.q_std_T, "between the twins": view.disagreement_T},
                "deviation of Q",
            ),
        ),
        "heuristics": Panel(
            f"heuristics-{number}",
            "Heuristics",
            "Mean score by heuristic of the policy, the best runs and all runs; the table has the "
            "figures",
            _heuristic_figure(view),
        ),
    }
    if view.evaluations:
        words = "Estimated gain over the best static mixture by updates: " + ", ".join(
            f"{one.update}: {one.gain:.4f}" for one in view.evaluations
        )
        found["evaluations"] = Panel(
            f"evaluations-{number}",
            "Estimated gain over the best static mixture",
            words,
            _trace_figure(view),
        )
    return found


def _progress(view: SpaceView) -> FloatArray:
    return np.asarray(np.arange(len(view.path_TK)) / len(view.path_TK))


def _target_figure(view: SpaceView) -> go.Figure:
    figure = go.Figure()
    progress_T = _progress(view)
    order = np.argsort(view.best_N, kind="stable")[-_MOST_RUNS:]  # the best runs last, so on top
    for n in order:
        best = bool(view.best_N[n])
        figure.add_scatter(
            x=progress_T,
            y=view.target_shares_NT[n],
            mode="lines",
            line={
                "color": method_colour(1) if best else FAINT,
                "width": 1.1 if best else 0.6,
                "shape": "hv",
            },
            opacity=0.55 if best else 0.3,
            hoverinfo="skip",
            showlegend=False,
        )
    figure.add_scatter(
        x=progress_T,
        y=view.target_T,
        mode="lines",
        line={"color": method_colour(2), "width": 3.5, "shape": "hv"},
        hovertemplate="%{y:.1%} at %{x:.0%}",
        name="policy",
        showlegend=False,
    )
    style(figure, "target share of the batch", height=300)
    _over_progress(figure)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return figure


def _domain_figure(view: SpaceView) -> go.Figure:
    figure = go.Figure()
    order = sorted(range(len(view.domains)), key=lambda k: view.domains[k].is_target)
    edges = np.arange(len(view.path_TK) + 1) / len(view.path_TK)
    add_stack(
        figure,
        edges,
        view.path_TK[:, order],
        [view.domains[k] for k in order],
        "%{y:.1%} at %{x:.0%}",
    )
    style(figure, "share of the batch", height=300)
    _over_progress(figure)
    figure.update_yaxes(range=[0, 1], tickformat=".0%", showgrid=False)
    return figure


def _value_figure(view: SpaceView) -> go.Figure:
    own = view.values["own"]
    others = {name: values - own for name, values in view.values.items() if name != "own"}
    figure = _lines(view, others, "Q − Q of the policy’s own")
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    return figure


def _lines(view: SpaceView, curves: Mapping[str, FloatArray], title: str) -> go.Figure:
    figure = go.Figure()
    for index, (name, values_T) in enumerate(curves.items()):
        figure.add_scatter(
            x=_progress(view),
            y=values_T,
            mode="lines",
            name=plain(name),
            line={
                "color": method_colour(index + 1),
                "dash": DASHES[(index + 1) % len(DASHES)],
                "width": 2,
            },
            hovertemplate="%{y:.4f}",
        )
    style(figure, title, height=300)
    _over_progress(figure)
    figure.update_yaxes(tickformat=".3~g")
    figure.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin_t=34
    )
    return figure


def _trace_figure(view: SpaceView) -> go.Figure:
    figure = go.Figure()
    updates = [one.update for one in view.evaluations]
    figure.add_scatter(
        x=updates,
        y=[one.gain for one in view.evaluations],
        mode="lines+markers",
        line={"color": method_colour(2), "width": 2},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [one.high - one.gain for one in view.evaluations],
            "arrayminus": [one.gain - one.low for one in view.evaluations],
            "color": FAINT,
            "thickness": 1.2,
        },
        hovertemplate="%{y:.4f} after %{x} updates",
        showlegend=False,
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    style(figure, "gain in feedback", height=300)
    figure.update_xaxes(title_text="updates", tickformat=None)
    return figure


def _heuristic_figure(view: SpaceView) -> go.Figure:
    """Scores minus those of all runs, relative to the largest of the three, on a common axis."""
    figure = go.Figure()
    names = list(view.heuristics)
    for index, (label, place) in enumerate((("policy", 0), ("best runs", 1))):
        scores = [view.heuristics[name][place] - view.heuristics[name][2] for name in names]
        sizes = [max(map(abs, view.heuristics[name])) or 1.0 for name in names]
        figure.add_bar(
            y=names,
            x=[score / size for score, size in zip(scores, sizes, strict=True)],
            orientation="h",
            name=label,
            marker_color=method_colour(2 - index),
            hovertemplate="%{x:.0%}",
        )
    style(figure, "", height=300)
    figure.update_xaxes(title_text="score above all runs’, of the largest", tickformat=".0%")
    figure.update_layout(
        margin_l=130,
        margin_t=34,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        bargap=0.3,
    )
    return figure


def _over_progress(figure: go.Figure) -> None:
    figure.update_xaxes(title_text="share of the budget", tickformat=".0%", range=[0, 1])

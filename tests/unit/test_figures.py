"""Figures: what they plot, and that colours mean the same everywhere."""

from __future__ import annotations

import itertools
import json

import numpy as np
import plotly.graph_objects as go
import pytest

from cuvee.core.domain import Domain
from cuvee.evaluation.statistics import paired_difference
from cuvee.report.figures.colours import DARK, METHODS, domain_colours, focused_colours
from cuvee.report.figures.intervals import interval_figure
from cuvee.report.figures.losses import curve_figure, domain_figure, trade_figure
from cuvee.report.figures.mixtures import TAKEN, epochs_figure, mixture_figure
from cuvee.report.steering import Steering
from cuvee.report.summary import MANY_SEEDS, summarise
from cuvee.testing.runs import example_domains, example_run

WIDE = tuple(
    Domain(f"{topic}-{role}", 1_000, role=role)
    for role in ("source", "target")
    for topic in range(26)
)


def stack(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if getattr(trace, "stackgroup", None)]


def test_a_stack_is_the_mixture_and_sums_to_one() -> None:
    run = example_run("odm")
    summary = summarise([run])
    traces = stack(mixture_figure(summary, summary.methods[0]))
    shares_KT = np.array([trace.y for trace in traces])
    np.testing.assert_allclose(shares_KT.sum(axis=0), 1.0)
    np.testing.assert_array_equal(shares_KT[:, :-1].T, run.trajectory.weights_TK())
    drawn = [int(signals.tokens_K.sum()) for signals in run.trajectory.signals]
    np.testing.assert_array_equal(traces[0].x, np.cumsum(drawn))


def test_several_seeds_are_averaged_where_all_of_them_have_got() -> None:
    runs = [example_run("odm", 0), example_run("odm", 1, done=7), example_run("odm", 2, done=0)]
    summary = summarise(runs)
    traces = stack(mixture_figure(summary, summary.methods[0]))
    expected = (runs[0].trajectory.weights_TK()[:7] + runs[1].trajectory.weights_TK()) / 2
    np.testing.assert_allclose(np.array([trace.y[:-1] for trace in traces]).T, expected)


def test_target_domains_are_hatched_and_lie_on_top() -> None:
    summary = summarise([example_run("odm", domains=example_domains()[::-1])])
    traces = stack(mixture_figure(summary, summary.methods[0]))
    hatched = [bool(trace.fillpattern.shape) for trace in traces]
    assert hatched == [False] * 6 + [True] * 2


def test_many_seeds_are_a_band_of_one_trace() -> None:
    summary = summarise([example_run("natural", seed) for seed in range(MANY_SEEDS + 1)])
    figure = curve_figure(summary, lambda scores: scores.mean)
    band, mean = figure.data
    curves = [[scores.mean for scores in view.scores_P] for view in summary.runs]
    lower = np.min(curves, axis=0).tolist()
    assert list(band.y) == [*np.max(curves, axis=0).tolist(), *reversed(lower)]
    assert list(mean.y) == np.mean(curves, axis=0).tolist()


def test_curves_hold_each_seed_and_their_mean() -> None:
    summary = summarise([example_run("natural", seed) for seed in range(3)])
    thin_and_strong = curve_figure(summary, lambda scores: scores.target).data
    assert len(thin_and_strong) == 4
    np.testing.assert_allclose(
        thin_and_strong[3].y, np.mean([trace.y for trace in thin_and_strong[:3]], axis=0)
    )


def test_a_domains_curve_is_its_validation_loss() -> None:
    run = example_run("natural")
    summary = summarise([run])
    expected = [
        s.probes["valid_loss"].values[3] for s in run.trajectory.signals if "valid_loss" in s.probes
    ]
    np.testing.assert_array_equal(domain_figure(summary, 3).data[0].y, expected)


def test_the_trade_ends_at_the_final_scores() -> None:
    summary = summarise([example_run("natural")])
    trace, final = trade_figure(summary).data[0], summary.runs[0].final
    assert final is not None
    assert (trace.x[-1], trace.y[-1]) == (final.source, final.target)


def test_a_long_run_has_no_more_points_than_a_short_one() -> None:
    summary = summarise([example_run("odm", intervals=300)])
    assert len(trade_figure(summary).data[0].x) <= 40


@pytest.mark.parametrize(
    "domains", [example_domains(), example_domains(9, 0), example_domains(1, 1), WIDE]
)
def test_every_domain_has_a_colour_of_its_own(domains: tuple[Domain, ...]) -> None:
    colours = domain_colours(domains)
    assert len(set(colours.values())) == len(domains)

    def rgb(name: str) -> np.ndarray:
        return np.array([int(colours[name][i : i + 2], 16) for i in (1, 3, 5)], dtype=float)

    for group in (
        [d.name for d in domains if d.is_target],
        [d.name for d in domains if not d.is_target],
    ):
        for one, other in itertools.pairwise(group):
            assert np.linalg.norm(rgb(one) - rgb(other)) > 25, (
                f"{one} and {other} lie side by side and look alike"
            )


def test_every_colour_of_a_method_has_a_dark_counterpart() -> None:
    assert all(light in DARK for light, _ in METHODS)
    figure = json.dumps(
        json.loads(curve_figure(summarise([example_run("natural")]), lambda s: s.mean).to_json())
    )
    assert METHODS[0][0] in figure


def test_natural_shares_stand_beside_the_stack() -> None:
    domains = example_domains()
    summary = summarise([example_run("odm")])
    bars = [t for t in mixture_figure(summary, summary.methods[0]).data if t.type == "bar"]
    total = sum(domain.tokens for domain in domains)
    assert {bar.name: bar.y[0] for bar in bars} == {d.name: d.tokens / total for d in domains}


def test_epochs_are_the_tokens_read_over_those_available() -> None:
    run = example_run("odm")
    summary = summarise([run, example_run("odm", 1)])
    lines = {t.name: t.y for t in epochs_figure(summary, summary.methods[0]).data}
    read = [sum(s.tokens_K[2] for s in view.run.trajectory.signals) for view in summary.runs]
    assert lines["source-2"][0] == 0
    assert lines["source-2"][-1] == pytest.approx(np.mean(read) / run.trajectory.domains[2].tokens)


def test_the_interval_plot_shows_what_the_estimates_say() -> None:
    runs = [example_run(method, seed) for method in ("natural", "odm") for seed in range(3)]
    summary = summarise(runs)
    figure = interval_figure(summary, lambda scores: scores.mean, margin=0.01)
    assert figure is not None
    seeds, mark = figure.data
    found = paired_difference(*(m.by_seed(lambda s: s.mean) for m in summary.methods[::-1]))
    assert found is not None
    assert (mark.x[0], mark.error_x.array[0]) == (found.mean, (found.high or 0.0) - found.mean)
    assert np.mean(seeds.x) == pytest.approx(found.mean)
    assert interval_figure(summarise(runs[:3]), lambda scores: scores.mean) is None


def test_of_many_domains_few_have_colours_and_the_rest_are_grey() -> None:
    summary = summarise([example_run("odm", domains=WIDE)])
    assert len(summary.top) == 12
    colours = focused_colours(WIDE, summary.top)
    top = [colours[name] for name in summary.top]
    assert len(set(top)) == 12
    assert set(colours.values()) - set(top) <= set(DARK)


def test_of_many_methods_the_best_are_shown() -> None:
    runs = [example_run(f"m{i}") for i in range(11)] + [example_run("natural")]
    summary = summarise(runs)
    losses = [m.mean(lambda scores: scores.headline) or 0.0 for m in summary.methods[1:]]
    assert losses == sorted(losses)
    assert summary.methods[0].label == "natural"
    assert len(summary.shown) == 8


def test_intervals_that_something_else_decided_are_marked_at_the_top() -> None:
    run = example_run("odm")
    steered = {run.id: Steering(20, {"accepted": 18, "fallback": 2}, {}, (), (4, 5))}
    summary = summarise([run], steered=steered)
    figure = mixture_figure(summary, summary.methods[0])
    (marks,) = [trace for trace in figure.data if trace.name == TAKEN]
    edges = run.trajectory.tokens_T1()
    assert list(marks.x) == [(edges[t] + edges[t + 1]) / 2 for t in (4, 5)]
    plain = mixture_figure(summarise([run]), summarise([run]).methods[0])
    assert TAKEN not in [trace.name for trace in plain.data]

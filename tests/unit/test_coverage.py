"""Diversity and coverage of trajectories against values computed by hand, and their picture."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.learning.coverage import coverage
from cuvee.report.figures.trajectories import trajectories_figure

DOMAINS = (Domain("web", 600), Domain("code", 200), Domain("maths", 200, "target"))
NAMES = tuple(domain.name for domain in DOMAINS)


def path(*mixtures: tuple[float, ...], domains: tuple[Domain, ...] = DOMAINS) -> Trajectory:
    K, T = len(domains), len(mixtures)
    signals = [
        Signals(domains, t, t / max(T, 1), np.zeros(K, np.int64), Measured.absent(K))
        for t in range(T + 1)
    ]
    names = [domain.name for domain in domains]
    return Trajectory(signals, [Mixture.normalise(names, weights) for weights in mixtures])


def test_distances_at_the_same_share_of_the_run() -> None:
    still = path((0.6, 0.4, 0.0))
    turning = path((0.6, 0.4, 0.0), (0.3, 0.2, 0.5), (0.0, 0.5, 0.5), (0.0, 0.5, 0.5))
    found = coverage([still, turning])
    assert found.trajectories == 2
    assert found.distance == pytest.approx((0.0 + 0.5 + 0.6 + 0.6) / 4)
    assert found.target_distance == pytest.approx((0.0 + 0.5 + 0.5 + 0.5) / 4)
    assert found.source_distance == pytest.approx((0.0 + 0.0 + 0.6 + 0.6) / 4)
    assert found.change == pytest.approx((0.0 + (0.5 + 0.3 + 0.0) / 3) / 2)


def test_the_spread_of_the_target_share_over_time() -> None:
    rising = [
        path(*((1 - share * t / 9, 0.0, share * t / 9) for t in range(10)))
        for share in (0.0, 0.5, 1.0)
    ]
    spread = coverage(rising).target_share_Q5
    assert spread.shape == (5, 5)
    assert spread[0] == pytest.approx(np.zeros(5)), "they begin alike"
    assert spread[-1] == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9])
    assert (np.diff(spread[:, 2]) > 0).all()


def test_emphasis_and_entropy() -> None:
    # Twice the natural share is 0.4 for code and maths. For web it is 0.8, half way from 0.6 to 1.
    found = coverage([path((0.0, 0.5, 0.5)), path((0.75, 0.25, 0.0))])
    assert [found.emphasised, found.ever_emphasised] == pytest.approx([1 / 3, 2 / 3])
    assert coverage(
        [path((0.9, 0.1, 0.0)), path((0.6, 0.2, 0.2))]
    ).ever_emphasised == pytest.approx(1 / 3)
    flat = coverage([path((1, 1, 1)), path((1, 1, 1))])
    assert list(flat.entropy) == pytest.approx([1.0, 1.0])
    assert flat.distance == 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="two trajectories"):
        coverage([path((1, 0, 0))])
    with pytest.raises(ConfigError, match="an interval"):
        coverage([path((1, 0, 0)), path()])
    with pytest.raises(ConfigError, match="cannot be compared"):
        coverage([path((1, 0, 0)), path((1, 0), domains=DOMAINS[1:])])


def test_the_picture_shows_all_shares_and_a_few_whole_paths() -> None:
    many = [path((0.6, 0.4, 0.0), (0.3, 0.2, 0.5)), path((0.1, 0.1, 0.8), (0.0, 0.0, 1.0))]
    figure = trajectories_figure({"<b>sampler": many, "one": many[:1]}, stacks=2)
    shares = [
        trace
        for trace in figure.data
        if trace.stackgroup is None and len(trace.x) == 3 and trace.xaxis == "x"
    ]
    assert [list(trace.y) for trace in shares] == [
        [0.0, 0.5, 0.5],
        [0.8, 1.0, 1.0],
        [0.4, 0.75, 0.75],
    ], "and the median"
    stacked = [trace for trace in figure.data if trace.stackgroup]
    assert len(stacked) == 3 * 3, "two paths of the first collection and one of the second"
    assert figure.layout.annotations[0].text == "&lt;b&gt;sampler: target share"
    assert trajectories_figure({"": many}).layout.annotations[0].text == "target share"
    with pytest.raises(ConfigError, match="no trajectories"):
        trajectories_figure({"empty": []})

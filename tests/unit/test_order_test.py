"""The order test: arms of one exposure, directions, and the verdict on paired seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Run, Trajectory
from cuvee.policies.fixed import Scheduled
from cuvee.recipes.order_test import Direction
from cuvee.recommend.checks.order_test import (
    arms,
    direction_between,
    direction_of_plan,
    direction_of_role,
    judge,
)
from cuvee.recommend.plan import Plan, Stage

MEAN = Mixture.of({"web": 0.6, "code": 0.3, "maths": 0.1})
DOMAINS = (Domain("web", 9), Domain("code", 9), Domain("maths", 9, role="target"))


@given(st.integers(2, 31), st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_every_arm_has_the_same_exposure(intervals: int, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=3)
    direction -= direction.mean()
    for points in arms(MEAN, direction, intervals, shift).values():
        policy = Scheduled(points)
        path = [policy.at(t / intervals, MEAN.names).weights_K for t in range(intervals)]
        assert np.mean(path, axis=0) == pytest.approx(MEAN.weights_K, abs=1e-9)


def test_early_has_more_of_the_second_domain_early() -> None:
    points = arms(MEAN, direction_between(MEAN, "web", "maths"), 10)
    assert points["early"][0][1]["maths"] == pytest.approx(0.2)
    assert points["early"][-1][1]["maths"] == pytest.approx(0.0)
    assert points["late"][0][1] == points["early"][-1][1]
    half = arms(MEAN, direction_between(MEAN, "web", "maths"), 10, 0.5)
    assert half["early"][0][1]["maths"] == pytest.approx(0.15)


def test_directions_of_roles_and_plans() -> None:
    assert direction_of_role(MEAN, DOMAINS) == pytest.approx([-2 / 3, -1 / 3, 1.0])
    plan = Plan((Stage(0.0, 0.5, MEAN), Stage(0.5, 1.0, Mixture.uniform(MEAN.names))))
    assert direction_of_plan(plan) == pytest.approx(MEAN.weights_K - 1 / 3)
    with pytest.raises(ConfigError, match="one stage, and so no order"):
        direction_of_plan(Plan((Stage(0.0, 1.0, MEAN),)))
    with pytest.raises(ConfigError, match="domains of both roles"):
        direction_of_role(MEAN, (*DOMAINS[:2], Domain("maths", 9)))


@pytest.mark.parametrize(
    ("intervals", "shift", "less", "message"),
    [
        (1, 1.0, "web", "has one interval"),
        (8, 0.0, "web", "shift is 0"),
        (8, 1.0, "wbe", "did you mean 'web'"),
        (8, 1.0, "maths", "cannot move in this direction"),
    ],
)
def test_a_test_that_cannot_be_made_is_refused(
    intervals: int, shift: float, less: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        arms(MEAN, direction_between(MEAN, less, "maths"), intervals, shift)


@pytest.mark.parametrize("given_", [{}, {"role": True, "between": ("a", "b")}])
def test_one_direction_is_given(given_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give exactly one of --between"):
        Direction(**given_)


def run(label: str, seed: int, loss: float, share: float = 0.6) -> Run:
    tokens = np.rint([share * 1000, 300, (0.7 - share) * 1000]).astype(int)
    measured = Measured.all([loss, loss + 1, loss + 2])
    before = Signals(DOMAINS, 0, 0.0, np.zeros(3, int), Measured.absent(3))
    after = Signals(DOMAINS, 9, 1.0, tokens, Measured.absent(3), {"valid_loss": measured})
    return Run(label, seed, {"method": {"label": label}}, Trajectory([before, after], [MEAN]))


def test_a_steady_difference_is_claimed_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    seeds = [rng.normal(scale=0.1) for _ in range(6)]
    sure = [
        run(label, n, 3.0 + start + gain + rng.normal(scale=0.002))
        for n, start in enumerate(seeds)
        for label, gain in (("held", 0.0), ("early", 0.03), ("late", -0.03))
    ]
    verdict = judge(sure)
    assert verdict.sentences[0].startswith("Order matters: late is better. Late less early: -0.06")
    assert verdict.by_domain["maths"].excludes_zero
    assert verdict.exposure == 0.0
    noise = [
        run(label, n, 3.0 + rng.normal(scale=0.1))
        for n in range(6)
        for label in ("held", "early", "late")
    ]
    assert judge(noise).sentences[0].startswith("No effect of order is shown")


def test_unequal_exposure_and_few_seeds_are_said() -> None:
    runs = [
        run(label, n, 3.0, 0.6 if label == "held" else 0.5)
        for n in range(2)
        for label in ("held", "early", "late")
    ]
    told = " ".join(judge(runs).sentences)
    assert "exposure differs by up to 10.00%" in told
    assert "With fewer than 5 seeds" in told
    with pytest.raises(ConfigError, match="no finished run of late"):
        judge([one for one in runs if one.id != "late"])

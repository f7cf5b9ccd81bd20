"""A schedule: linear between its points, constant outside, jumps where two points meet."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.registry import METHODS
from cuvee.loop import run
from cuvee.policies.fixed import Scheduled
from cuvee.testing.policy import PolicySuite, ScriptedTrainer


class TestScheduled(PolicySuite):
    def make(self, domains: Sequence[Domain]) -> Scheduled:
        names = [domain.name for domain in domains]
        return Scheduled([(0.0, dict.fromkeys(names, 1.0)), (1.0, {names[0]: 1.0})])


DOMAINS = (Domain("web", 900), Domain("code", 100))


class _Corpus:
    domains = DOMAINS


def _path(points: object, intervals: int = 4) -> list[float]:
    policy = METHODS.get("schedule")(points=points).commit(_Corpus(), ())
    so_far = run(ScriptedTrainer(DOMAINS, intervals=intervals), policy)
    return [float(weight) for weight in so_far.weights_TK()[:, 0]]


def test_linear_between_points() -> None:
    assert _path([[0.0, {"web": 2, "code": 2}], [1.0, {"web": 1}]]) == pytest.approx(
        [0.5, 0.625, 0.75, 0.875]
    )


def test_constant_outside_the_points() -> None:
    assert _path([[0.25, {"web": 1}], [0.5, {"code": 1}]]) == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_two_points_at_one_progress_are_a_jump() -> None:
    points = [[0.0, {"web": 1}], [0.5, {"web": 1}], [0.5, {"code": 1}]]
    assert _path(points) == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_refuses_what_is_no_schedule() -> None:
    with pytest.raises(PolicyError, match="no points"):
        Scheduled([])
    with pytest.raises(PolicyError, match="sorted"):
        Scheduled([(0.5, {"web": 1}), (0.1, {"web": 1})])
    with pytest.raises(PolicyError, match="nan"):
        Scheduled([(0.0, {"web": 1}), (float("nan"), {"web": 1})])
    with pytest.raises(ConfigError, match="latin"):
        METHODS.get("schedule")(points=[[0.0, {"latin": 1}]]).commit(_Corpus(), ())

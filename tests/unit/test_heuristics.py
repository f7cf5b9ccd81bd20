"""Each heuristic of the scoring sampler against hand computations, and properties of proposals."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.policies.history import heuristics

TARGET = np.array([False, False, True])
SOURCE_SHARES = np.array([0.75, 0.25, 0.0])


def test_the_empirical_distribution_of_a_field() -> None:
    domains = (Domain("a", 300), Domain("b", 100), Domain("c", 7, "target"))
    assert heuristics.role_shares(domains, "source").tolist() == SOURCE_SHARES.tolist()
    assert heuristics.role_shares(domains, "target").tolist() == [0.0, 0.0, 1.0]
    assert heuristics.role_shares(domains[:2], "target").tolist() == [0.0, 0.0]


def test_a_field_is_tilted_within_itself() -> None:
    assert heuristics.tilted(SOURCE_SHARES, np.array([1.0, 3.0, 100.0])) == pytest.approx(
        [0.5, 0.5, 0.0]
    )
    assert heuristics.tilted(SOURCE_SHARES, np.ones(3), power=0.0) == pytest.approx(
        [0.5, 0.5, 0.0]
    ), "absent stays absent"


def test_smoothness_is_minus_the_share_that_changes_hands() -> None:
    last = np.array([0.5, 0.5, 0.0])
    candidates = np.array([[0.5, 0.5, 0.0], [0.4, 0.4, 0.2], [0.0, 0.0, 1.0]])
    assert heuristics.smoothness(candidates, last) == pytest.approx([0.0, -0.2, -1.0])


def test_target_progress_is_minus_the_distance_from_the_wanted_share() -> None:
    candidates = np.array([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert heuristics.target_progress(candidates, TARGET, 0.4) == pytest.approx([-0.1, -0.6, -0.4])


def test_the_wanted_share_rises_from_start_to_end() -> None:
    for bend in (0.3, 1.0, 3.0):
        assert heuristics.rising_share(0.1, 0.7, bend, 0.0) == 0.1
        assert heuristics.rising_share(0.1, 0.7, bend, 1.0) == pytest.approx(0.7)
    early, straight, late = (
        heuristics.rising_share(0.1, 0.7, bend, 0.5) for bend in (0.3, 1.0, 3.0)
    )
    assert early > straight == pytest.approx(0.4)
    assert straight > late


def test_source_coverage_is_the_divergence_of_the_source_part_alone() -> None:
    candidates = np.array([[0.3, 0.1, 0.6], [0.4, 0.4, 0.2], [0.1, 0.0, 0.9], [0.0, 0.0, 1.0]])
    halves = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    expected = [0.0, -halves, -np.log(1 / 0.75), -np.log(1 / 0.25)]
    assert heuristics.source_coverage(candidates, SOURCE_SHARES) == pytest.approx(expected)


def test_balance_is_entropy() -> None:
    candidates = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert heuristics.balance(candidates) == pytest.approx([0.0, np.log(2), np.log(3)])


def test_feedback_that_rose_says_go_on_and_feedback_that_fell_says_turn() -> None:
    before, last = (
        np.array([0.6, 0.4, 0.0]),
        np.array([0.5, 0.4, 0.1]),
    )  # the last move was from the first to the third
    onwards, back, aside = [0.4, 0.4, 0.2], [0.6, 0.4, 0.0], [0.4, 0.6, 0.0]
    candidates = np.array([onwards, back, aside, last])
    assert heuristics.feedback_direction(candidates, last, before, 0.02) == pytest.approx(
        [1.0, -1.0, 0.0, 0.0]
    )
    assert heuristics.feedback_direction(candidates, last, before, -3.0) == pytest.approx(
        [-1.0, 1.0, 0.0, 0.0]
    )
    assert not heuristics.feedback_direction(candidates, last, before, 0.0).any()
    assert not heuristics.feedback_direction(candidates, last, last, 1.0).any(), "there was no move"


def test_proposals_come_in_blocks_and_do_what_they_say() -> None:
    last, source, target = (
        np.array([0.5, 0.3, 0.1, 0.1]),
        np.array([0.9, 0.1, 0, 0]),
        np.array([0, 0, 0.2, 0.8]),
    )
    drawn = heuristics.proposals(np.random.default_rng(0), 500, last, source, target)
    assert drawn.shape == (2000, 4)
    assert drawn.min() >= 0
    assert drawn.sum(axis=1) == pytest.approx(np.ones(2000))
    around, towards, back, anywhere = drawn.reshape(4, 500, 4)
    assert around.mean(axis=0) == pytest.approx(0.99 * last + 0.01 / 4, abs=0.02)
    distances = 0.5 * np.abs(around - last).sum(axis=1)
    assert np.quantile(distances, 0.1) < 0.03 < 0.1 < np.quantile(distances, 0.9), (
        "small steps and large ones"
    )
    for moved, goal in ((towards, target), (back, source)):
        lengths = (moved - last)[:, 0] / (goal - last)[0]
        np.testing.assert_allclose(moved, last + lengths[:, None] * (goal - last), atol=1e-12)
        assert 0 <= lengths.min() < 0.05 < 0.45 < lengths.max() <= 0.5
    assert anywhere.mean(axis=0) == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_a_domain_without_weight_can_be_proposed_again() -> None:
    last, source, target = (
        np.array([1.0, 0.0, 0.0]),
        np.array([1.0, 0.0, 0.0]),
        np.array([0.0, 1.0, 0.0]),
    )
    around = heuristics.proposals(np.random.default_rng(0), 200, last, source, target)[:200]
    assert around[:, 2].max() > 0.01

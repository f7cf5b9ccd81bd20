"""Paired comparison: what the seed does to both cancels, and nothing is claimed from one pair."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee.evaluation.statistics import (
    bits_per_byte,
    bootstrap_mean,
    paired_difference,
    steps_to_reach,
    variance_shares,
)


def test_a_shared_seed_effect_cancels() -> None:
    seed_effect = np.random.default_rng(0).normal(0, 1, 8)
    theirs = dict(enumerate(seed_effect))
    ours = {seed: value - 0.01 for seed, value in theirs.items()}
    estimate = paired_difference(ours, theirs)
    assert estimate is not None
    assert estimate.mean == pytest.approx(-0.01)
    assert estimate.low == pytest.approx(-0.01)
    assert estimate.excludes_zero


def test_only_seeds_that_both_have_count() -> None:
    estimate = paired_difference({0: 1.0, 1: 2.0, 5: 99.0}, {0: 0.5, 1: 1.5, 7: -99.0})
    assert estimate is not None
    assert (estimate.mean, estimate.pairs) == (0.5, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_claims_nothing() -> None:
    estimate = paired_difference({3: 1.0}, {3: 2.0})
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high, estimate.excludes_zero) == (
        -1.0,
        None,
        None,
        False,
    )


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    estimates = [bootstrap_mean(generator.normal(0.3, 1.0, 20), resamples=500) for _ in range(300)]
    covered = np.mean(
        [e.low <= 0.3 <= e.high for e in estimates if e.low is not None and e.high is not None]
    )
    assert 0.88 <= covered <= 0.98


def test_the_interval_is_the_same_every_time() -> None:
    assert bootstrap_mean([1.0, 2.0, 4.0]) == bootstrap_mean([1.0, 2.0, 4.0])


def test_steps_to_reach_is_linear_between_measurements() -> None:
    steps, losses = [0, 100, 200, 300], [8.0, 6.0, 5.0, 4.8]
    assert steps_to_reach(steps, losses, 5.5) == pytest.approx(150)
    assert steps_to_reach(steps, losses, 5.0) == pytest.approx(200)
    assert steps_to_reach(steps, losses, 9.0) == 0
    assert steps_to_reach(steps, losses, 4.7) is None


def test_a_curve_that_rises_again_counts_from_its_first_arrival() -> None:
    assert steps_to_reach([0, 10, 20, 30], [5.0, 3.0, 4.0, 2.0], 3.5) == pytest.approx(7.5)


def test_bits_per_byte() -> None:
    assert bits_per_byte(np.log(2.0) * 8, 4.0) == pytest.approx(2.0)


def test_the_variance_of_crossed_seeds_is_divided_among_its_parts() -> None:
    rng = np.random.default_rng(0)
    weights, order, draws = rng.normal(0, 2, 20), rng.normal(0, 1, 20), np.zeros(20)
    values: dict[tuple[int, ...], float] = {
        (i, j, k): weights[i] + order[j] + draws[k] + rng.normal(0, 0.5)
        for i in range(20)
        for j in range(20)
        for k in range(20)
    }
    found = variance_shares(values)
    assert found is not None
    shares, deviation = found
    known = np.array([weights.var(ddof=1), order.var(ddof=1), 0.0, 0.25])
    assert shares == pytest.approx(known / known.sum(), abs=0.01)
    assert deviation == pytest.approx(np.sqrt(known.sum()), rel=0.01)


def test_an_incomplete_design_has_no_shares() -> None:
    assert variance_shares({(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0}) is None
    assert variance_shares({(0,): 1.0, (1,): 2.0}) is None
    assert variance_shares({(0, 0): 1.0, (0, 1): 2.0}) is None


def crossed(rng: np.random.Generator, size: int = 4) -> tuple[list[float], list[tuple[int, int]]]:
    """Values of a crossed design of mean 0.3 whose first part carries most of the variance."""
    first, second = rng.normal(0, 1.0, size), rng.normal(0, 0.2, size)
    levels = [(a, b) for a in range(size) for b in range(size)]
    return [0.3 + first[a] + second[b] + rng.normal(0, 0.2) for a, b in levels], levels


def test_intervals_of_crossed_seeds_are_not_as_narrow_as_those_of_independent_ones() -> None:
    rng = np.random.default_rng(0)
    plain, whole = 0, 0
    for _ in range(200):
        values, levels = crossed(rng)
        naive = bootstrap_mean(values, resamples=500)
        found = bootstrap_mean(values, resamples=500, levels=levels)
        assert found.mean == pytest.approx(naive.mean)
        plain += (naive.low or 0) <= 0.3 <= (naive.high or 0)
        whole += (found.low or 0) <= 0.3 <= (found.high or 0)
    assert plain / 200 < 0.7
    assert whole / 200 > 0.75, "that of four independent seeds"


def test_one_crossed_part_is_an_ordinary_bootstrap() -> None:
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    found = bootstrap_mean(values, levels=[(seed,) for seed in range(5)])
    plain = bootstrap_mean(values)
    assert found.low == pytest.approx(plain.low, abs=0.1)
    assert found.high == pytest.approx(plain.high, abs=0.1)

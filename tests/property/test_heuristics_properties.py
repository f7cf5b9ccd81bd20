"""Properties of the heuristics and of the scoring sampler for any mixtures and domains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.history import heuristics
from cuvee.policies.history.scoring_sampler import ScoringSampler

SEEDS = st.integers(0, 2**31)


def drawn(rng: np.random.Generator, rows: int, K: int) -> FloatArray:
    """Mixtures with some weights of exactly 0."""
    weights = rng.dirichlet(np.full(K, 0.5), size=rows) * (rng.uniform(size=(rows, K)) < 0.8)
    weights[weights.sum(axis=1) == 0, 0] = 1.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@given(SEEDS, st.integers(2, 60))
def test_heuristics_lie_in_their_ranges_and_do_not_heed_the_order_of_domains(
    seed: int, K: int
) -> None:
    rng = np.random.default_rng(seed)
    candidates, (last, before) = drawn(rng, 9, K), drawn(rng, 2, K)
    target = np.arange(K) >= K // 2 + K % 2
    source = np.where(target, 0.0, rng.dirichlet(np.ones(K)) + 1e-3)
    source /= source.sum()

    def scores(order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[FloatArray]:
        moved, a, b = candidates[:, order], last[order], before[order]
        return [
            heuristics.smoothness(moved, a),
            heuristics.target_progress(moved, target[order], 0.3),
            heuristics.source_coverage(moved, source[order]),
            heuristics.balance(moved),
            heuristics.feedback_direction(moved, a, b, 0.1),
        ]

    found = scores(np.arange(K))
    ranges = [(-1, 0), (-1, 0), (np.log(source[source > 0].min()), 0), (0, np.log(K)), (-1, 1)]
    for score, (low, high) in zip(found, ranges, strict=True):
        assert score.shape == (9,)
        assert low - 1e-9 <= score.min()
        assert score.max() <= high + 1e-9
    np.testing.assert_allclose(scores(rng.permutation(K)), found, atol=1e-9)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 30), st.integers(1, 30), st.floats(0.0, 1.0))
def test_the_sampler_answers_any_history(
    seed: int, sources: int, targets: int, progress: float
) -> None:
    rng = np.random.default_rng(seed)
    domains = tuple(
        Domain(f"d{k}", int(rng.integers(1, 10**9)), "source" if k < sources else "target")
        for k in range(sources + targets)
    )
    names = [domain.name for domain in domains]
    nothing = np.zeros(len(domains), np.int64)

    def moment(step: int, done: float) -> Signals:
        evaluation = Measured(rng.normal(-3.0, 1.0, 2), rng.uniform(size=2) < 0.8)
        return Signals(
            domains, step, done, nothing, Measured.absent(len(domains)), {"evaluation": evaluation}
        )

    so_far = Trajectory.start(moment(0, 0.0))
    for step, weights in enumerate(drawn(rng, int(rng.integers(0, 4)), len(domains))):
        so_far = so_far.append(Mixture.normalise(names, weights), moment(step + 1, progress))
    sampler = ScoringSampler(seed, 3)
    mixture = sampler.mixture(so_far)
    assert mixture.names == tuple(names)
    assert mixture == ScoringSampler(seed, 3).mixture(so_far)
    assert ScoringSampler(seed, 4).character != sampler.character
    assert sum(sampler.learn(so_far)["weights"].values()) == pytest.approx(1.0)

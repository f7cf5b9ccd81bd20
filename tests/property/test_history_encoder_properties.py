"""The history policy's features: bounded, and the same whether encoded step by step or at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.agents.base import Observation
from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.encoder import (
    HistoryEncoder,
    encode_trajectory,
)
from cuvee.policies.history.features import HISTORY_FEATURES, HISTORY_GLOBALS

EXTREMES = np.array([0.0, 1e-300, 1e-6, 1.0, 12.0, 1e6, 1e300])


def domain(name: str, rng: np.random.Generator, target: bool) -> Domain:
    return Domain(name, int(10 ** rng.uniform(0, 12)), "target" if target else "source")


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Domains without tokens or loss, missing or invalid evaluations, domains that come and go."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    T, missing = draw(st.integers(0, 8)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    changes = draw(st.sets(st.integers(1, 8), max_size=2))
    domains = tuple(domain(f"d{k}", rng, k == 0) for k in range(draw(st.integers(2, 8))))

    def signals(t: int) -> Signals:
        K = len(domains)
        loss_K = rng.choice(EXTREMES, K)
        scores = -rng.choice(EXTREMES[1:], 2) if rng.random() < 0.2 else -rng.uniform(1, 4, 2)
        probes = (
            {"evaluation": Measured(scores, np.full(2, rng.random() >= missing))}
            if rng.random() >= missing
            else {}
        )
        tokens_K = rng.integers(0, 10**9, K) * (rng.random(K) < 0.8)
        return Signals(
            domains, t, t / max(T, 1), tokens_K, Measured(loss_K, rng.random(K) >= missing), probes
        )

    so_far = Trajectory.start(signals(0))
    for t in range(1, T + 1):
        weights_K = rng.dirichlet(np.full(len(domains), 0.3))
        if t in changes:
            kept = domains[:1] if t % 2 else domains
            weights_K[len(kept) :] = 0.0
            weights_K[0] += 1e-6
            mixture = Mixture.normalise([d.name for d in domains], weights_K)
            fresh = tuple(domain(f"new{t}-{k}", rng, k == 1) for k in range(2))
            domains = (*fresh, *kept)
        else:
            mixture = Mixture.normalise([d.name for d in domains], weights_K)
        so_far = so_far.append(mixture, signals(t))
    return so_far


def observed(trajectory: Trajectory) -> list[Observation]:
    encoder = HistoryEncoder(Feedback())
    parts = range(len(trajectory) + 1)
    return [
        encoder.observe(Trajectory(trajectory.signals[: t + 1], trajectory.mixtures[:t]))
        for t in parts
    ]


@given(trajectories())
def test_one_timestep_at_a_time_equals_all_at_once(trajectory: Trajectory) -> None:
    one_by_one = observed(trajectory)
    domains_TKF, globals_TG = encode_trajectory(trajectory, Feedback())
    assert domains_TKF.shape[1:] == (len(trajectory.names), len(HISTORY_FEATURES))
    assert globals_TG.shape == (len(domains_TKF), len(HISTORY_GLOBALS))
    stretch = [s.names == trajectory.names for s in trajectory.signals]
    assert len(domains_TKF) == len(stretch) - max(
        (t + 1 for t, same in enumerate(stretch) if not same), default=0
    )
    for t, (domains_KF, globals_G) in enumerate(one_by_one[len(one_by_one) - len(domains_TKF) :]):
        assert domains_TKF[t].tobytes() == domains_KF.tobytes()
        assert globals_TG[t].tobytes() == globals_G.tobytes()


@given(trajectories())
def test_everything_is_finite_and_within_bounds(trajectory: Trajectory) -> None:
    for observation in observed(trajectory):
        for part in observation:
            assert part.dtype == np.float32
            assert np.isfinite(part).all()
            assert np.abs(part).max() <= 3.0


@given(trajectories(), st.integers(0, 2**32 - 1))
def test_the_order_and_the_names_of_domains_say_nothing(trajectory: Trajectory, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(trajectory.names))
    if any(signals.names != trajectory.names for signals in trajectory.signals):
        return
    domains = tuple(
        Domain(f"x{k}", trajectory.domains[k].tokens, trajectory.domains[k].role)
        for k in order.tolist()
    )

    def turned(s: Signals) -> Signals:
        loss = Measured(s.loss.values[order], s.loss.present[order])
        return Signals(domains, s.step, s.progress, s.tokens_K[order], loss, s.probes)

    names = [d.name for d in domains]
    mixtures = [Mixture(tuple(names), mixture.weights_K[order]) for mixture in trajectory.mixtures]
    mine = encode_trajectory(trajectory, Feedback())
    theirs = encode_trajectory(
        Trajectory([turned(s) for s in trajectory.signals], mixtures), Feedback()
    )
    np.testing.assert_allclose(theirs.domains_KF, mine.domains_KF[:, order], atol=1e-6)
    np.testing.assert_allclose(theirs.globals_G, mine.globals_G, atol=1e-6)


def test_feedback_against_a_base_score_of_almost_nothing_is_absent() -> None:
    domains, mixture = (Domain("a", 5), Domain("b", 5, "target")), Mixture.uniform(["a", "b"])
    signals = [
        Signals(
            domains,
            t,
            0.0,
            np.zeros(2, dtype=np.int64),
            Measured.absent(2),
            {"evaluation": Measured.all(scores)},
        )
        for t, scores in enumerate([[-1e-300, -1.0], [-1e300, -1.0]])
    ]
    first, second = observed(Trajectory(signals, [mixture]))
    assert [column(moment, "feedback_known") for moment in (first, second)] == [1.0, 0.0]


def column(observation: Observation, name: str) -> Any:
    if name in HISTORY_FEATURES:
        return observation.domains_KF[..., HISTORY_FEATURES.index(name)]
    return observation.globals_G[..., HISTORY_GLOBALS.index(name)]


def test_the_features_say_what_they_are_called() -> None:
    domains = (Domain("a", 300), Domain("b", 100), Domain("maths", 100, "target"))
    evaluations = [[-2.0, -4.0], [-2.1, -3.6]]
    tokens = np.array([30, 0, 10])
    signals = [
        Signals(
            domains,
            0,
            0.0,
            np.zeros(3, dtype=np.int64),
            Measured.absent(3),
            {"evaluation": Measured.all(evaluations[0])},
        ),
        Signals(
            domains,
            5,
            0.5,
            tokens,
            Measured(np.array([4.0, 0.0, 5.0]), np.array([True, False, True])),
        ),
        Signals(
            domains,
            10,
            1.0,
            tokens,
            Measured.all([3.6, 9.0, 4.0]),
            {"evaluation": Measured.all(evaluations[1])},
        ),
    ]
    mixture = Mixture.of({"a": 0.5, "b": 0.0, "maths": 0.5})
    first, second, third = observed(Trajectory(signals, [mixture, mixture]))
    # ρ_0 is the source field's distribution: nothing for the target.
    assert column(first, "last").tolist() == pytest.approx(
        [0.5 * np.log(2.25), 0.5 * np.log(0.75), -3.0]
    )
    assert column(first, "reference").tolist() == pytest.approx(
        (0.5 * np.log([1.125, 0.375, 1.5])).tolist()
    )
    assert column(first, "share_in_role").tolist() == pytest.approx(
        [0.5 * np.log(1.5), 0.5 * np.log(0.5), 0.0]
    )
    assert column(second, "weight").tolist() == pytest.approx([0.5, -1.0, 0.5])
    assert column(second, "target").tolist() == [0.0, 0.0, 1.0]
    assert column(third, "epochs").tolist() == pytest.approx(np.log1p([0.2, 0.0, 0.2]).tolist())
    assert column(second, "loss_known").tolist() == [1.0, 0.0, 1.0]
    assert column(third, "loss").tolist() == pytest.approx([-0.5, 0.0, -1.0])
    assert [column(moment, "feedback_known") for moment in (first, second, third)] == [
        1.0,
        0.0,
        1.0,
    ]
    assert column(third, "general") == pytest.approx(-0.25)
    assert globals_target(third) == pytest.approx(0.5)
    assert column(third, "feedback") == pytest.approx(0.125)
    assert column(third, "feedback_change") == 0.0, "the moment before was not evaluated"
    assert column(second, "target_weight") == 0.5
    assert column(second, "target_drawn") == 0.25
    assert column(second, "target_share") == pytest.approx(0.2)


def globals_target(observation: Observation) -> float:
    return float(observation.globals_G[HISTORY_GLOBALS.index("target")])

"""A run with its domains put together: the same run, seen more coarsely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.learning.merging import coarser, merged
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.encoder import encode_trajectory


def logged(sources: int, targets: int, seed: int = 0, intervals: int = 3) -> Trajectory:
    rng, K = np.random.default_rng(seed), sources + targets
    domains = tuple(
        Domain(f"d{k}", int(rng.integers(1, 10**6)), "target" if k >= sources else "source")
        for k in range(K)
    )

    def signals(number: int) -> Signals:
        loss = Measured(rng.uniform(1, 5, K), rng.random(K) < 0.8)
        probes = {
            "evaluation": Measured.all(-rng.uniform(2, 3, 2)),
            "valid_loss": Measured.all(rng.uniform(1, 5, K)),
        }
        return Signals(
            domains, 10 * number, number / intervals, rng.integers(0, 1000, K), loss, probes
        )

    found = Trajectory.start(signals(0))
    for number in range(1, intervals + 1):
        found = found.append(
            Mixture.normalise([one.name for one in domains], rng.dirichlet(np.ones(K))),
            signals(number),
        )
    return found


def test_tokens_and_weights_add_up_and_a_loss_is_the_mean_by_the_tokens_there_are() -> None:
    domains = (Domain("a", 300), Domain("b", 100), Domain("c", 50), Domain("t", 10, "target"))
    loss = Measured(np.array([2.0, 4.0, 9.0, 3.0]), np.array([True, True, False, True]))
    one = Signals(
        domains, 0, 0.0, np.array([1, 2, 3, 4]), loss, {"evaluation": Measured.all([-1.0, -2.0])}
    )
    run = Trajectory.start(one).append(
        Mixture.normalise(["a", "b", "c", "t"], [0.1, 0.2, 0.3, 0.4]), replace(one, progress=1.0)
    )
    found = merged(run, [np.array([0, 1]), np.array([2]), np.array([3])])
    assert found.domains == (Domain("a", 400), Domain("c", 50), Domain("t", 10, "target"))
    assert found.last.tokens_K.tolist() == [3, 3, 4]
    assert found.weights_TK()[0] == pytest.approx([0.3, 0.3, 0.4])
    assert found.last.loss == Measured(np.array([2.5, 0.0, 3.0]), np.array([True, False, True]))
    assert found.last.probes == one.probes
    assert found.last.progress == 1.0


@given(sources=st.integers(1, 30), targets=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_coarser_run_is_the_same_run(sources: int, targets: int, seed: int) -> None:
    run = logged(sources, targets, seed)
    found = coarser([run], seed)
    assert found == coarser([run], seed)
    sizes = [len(one.names) for one in found]
    assert sizes == sorted(set(sizes), reverse=True), "no two of a run are alike"
    assert all(2 <= size < len(run.names) for size in sizes)
    assert sizes[-1:] == ([2] if sources + targets > 2 else [])
    for one in found:
        assert sum(domain.tokens for domain in one.domains) == sum(
            domain.tokens for domain in run.domains
        )
        assert Feedback()(one) == Feedback()(run)
        is_target_K = np.array([domain.is_target for domain in one.domains])
        of_run_K = np.array([domain.is_target for domain in run.domains])
        assert one.weights_TK()[:, is_target_K].sum(1) == pytest.approx(
            run.weights_TK()[:, of_run_K].sum(1)
        )
        for fewer, signals in zip(one.signals, run.signals, strict=True):
            assert fewer.tokens_K[is_target_K].sum() == signals.tokens_K[of_run_K].sum()
        encode_trajectory(one, Feedback())  # what an agent sees of it is in bounds


def test_runs_are_not_put_together_alike() -> None:
    run = logged(9, 1)
    found = [one for one in coarser([run] * 20, 0) if len(one.names) > 2]
    assert len({one.names + tuple(domain.tokens for domain in one.domains) for one in found}) > 10


def test_a_run_whose_domains_changed_is_left_as_it_is() -> None:
    run, more = logged(3, 1), logged(3, 2)
    changed = Trajectory.start(run.signals[0]).append(
        run.mixtures[0], replace(more.last, progress=1.0)
    )
    assert coarser([changed], 0) == []

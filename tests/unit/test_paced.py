"""The closed form and agents that start from it: budgets are kept, and noise moves little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cuvee import loop
from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.gain_estimate import GainEstimate, shrunken
from cuvee.policies.paced import Paced
from cuvee.probes.target_gain import NAME, ROWS, SQUARE
from cuvee.simulation.simulator import ScalingLaws, Simulator
from cuvee.testing.policy import PolicySuite

SMALL: dict[str, Any] = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 2},
    "learning_starts": 2,
    "batch_size": 4,
    "capacity": 50,
}


class TestLate(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return Paced(epochs={domains[0].name: 0.001}, tokens=1_000_000)


class TestGain(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return Paced(sharpness=1.0)


def around(
    agent: str, reward: str = "gain", noise: int | None = None, **reference: Any
) -> AgentPolicy:
    """A small agent that starts from the closed form."""
    shared = {} if noise is None else {"noise": noise}
    explore = {"noise": 0.05} if agent == "ddpg" else {"std": 0.05}
    return AgentPolicy(
        agent,
        reward,
        vector=True,
        reference={"sharpness": 1.0, **shared, **reference},
        reward_settings=shared,
        agent_settings={**SMALL, "kl_coef": 1.0, **explore},
    )


class Run:
    """Twelve domains, of which the first is scarce and counts; the second helps it, if `helps`."""

    def __init__(self, intervals: int = 60, helps: float = 0.0, seed: int = 0) -> None:
        self.domains = tuple(Domain(f"d{k}", 500 if k == 0 else 100_000) for k in range(12))
        self.intervals, self.helps, self.rng = intervals, helps, np.random.default_rng(seed)
        self.step = 0

    def signals(self, weights_K: np.ndarray) -> Signals:
        K = len(self.domains)
        rows_K = np.rint(1280 * weights_K / 10)
        true_K = np.where(np.arange(K) == 1, self.helps, 0.0)
        mean_K = true_K + self.rng.normal(size=K) / np.sqrt(np.maximum(rows_K, 1))
        probes = {
            "valid_loss": Measured(np.ones(K), np.arange(K) == 0),
            NAME: Measured(mean_K, rows_K > 0),
            SQUARE: Measured(np.ones(K) + mean_K**2, rows_K > 0),
            ROWS: Measured.all(rows_K),
        }
        tokens_K = np.rint(1280 * weights_K).astype(np.int64)
        return Signals(
            self.domains,
            self.step,
            self.step / self.intervals,
            tokens_K,
            Measured.all(np.ones(K)),
            probes,
        )

    def play(self, policy: Policy) -> Trajectory:
        so_far = Trajectory.start(self.signals(np.zeros(12)))
        for _ in range(self.intervals):
            mixture = policy.mixture(so_far)
            self.step += 1
            so_far = so_far.append(mixture, self.signals(mixture.weights_K))
            policy.learn(so_far)
        return so_far


CAPS: dict[str, Any] = {"epochs": {"d0": 4.0}, "tokens": 60 * 1280}


@pytest.mark.parametrize("power", [0.0, 1.0, 4.0])
def test_a_scarce_domain_that_counts_is_read_to_its_cap_and_never_before_the_end(
    power: float,
) -> None:
    weights_T = Run().play(Paced(power=power, **CAPS)).weights_TK()[:, 0]
    assert weights_T.mean() == pytest.approx(4 * 500 / CAPS["tokens"], rel=0.05)
    assert weights_T[-1] / weights_T[29] == pytest.approx((59.5 / 29.5) ** power, rel=0.3)


def test_without_knowing_how_long_the_run_is_it_finds_out() -> None:
    weights_T = Run().play(Paced(power=0.0, epochs=CAPS["epochs"])).weights_TK()[:, 0]
    assert weights_T[1:].mean() == pytest.approx(4 * 500 / CAPS["tokens"], rel=0.05)


def test_a_helper_rises_and_noise_moves_next_to_nothing() -> None:
    helped_K = Run(helps=0.3).play(Paced(sharpness=1.0, **CAPS)).weights_TK()[-1]
    assert helped_K[1] > 3 * np.median(helped_K[2:])
    spread = [
        np.std(np.log(Run(seed=s).play(Paced(sharpness=1.0, **CAPS)).weights_TK()[-1, 1:]))
        for s in range(8)
    ]
    assert np.median(spread) < 0.3


@pytest.mark.parametrize("agent", ["ddpg", "sac"])
def test_an_agent_stays_near_the_closed_form_where_that_is_right(agent: str) -> None:
    policy = around(agent, **CAPS)
    so_far = Run(helps=0.3).play(policy)
    reference = Paced(sharpness=1.0, **CAPS)
    reference.load_state_dict(policy.state_dict()["reference"])
    assert Mixture.total_variation(policy.mixture(so_far), reference.mixture(so_far)) < 0.1


def test_noise_for_gains_makes_no_helper() -> None:
    last_K = Run(helps=0.3).play(around("ddpg", noise=0, **CAPS)).weights_TK()[-1]
    assert last_K[1] < 2 * np.median(last_K[2:])


def test_uncertainty_falls_with_measurements_and_is_zero_for_scarce_domains() -> None:
    policy = Paced(sharpness=1.0, **CAPS)
    run = Run(intervals=60, helps=3.0)
    so_far = Trajectory.start(run.signals(np.zeros(12)))
    seen = []
    for _ in range(20):
        mixture = policy.mixture(so_far)
        run.step += 1
        so_far = so_far.append(mixture, run.signals(mixture.weights_K))
        policy.learn(so_far)
        seen.append(policy.uncertainty(so_far))
    assert all(uncertain_K[0] == 0.0 for uncertain_K in seen)
    assert 0 < seen[-1][1:].max() < seen[0][1:].max() <= 1.0


def test_shrinkage_is_none_without_noise_and_all_with_nothing_else() -> None:
    mean_K, among_K = np.array([0.0, 1.0, 2.0, 3.0]), np.ones(4, dtype=bool)
    sure = shrunken(mean_K, np.full(4, 1e-6), among_K)
    np.testing.assert_allclose(sure.z_K, (mean_K - 1.5) / mean_K.std(ddof=1), rtol=1e-3)
    assert not shrunken(mean_K, np.full(4, 10.0), among_K).z_K.any()


def weights_of(mean_K: np.ndarray, error: float) -> np.ndarray:
    K = len(mean_K)
    gains = shrunken(mean_K, np.full(K, error), np.ones(K, dtype=bool))
    weights_K = np.exp(gains.z_K) * gains.helps_K
    normed_K: np.ndarray = weights_K / weights_K.sum()
    return normed_K


@pytest.mark.parametrize("seed", range(5))
def test_where_few_domains_harm_and_the_others_are_alike_only_the_few_are_left_out(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    true_K = np.concatenate([np.full(6, -0.3), np.full(29, 0.2)])
    weights_K = weights_of(true_K + 0.1 * rng.normal(size=35), 0.1)
    assert weights_K[:6].sum() < 0.02  # a normal prior leaves them 0.05
    rest_K = weights_K[6:] / weights_K[6:].sum()
    assert np.abs(rest_K - 1 / 29).sum() / 2 < 0.12  # and follows noise by 0.2


def test_where_no_domain_helps_those_that_harm_least_are_read() -> None:
    rng = np.random.default_rng(0)
    mean_K = -0.3 + 0.1 * rng.normal(size=28)
    mean_K[0] = -1.5
    weights_K = weights_of(mean_K, 0.05)
    assert weights_K[0] < 0.002
    least = mean_K[1:] > np.median(mean_K)
    assert 0.5 < weights_K[1:][least].sum() < 0.95
    assert weights_K[1:].max() < 6 / 28


def test_gains_are_closer_to_the_truth_than_under_a_normal_prior() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(50):
        true_K = np.where(rng.random(40) < 0.15, rng.normal(0, 1.0, 40), 0.0)
        mean_K = true_K + 0.2 * rng.normal(size=40)
        found = shrunken(mean_K, np.full(40, 0.2), np.ones(40, dtype=bool))
        ours_K = found.centre + found.deviation * found.z_K
        between = max(mean_K.var(ddof=1) - 0.04, 0.0)
        normal_K = mean_K.mean() + between / (between + 0.04) * (mean_K - mean_K.mean())
        errors.append([((x_K - true_K) ** 2).mean() for x_K in (ours_K, normal_K)])
    ours, normal = np.mean(errors, axis=0)
    assert ours < 0.6 * normal


def test_a_domain_that_is_not_read_keeps_what_is_known_of_it() -> None:
    names = ("a", "b")
    domains = tuple(Domain(name, 10) for name in names)
    estimate = GainEstimate(0.9)
    for step in range(60):
        rows_K = np.array([4.0, 4.0 if step < 10 else 0.0])
        probes = {
            NAME: Measured(np.array([0.1, -0.4]), rows_K > 0),
            SQUARE: Measured(np.array([1.01, 1.16]), rows_K > 0),
            ROWS: Measured.all(rows_K),
        }
        estimate.add(Signals(domains, step, 0.1, np.ones(2, np.int64), Measured.absent(2), probes))
        if step == 9:
            before = estimate.moments(names)
    mean_K, error_K = estimate.moments(names)
    assert mean_K[1] == pytest.approx(before[0][1])
    assert error_K[1] == pytest.approx(before[1][1], rel=0.05)


def test_the_standard_error_is_that_of_a_decayed_mean() -> None:
    rng, found, said = np.random.default_rng(0), [], []
    names = ("a", "b", "c")
    for _ in range(200):
        estimate = GainEstimate(0.8)
        for step in range(15):
            x_RK = rng.normal(size=(4, 3))
            probes = {
                NAME: Measured.all(x_RK.mean(0)),
                SQUARE: Measured.all((x_RK**2).mean(0)),
                ROWS: Measured.all(np.full(3, 4.0)),
            }
            domains = tuple(Domain(name, 10) for name in names)
            estimate.add(
                Signals(domains, step, 0.1, np.ones(3, np.int64), Measured.absent(3), probes)
            )
        mean_K, error_K = estimate.moments(names)
        found.append(mean_K)
        said.append(error_K)
    assert np.mean(said) == pytest.approx(np.std(found), rel=0.1)


@pytest.mark.training
def test_on_the_simulator_real_gains_win_and_noise_does_not() -> None:
    laws = ScalingLaws.draw(12, 0, intervals=40)
    values = {f"domain{k}": float(value) for k, value in enumerate(laws.value_K)}
    uniform = float(laws.objective(torch.full((40, 12), 1 / 12, dtype=torch.float64)))
    best = float(laws.objective(laws.best_static().expand(40, -1)))
    won = {}
    for noise in (None, 0):
        simulator = Simulator(laws, 100)
        loop.run(simulator, around("ddpg", noise=noise, objective=values))
        won[noise] = (uniform - simulator.valued_loss()) / (uniform - best)
    assert won[None] > 0.7
    assert abs(won[0]) < 0.2

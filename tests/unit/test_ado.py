"""ADO: laws are recovered from curves, speeds follow the formula, and the mixture moves to the
fastest-learning domains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.loop import run
from cuvee.methods.ado import ADO, ADOPolicy, Law, fit_law
from cuvee.testing.policy import some_domains
from cuvee.testing.toy import ToyTrainer
from registered import SPACE


@pytest.mark.parametrize(
    ("limit", "scale", "exponent"), [(1.5, 4.0, 0.3), (0.0, 9.0, 0.08), (2.7, 60.0, 0.7)]
)
def test_a_law_is_recovered_from_its_curve(limit: float, scale: float, exponent: float) -> None:
    tokens_T = np.linspace(1e4, 2e6, 200)
    law = fit_law(tokens_T, limit + scale * tokens_T**-exponent)
    assert law.exponent == pytest.approx(exponent, rel=1e-2)
    assert law.limit == pytest.approx(limit, abs=0.02)
    assert law.loss(4e6) == pytest.approx(limit + scale * 4e6**-exponent, rel=1e-3)


def test_a_law_is_recovered_from_noisy_losses() -> None:
    rng, tokens_T = np.random.default_rng(0), np.linspace(1e4, 1e6, 400)
    law = fit_law(tokens_T, 2.0 + 30.0 * tokens_T**-0.4 + rng.normal(0, 0.01, 400))
    assert law.exponent == pytest.approx(0.4, rel=0.2)
    assert law.loss(2e6) == pytest.approx(2.0 + 30.0 * 2e6**-0.4, abs=0.02)


def test_losses_that_rise_have_a_speed_of_zero() -> None:
    law = fit_law(np.linspace(1.0, 9.0, 9), np.linspace(2.0, 3.0, 9))
    assert law.speed(9.0) == 0.0


def test_speed_is_the_slope_of_the_law() -> None:
    law = Law(1.0, 5.0, 0.25, unit=100.0)
    slope = (law.loss(1000.0) - law.loss(1000.001)) / 0.001
    assert law.speed(1000.0) == pytest.approx(slope, rel=1e-4)


def curves(policy: ADOPolicy, exponents: list[float], intervals: int = 40) -> Trajectory:
    """A run in which every domain's loss follows its own law of the total tokens."""
    domains, tokens = some_domains(len(exponents)), 1000

    def signals(t: int, mixture: Mixture | None) -> Signals:
        middle = max(tokens * (t - 0.5), 1.0)
        loss_K = 2.0 + 3.0 * middle ** -np.array(exponents)
        drawn_K = np.zeros(len(domains)) if mixture is None else np.round(mixture.weights_K * 1000)
        return Signals(domains, t, t / intervals, drawn_K.astype(int), Measured.all(loss_K))

    so_far = Trajectory.start(signals(0, None))
    for t in range(1, intervals + 1):
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, signals(t, mixture))
        policy.learn(so_far)
    return so_far


def test_the_mixture_follows_the_formula_after_one_decision() -> None:
    prior = {"d0": 0.5, "d1": 0.3, "d2": 0.2}
    policy = ADOPolicy(prior, credit=0.5, smoothing=0.2, floor=0.0, warmup=0.9)
    so_far = curves(policy, [0.1, 0.3, 0.6], intervals=10)
    n = float(sum(int(signals.tokens_K.sum()) for signals in so_far.signals))
    prior_K, exponents_K = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    speeds_K = exponents_K * 3.0 * n ** (-exponents_K - 1)
    # Two decisions: after 90 % of the run and at its end. The last interval ran under the first
    # one's mixture.
    before_K, last_K = so_far.mixtures[0].weights_K, so_far.mixtures[-1].weights_K
    assert before_K == pytest.approx(prior_K)
    recent_K = before_K + 0.1 * (last_K - before_K)
    mean_K = (9 * before_K + last_K) / 10
    aim_K = prior_K * recent_K**0.5 * speeds_K
    expected_K = 0.2 * aim_K / aim_K.sum() + 0.8 * mean_K
    assert policy.mixture(so_far).weights_K == pytest.approx(expected_K, abs=2e-3)


def test_the_floor_holds_and_a_domain_that_is_learned_faster_gains() -> None:
    flat, steep = 0.02, 0.1
    policy = ADOPolicy({"d0": 0.5, "d1": 0.5}, smoothing=1.0, floor=0.05)
    so_far = curves(policy, [flat, steep])
    assert so_far.weights_TK().min() >= 0.05 - 1e-12
    mixture = policy.mixture(so_far)
    assert mixture["d1"] > 0.55


def test_the_prior_steers_until_there_are_laws() -> None:
    policy = ADO(prior={"web": 3, "code": 1}, warmup=0.5).commit(SPACE, ())
    so_far = Trajectory.start(Signals(SPACE.domains, 0, 0.0, np.zeros(3, int), Measured.absent(3)))
    assert policy.mixture(so_far).as_dict() == pytest.approx({"web": 0.75, "code": 0.25, "math": 0})


def test_a_seeded_toy_run_is_repeated_exactly() -> None:
    first, second = (
        run(ToyTrainer(20, seed=1), ADO().commit(ToyTrainer(), ()))  # a trainer has domains too
        for _ in range(2)
    )
    assert first == second
    weights_TK = first.weights_TK()
    assert not np.allclose(weights_TK[0], weights_TK[-1]), "it has moved"


@pytest.mark.parametrize(
    ("options", "named"),
    [({"credit": -1.0}, "credit"), ({"smoothing": 0.0}, "smoothing"), ({"floor": 1.0}, "floor")],
)
def test_bad_settings_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(PolicyError, match=named):
        ADO(**options)


def test_a_prior_over_other_domains_is_refused() -> None:
    with pytest.raises(ConfigError, match="latin"):
        ADO(prior={"latin": 1.0}).commit(SPACE, ())


def test_many_domains_are_refitted_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    exponents = [0.1, 0.3, 0.6]
    whole = ADOPolicy({"d0": 0.4, "d1": 0.3, "d2": 0.3}, warmup=0.1)
    curves(whole, exponents)
    monkeypatch.setattr("cuvee.methods.ado._MOST_FITS", 1)
    turns = ADOPolicy({"d0": 0.4, "d1": 0.3, "d2": 0.3}, warmup=0.1)
    so_far = curves(turns, exponents)
    assert set(turns.state_dict()["laws"]) == {"d0", "d1", "d2"}
    fitted = turns.learn(so_far)["laws"]
    assert len(fitted) == 1
    resumed = ADOPolicy({"d0": 0.4, "d1": 0.3, "d2": 0.3}, warmup=0.1)
    resumed.load_state_dict(turns.state_dict())
    assert resumed.learn(so_far) == turns.learn(so_far)
    assert turns.mixture(so_far).weights_K == pytest.approx(
        whole.mixture(so_far).weights_K, abs=0.05
    )

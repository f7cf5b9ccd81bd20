"""MixMin: the solver against scipy's SLSQP and known answers, and the method from logged
proxies to a mixture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Run, Trajectory
from cuvee.fleet.task import task_of
from cuvee.methods.mixmin import MixMin, mixture_of_outputs, output_loss
from cuvee.policies.files import document_of
from cuvee.probes.token_losses import NAME, ValidTokenLosses
from registered import SPACE

NAMES = [domain.name for domain in SPACE.domains]
TOKENS = 50


def even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


@pytest.mark.parametrize("seed", range(5))
def test_the_minimum_is_that_of_slsqp(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_probs_NK = np.log(rng.dirichlet(np.ones(4), size=300) ** rng.uniform(0.5, 2.0, 4))
    values_N = rng.dirichlet(np.ones(300))
    found_K = mixture_of_outputs(log_probs_NK, values_N)
    reference = minimize(
        output_loss,
        even(4),
        args=(log_probs_NK, values_N),
        method="SLSQP",
        bounds=[(1e-9, 1.0)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found_K.sum() == pytest.approx(1.0)
    assert output_loss(found_K, log_probs_NK, values_N) <= reference.fun + 1e-7
    assert found_K == pytest.approx(reference.x, abs=2e-3)


def test_a_proxy_that_is_better_on_every_token_gets_everything() -> None:
    log_probs_NK = np.log(np.array([[0.5, 0.1], [0.4, 0.3]]))
    assert mixture_of_outputs(log_probs_NK, even(2)) == pytest.approx([1.0, 0.0], abs=1e-6)


def test_tiny_probabilities_do_not_underflow() -> None:
    log_probs_NK = np.array([[-900.0, -2000.0], [-2000.0, -900.0]])
    weights_K = mixture_of_outputs(log_probs_NK, even(2))
    assert weights_K == pytest.approx([0.5, 0.5])
    assert output_loss(weights_K, log_probs_NK, even(2)) == pytest.approx(900 + np.log(2))


def test_the_data_of_a_known_mixture_has_that_mixture() -> None:
    """Tokens drawn from 0.2 p + 0.5 q + 0.3 r."""
    rng = np.random.default_rng(0)
    probs_KV = rng.dirichlet(np.full(40, 0.2), size=3)
    weights_K = np.array([0.2, 0.5, 0.3])
    drawn_N = rng.choice(40, size=100_000, p=weights_K @ probs_KV)
    log_probs_NK = np.log(np.maximum(probs_KV[:, drawn_N].T, 1e-300))
    assert mixture_of_outputs(log_probs_NK, even(100_000)) == pytest.approx(weights_K, abs=0.01)


def finished(policy: Policy, losses_DN: np.ndarray) -> Run:
    """A proxy's run that ends with these token losses. Its rows are those of the policy's probe."""
    first = Signals(SPACE.domains, 0, 0.0, np.zeros(3, np.int64), Measured.absent(3))
    mixture = policy.mixture(Trajectory.start(first))
    probes = {NAME: Measured.all(losses_DN), "valid_loss": Measured.all(np.ones(3))}
    last = Signals(SPACE.domains, 4, 1.0, np.ones(3, np.int64), Measured.all(np.ones(3)), probes)
    task = json.loads(json.dumps(task_of({}, policy)))
    return Run(mixture.names[0], 0, task, Trajectory([first, last], [mixture]))


def losses_of(proxy: int, rows: int) -> np.ndarray:
    """Good on its own domain, bad elsewhere."""
    losses_DN = np.random.default_rng(proxy).uniform(3.0, 4.0, (rows, TOKENS))
    losses_DN[proxy % rows] -= 2.5
    return losses_DN


def test_one_proxy_a_domain_that_measures_token_losses_and_none_twice() -> None:
    method = MixMin(tokens=64)
    proposed = method.propose(SPACE, ())
    weights = [document_of(policy)["settings"]["weights"] for policy in proposed]
    assert weights == [{n: float(n == name) for n in NAMES} for name in NAMES]
    assert [list(policy.probes) for policy in proposed] == [[ValidTokenLosses(tokens=64)]] * 3
    logged = [finished(policy, losses_of(k, 3)) for k, policy in enumerate(proposed)]
    left = method.propose(SPACE, logged[:2])
    assert [document_of(policy)["settings"]["weights"] for policy in left] == weights[2:]
    assert method.propose(SPACE, logged) == []
    assert len(MixMin(tokens=128).propose(SPACE, logged)) == 3, "those measured other tokens"


def test_an_even_objective_with_symmetric_proxies_is_nearly_even() -> None:
    method = MixMin()
    logged = [finished(p, losses_of(k, 3)) for k, p in enumerate(method.propose(SPACE, ()))]
    policy = method.commit(SPACE, logged)
    weights_K = policy.mixture(Trajectory.start(logged[0].trajectory.last)).weights_K
    assert weights_K == pytest.approx([1 / 3] * 3, abs=0.05)
    evidence = document_of(policy)["settings"]["evidence"]
    assert evidence["loss"] < min(evidence["losses"].values())
    assert list(evidence["losses"]) == NAMES
    assert evidence["missing"] == []


def test_weights_by_name_decide_what_counts() -> None:
    method = MixMin(objective={"math": 3.0, "web": 1.0, "code": 0.0})
    proposed = method.propose(SPACE, ())
    assert list(proposed[0].probes) == [ValidTokenLosses(domains=("math", "web"))]
    rows = {"math": 0, "web": 1}
    logged = []
    for name, policy in zip(NAMES, proposed, strict=True):
        losses_DN = np.full((2, TOKENS), 9.0)
        if name in rows:
            losses_DN[rows[name]] = 1.0
        logged.append(finished(policy, losses_DN))
    weights = document_of(method.commit(SPACE, logged))["settings"]["weights"]
    assert weights["math"] == pytest.approx(0.75, abs=1e-3)
    assert weights["web"] == pytest.approx(0.25, abs=1e-3)


def test_a_domain_whose_proxy_failed_gets_nothing_and_is_named() -> None:
    method = MixMin()
    logged = [finished(p, losses_of(k, 3)) for k, p in enumerate(method.propose(SPACE, ()))]
    settings = document_of(method.commit(SPACE, logged[1:]))["settings"]
    assert settings["weights"]["web"] == 0.0
    assert settings["evidence"]["missing"] == ["web"]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(PolicyError, match="no proxy run is logged yet"):
        MixMin().commit(SPACE, ())
    with pytest.raises(ConfigError, match="tokens is 0"):
        MixMin(tokens=0)
    with pytest.raises(ConfigError, match="objective is 'loss'"):
        MixMin(objective="loss")  # type: ignore[arg-type]

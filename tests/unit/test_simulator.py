"""The simulator: it meets the trainer's contract, its losses follow the law, and optima are
found by gradient ascent."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.loop import run
from cuvee.policies.fixed import Fixed
from cuvee.simulation.continual import WorldParams, continual
from cuvee.simulation.laws import Laws
from cuvee.simulation.simulator import ScalingLaws, Simulator
from cuvee.testing.trainer import TrainerSuite


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


PROBES = (Named("alignment"), Named("weight_norms"), Named("valid_loss"))
LAWS = ScalingLaws.draw(4, seed=0, intervals=8)


class TestSimulator(TrainerSuite):
    probes = PROBES

    def make(self) -> Simulator:
        return Simulator(LAWS, seed=3)


def uniform(laws: ScalingLaws) -> torch.Tensor:
    return torch.full((laws.intervals, laws.domains), 1 / laws.domains, dtype=torch.float64)


def test_losses_follow_the_law_by_hand() -> None:
    laws = ScalingLaws(
        floor_K=torch.tensor([1.0, 2.0], dtype=torch.float64),
        scale_K=torch.tensor([3.0, 1.0], dtype=torch.float64),
        exponent_K=torch.tensor([0.5, 1.0], dtype=torch.float64),
        transfer_KK=torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64),
        forgetting_K=torch.tensor([0.0, 0.5], dtype=torch.float64),
        start_K=torch.tensor([1.0, 2.0], dtype=torch.float64),
        value_K=torch.tensor([1.0, 0.0], dtype=torch.float64),
        intervals=1,
        interval=6.0,
        unit=1.0,
    )
    before, after = laws.losses(torch.tensor([[0.5, 0.5]], dtype=torch.float64)).tolist()
    assert before == pytest.approx([1 + 3, 2 + 1 / 2])
    # Domain 0 gets 3 of its own and half of the other's 3; domain 1 keeps half of 2 and gets 3.
    assert after == pytest.approx([1 + 3 / np.sqrt(5.5), 2 + 1 / 4])


def test_what_it_reports_without_noise_is_the_law() -> None:
    simulator = Simulator(LAWS, seed=0, noise=0.0)
    path = np.random.default_rng(0).dirichlet(np.ones(4), size=LAWS.intervals)
    signals = [simulator.start(PROBES)]
    signals += [simulator.advance(Mixture.normalise(signals[0].names, row)) for row in path]
    expected = LAWS.losses(torch.from_numpy(path)).numpy()
    np.testing.assert_allclose(
        [s.probes["valid_loss"].values for s in signals], expected, rtol=1e-12
    )
    np.testing.assert_allclose([s.loss.values for s in signals[1:]], expected[1:], rtol=1e-12)
    assert simulator.valued_loss() == pytest.approx(float(LAWS.objective(torch.from_numpy(path))))
    assert simulator.cost.tokens == sum(int(s.tokens_K.sum()) for s in signals)


def test_a_domain_without_tokens_has_no_training_loss_and_is_forgotten() -> None:
    laws = dataclasses.replace(
        LAWS, transfer_KK=torch.eye(4, dtype=torch.float64), forgetting_K=torch.full((4,), 0.2)
    )
    simulator = Simulator(laws, seed=0, noise=0.0)
    first = simulator.start(PROBES)
    later = simulator.advance(Mixture.normalise(first.names, [0, 1, 1, 1]))
    assert later.loss.present.tolist() == [False, True, True, True]
    assert later.probes["valid_loss"].values[0] > first.probes["valid_loss"].values[0]


def test_alignment_is_a_gram_matrix_whose_diagonal_is_the_slope_of_the_loss() -> None:
    effective = LAWS.start_K.clone().requires_grad_()
    slope = -torch.autograd.grad(LAWS.loss(effective).sum(), [effective])[0] * LAWS.unit
    gram = LAWS.alignment(LAWS.start_K)
    assert torch.allclose(gram.diagonal(), slope)
    assert torch.allclose(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > -1e-9


def test_the_best_schedule_beats_the_best_constant_which_beats_uniform() -> None:
    laws = ScalingLaws.draw(5, seed=1, intervals=6, forgetting=0.5)
    best = laws.best_static(120)
    static = float(laws.objective(best.expand(6, -1)))
    dynamic = float(laws.objective(laws.best_schedule(120)))
    assert dynamic < static - 1e-3 < float(laws.objective(uniform(laws))) - 1e-3
    rng = np.random.default_rng(0)
    for _ in range(100):  # no nearby constant is better
        other = torch.from_numpy(0.9 * best.numpy() + 0.1 * rng.dirichlet(np.ones(5)))
        assert float(laws.objective(other.expand(6, -1))) > static - 1e-5


def test_without_forgetting_no_schedule_beats_the_best_constant() -> None:
    laws = ScalingLaws.draw(3, seed=0, intervals=4, forgetting=0.0)
    static = float(laws.objective(laws.best_static(150).expand(4, -1)))
    assert float(laws.objective(laws.best_schedule(150))) == pytest.approx(static, abs=5e-4)


def test_it_runs_in_the_loop() -> None:
    simulator = Simulator(LAWS, seed=0)
    done = run(simulator, Fixed(Mixture.uniform([domain.name for domain in simulator.domains])))
    assert len(done) == LAWS.intervals
    assert done.last.progress == 1.0


def test_mistakes_are_named() -> None:
    simulator = Simulator(LAWS, seed=0)
    with pytest.raises(ConfigError, match="cannot measure domain_runs"):
        simulator.start((Named("domain_runs"),))
    first = simulator.start(())
    while not simulator.done:
        simulator.advance(Mixture.uniform(first.names))
    with pytest.raises(TrainingError, match="ended at step"):
        simulator.advance(Mixture.uniform(first.names))
    with pytest.raises(CheckpointError, match="4 domains"):
        Simulator(ScalingLaws.draw(3, seed=0), seed=0).restore(simulator.state_dict(), ())
    with pytest.raises(ConfigError, match="4 domains"):
        Simulator(LAWS, seed=0, domains=simulator.domains[:2])
    changes: list[dict[str, Any]] = [
        {"transfer_KK": torch.eye(3)},
        {"forgetting_K": torch.ones(4)},
        {"value_K": torch.ones(3)},
    ]
    for change in changes:
        with pytest.raises(ConfigError):
            dataclasses.replace(LAWS, **change)


def test_questions_are_answered_as_well_as_source_and_target_domains_are_known() -> None:
    domains = tuple(
        Domain(name, 1000, role="target" if name == "d" else "source") for name in "abcd"
    )
    simulator = Simulator(LAWS, seed=0, noise=0.0, domains=domains)
    found = simulator.start((Named("evaluation"),)).probes
    valid_K = found["valid_loss"].values
    assert found["evaluation"].values == pytest.approx([-valid_K[:3].mean(), -valid_K[3]])
    without_target = Simulator(LAWS, seed=0).start((Named("evaluation"),)).probes["evaluation"]
    assert without_target.present.tolist() == [True, False]


def test_worlds_side_by_side_follow_the_formulas_of_each() -> None:
    worlds = [continual(3, 2, seed, 8, WorldParams.draw(seed))[0] for seed in range(7)]
    together = Laws.stack(worlds, torch.float64)
    weights_BK = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    for number in range(8):
        pace_B1, fade_B1 = (
            torch.tensor(
                [[path_T[number] if path_T else 1.0] for path_T in paths], dtype=torch.float64
            )
            for paths in ([one.pace_T for one in worlds], [one.fade_T for one in worlds])
        )
        after_BK = together.after(together.start_K, weights_BK, pace_B1, fade_B1)
        for b, one in enumerate(worlds):
            alone_K = one.step(one.start_K, weights_BK[b], number)
            # A vectorised power or sum may differ in its last bits from a scalar one.
            torch.testing.assert_close(after_BK[b], alone_K, rtol=1e-14, atol=0)
            torch.testing.assert_close(
                together.loss(after_BK)[b], one.loss(after_BK[b]), rtol=1e-14, atol=0
            )

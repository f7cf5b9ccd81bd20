"""The model of all curves: recovers worlds of both families, other lengths, repeated text; plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, available_K
from cuvee.core.errors import PolicyError
from cuvee.core.trajectory import Trajectory
from cuvee.learning.planning import plan, within_caps
from cuvee.loop import run
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.fixed import Scheduled
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.continual import WorldParams, continual, feedback_gain
from cuvee.simulation.curves import CurveModel, RunText, fit_curves
from cuvee.simulation.simulator import ScalingLaws, Simulator

T = 6


class _Evaluation:
    name = "evaluation"


def world(intervals: int = T) -> tuple[ScalingLaws, tuple[Domain, ...]]:
    return continual(2, 1, 0, intervals, WorldParams.draw(0))


def logged(count: int) -> list[Trajectory]:
    laws, domains = world()
    runs = []
    for number in range(count):
        sampler = ScoringSampler(0, number)
        sampler.probes = (_Evaluation(),)
        runs.append(run(Simulator(laws, seed=number, domains=domains), sampler))
    return runs


@pytest.fixture(scope="module")
def model() -> CurveModel:
    return fit_curves(logged(10), members=2, steps=100)


def played(policy: Scheduled, domains: tuple[Domain, ...]) -> FloatArray:
    names = [domain.name for domain in domains]
    return np.stack([policy.at(t / T, names).weights_K for t in range(T)])


def expected(model: CurveModel, weights_TK: FloatArray, text: RunText | None = None) -> float:
    with torch.no_grad():
        return float(model.weight_M @ model.gains(torch.from_numpy(weights_TK).float(), text))


def test_it_predicts_mixtures_that_nobody_played(model: CurveModel) -> None:
    laws, _ = world()
    mixtures_NK = np.random.default_rng(1).dirichlet(np.ones(3), size=12)
    truth = [feedback_gain(laws, torch.from_numpy(np.tile(one, (T, 1)))) for one in mixtures_NK]
    guess = [expected(model, np.tile(one, (T, 1))) for one in mixtures_NK]
    assert np.corrcoef(truth, guess)[0, 1] > 0.9
    assert np.sqrt(np.mean(np.square(np.subtract(truth, guess)))) < 0.5 * np.std(truth)
    assert model.weight_M.sum() == pytest.approx(1.0)
    assert set(model.errors) == {"power", "relaxing"}


def test_it_counts_tokens_and_not_intervals(model: CurveModel) -> None:
    even_K = np.full(3, 1 / 3)
    coarse = RunText.of_length(model.text.unit, model.text.unit, T, model.text.available_K)
    fine = RunText.of_length(model.text.unit, model.text.unit, 4 * T, model.text.available_K)
    twice = RunText.of_length(model.text.unit, 2 * model.text.unit, T, model.text.available_K)
    ends = [expected(model, np.tile(even_K, (len(one.share_T), 1)), one) for one in (coarse, fine)]
    assert ends[0] == pytest.approx(ends[1], rel=0.15)
    assert expected(model, np.tile(even_K, (T, 1)), twice) != pytest.approx(ends[0], rel=0.02)


def test_repeated_text_is_worth_less(model: CurveModel) -> None:
    scarce_K = np.where([False, False, True], 0.05 * model.text.unit, model.text.available_K)
    scarce = replace(model.text, available_K=scarce_K)
    path = np.tile([0.2, 0.2, 0.6], (T, 1))
    assert expected(model, path, scarce) < expected(model, path)


def test_the_plan_beats_the_reference_and_can_be_saved(model: CurveModel, tmp_path: Path) -> None:
    laws, domains = world()
    planned = plan(model, domains, steps=60)
    weights_TK = played(planned, domains)
    reference = np.array([*(0.5 * available_K(domains[:2]) / available_K(domains[:2]).sum()), 0.5])
    assert feedback_gain(laws, torch.from_numpy(weights_TK)) > feedback_gain(
        laws, torch.from_numpy(np.tile(reference, (T, 1)))
    )
    save_policy(tmp_path / "plan", planned, {"runs": []})
    again = load_policy(tmp_path / "plan")
    assert isinstance(again, Scheduled)
    np.testing.assert_allclose(played(again, domains), weights_TK)


def test_a_static_plan_does_not_move(model: CurveModel) -> None:
    weights_TK = played(plan(model, world()[1], moving=False, steps=20), world()[1])
    np.testing.assert_allclose(weights_TK, np.tile(weights_TK[0], (T, 1)), atol=1e-6)


def test_the_plan_stays_within_caps(model: CurveModel) -> None:
    _, domains = world()
    scarce = replace(model.text, available_K=np.array([1e12, 1e12, 0.02 * model.text.unit]))
    weights_TK = played(plan(model, domains, text=scarce, epochs=4.0, steps=40), domains)
    assert weights_TK[:, 2].mean() <= 0.08 + 1e-6


def test_caps_that_cannot_hold_leave_the_path() -> None:
    path_TK = np.full((4, 2), 0.5)
    share_T = np.full(4, 0.25)
    np.testing.assert_array_equal(within_caps(path_TK, share_T, np.array([0.1, 0.1])), path_TK)
    capped_TK = within_caps(path_TK, share_T, np.array([0.1, 9.0]))
    np.testing.assert_allclose(capped_TK.mean(0), [0.1, 0.9])


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(PolicyError, match="3 runs are too few"):
        fit_curves(logged(3))

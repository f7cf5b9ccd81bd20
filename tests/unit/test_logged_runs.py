"""Runs that stopped or diverged are data for the evaluator, the laws and the learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.errors import DivergedError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Run, Trajectory
from cuvee.fleet.local import LocalFleet
from cuvee.fleet.store.store import Store
from cuvee.learning.episodes import ReturnScale
from cuvee.learning.history_learning import learn
from cuvee.learning.learn_settings import LearnSettings
from cuvee.learning.logged_runs import as_episode, spaces_of
from cuvee.learning.off_policy import OffPolicyEvaluator
from cuvee.learning.offline import top_quantile
from cuvee.loop import run
from cuvee.policies.feedback import Feedback
from cuvee.policies.fixed import Fixed
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.continual import continual
from cuvee.simulation.curves import CurveModel, fit_curves
from cuvee.simulation.simulator import Simulator
from cuvee.testing.store import record
from cuvee.testing.toy import make_nothing

T = 5
LAWS, DOMAINS = continual(2, 1, 0, intervals=T)
RISKY = np.array([0.1, 0.1, 0.8])


class Evaluation:
    name = "evaluation"


def played(number: int, policy: Any = None) -> Run:
    policy = policy or ScoringSampler(0, number)
    policy.probes = (Evaluation(),)
    trajectory = run(Simulator(LAWS, seed=number, domains=DOMAINS), policy)
    return Run(f"run-{number}", number, {}, trajectory)


def broken(number: int, after: int, diverged: bool) -> Run:
    """A run on a risky mixture that broke off."""
    names = [domain.name for domain in DOMAINS]
    whole = played(100 + number, Fixed(Mixture.normalise(names, RISKY)))
    path = whole.trajectory
    cut = Trajectory(path.signals[: after + 1], path.mixtures[:after])
    return replace(whole, trajectory=cut, diverged=diverged)


RUNS = [played(number) for number in range(12)]
STOPPED = [broken(number, 3, False) for number in range(4)]
DIVERGED = [broken(number, 3, True) for number in range(4)]


def test_a_run_that_ended_early_is_continued_to_the_length_of_the_others() -> None:
    (space,) = spaces_of([*RUNS, STOPPED[0], DIVERGED[0]], Feedback())
    stopped, diverged = space.trajectories[-2:]
    ends = [float(Feedback()(one.trajectory).values[-1]) for one in RUNS]
    assert len(stopped) == len(diverged) == T
    assert Feedback()(stopped).present.tolist() == [True] * 4 + [False] * 2
    assert Feedback()(diverged).values[-1] == pytest.approx(min(ends))
    np.testing.assert_allclose(diverged.weights_TK(), np.tile(RISKY, (T, 1)))
    assert len(STOPPED[0].trajectory) == 3, "the logged run is unchanged"
    assert spaces_of([DIVERGED[0]], Feedback()) == []


def value_of(more: list[Run]) -> float:
    (space,) = spaces_of([*RUNS, *more], Feedback())
    judge = OffPolicyEvaluator(space.trajectories, {"uniform": np.full(3, 1 / 3)})
    names = [domain.name for domain in DOMAINS]
    policy = Fixed(Mixture.normalise(names, RISKY))
    policy.probes = ()
    return judge(policy).value.mean


def test_divergence_is_evidence_against_a_mixture_and_a_stop_is_not() -> None:
    bare, stopped, diverged = (value_of(more) for more in ([], STOPPED, DIVERGED))
    ends = [float(Feedback()(one.trajectory).values[-1]) for one in RUNS]
    assert diverged < bare - 0.5 * np.std(ends)
    assert abs(stopped - bare) < abs(diverged - bare)


def test_the_laws_learn_from_it_too() -> None:
    path = torch.from_numpy(np.tile(RISKY, (T, 1))).float()

    def expected(more: list[Run]) -> float:
        (space,) = spaces_of([*RUNS, *more], Feedback())
        model: CurveModel = fit_curves(space.trajectories, members=2, steps=60)
        with torch.no_grad():
            return float(model.weight_M @ model.gains(path))

    bare, stopped, diverged = (expected(more) for more in ([], STOPPED, DIVERGED))
    assert np.isfinite(stopped)
    assert diverged < bare
    assert abs(stopped - bare) < abs(diverged - bare)


def test_the_end_of_a_diverged_run_is_terminal_and_that_of_a_stopped_run_is_not() -> None:
    stopped, diverged = (
        as_episode(one.trajectory, Feedback(), one.diverged) for one in (STOPPED[0], DIVERGED[0])
    )
    assert (stopped.terminated, stopped.stopped) == (False, True)
    assert (diverged.terminated, diverged.stopped) == (True, False)
    whole = [as_episode(one.trajectory, Feedback()) for one in RUNS]
    steady = [one._replace(rewards_T=np.ones(T, np.float32)) for one in whole]
    scale = ReturnScale.of(steady, 1.0)
    cut = np.ones(3, np.float32)
    shaped = [scale.shaped(one._replace(rewards_T=cut), T, 1.0) for one in (stopped, diverged)]
    sums = [float(one.sum()) * scale.scale for one in shaped]
    assert sums == pytest.approx([0.0, -2.0], abs=0.05), "what all others gained in two intervals"
    lucky = diverged._replace(rewards_T=10 * cut)
    assert top_quantile([*whole, lucky], 0.2)[-1] is False


def test_learning_uses_them_and_says_so() -> None:
    settings = LearnSettings.of(
        {
            "architecture": {"hidden": 8, "layers": 1, "heads": 1, "action": 4},
            "bc_updates": 1,
            "updates": 2,
            "batch_size": 4,
            "draws": 2,
        }
    )
    found = learn([*RUNS, STOPPED[0], replace(DIVERGED[1], id="bad")], Feedback(), settings)
    assert found.provenance["ended_early"] == {
        "run-100": "stopped after interval 3",
        "bad": "diverged after interval 3",
    }
    assert not {"run-100", "bad"} & set(found.held_out)
    assert next(iter(found.estimates.values())).value.pairs == 14


def test_failed_runs_come_back_from_the_store_with_what_they_recorded(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        fleet = LocalFleet(store, make_nothing, {}, group="g", max_attempts=1)
        reasons = [f"{DivergedError.__name__}: loss", "TrainingError: out of memory", "lost"]
        for number, reason in enumerate(reasons):
            weight = 0.1 + 0.2 * number
            claim = store.claim_run(
                fleet.plan(Fixed(Mixture.of({"web": weight, "code": 1 - weight}))), "worker"
            )
            if number < 2:
                record(claim, 2)
            claim.fail(reason)
        found = fleet.failed()
        assert sorted((len(one.trajectory), one.diverged) for one in found) == [
            (1, False),
            (1, True),
        ]
        assert fleet.load() == []

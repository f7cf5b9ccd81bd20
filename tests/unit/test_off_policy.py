"""Off-policy evaluation from logged runs: the dynamics model, intervals, support."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import divided_shares
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Trajectory
from cuvee.learning import off_policy
from cuvee.learning.off_policy import (
    OffPolicyEvaluator,
    _DifferenceError,
    static_candidates,
)
from cuvee.loop import run
from cuvee.policies.fixed import Fixed
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.policies.paced import Paced
from cuvee.simulation import dynamics_model as fitted_run
from cuvee.simulation.continual import continual, feedback_gain
from cuvee.simulation.dynamics_model import (
    DynamicsModel,
    Logged,
    Regression,
    as_logged,
    path_features,
)
from cuvee.simulation.simulator import Simulator

LAWS, SMALL = continual(3, 2, seed=0, intervals=8)
DOMAINS = tuple(replace(one, tokens=100 * one.tokens) for one in SMALL)  # no text is scarce
NAMES = [domain.name for domain in DOMAINS]
TARGETS = np.array([domain.is_target for domain in DOMAINS])
UNIFORM = np.full(5, 0.2)


class Named:
    name = "evaluation"


class Path:
    """Plays a path (T, K)."""

    def __init__(self, weights_TK: FloatArray) -> None:
        self.weights_TK = weights_TK
        self.probes = (Named(),)

    def mixture(self, so_far: Trajectory) -> Mixture:
        return Mixture.normalise(so_far.names, self.weights_TK[len(so_far)])

    def learn(self, so_far: Trajectory) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


def walk(number: int) -> Trajectory:
    sampler = ScoringSampler(0, number)
    sampler.probes = (Named(),)
    return run(Simulator(LAWS, seed=number, domains=DOMAINS), sampler)


@pytest.fixture(scope="module")
def walks() -> list[Trajectory]:
    return [walk(number) for number in range(48)]


@pytest.fixture(scope="module")
def evaluator(walks: list[Trajectory]) -> OffPolicyEvaluator:
    returns = [gain_of(one) for one in walks[16:]]
    return OffPolicyEvaluator(walks, static_candidates(walks[16:], returns, 0.2))


def gain_of(trajectory: Trajectory) -> float:
    return feedback_gain(LAWS, torch.from_numpy(trajectory.weights_TK()))


def test_what_a_domain_has_had_adds_up_and_fades() -> None:
    features = path_features(
        np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([False, True, True])
    )
    assert features[:, :3].tolist() == [
        [0, 0, 0],
        [0.5, 0, 0],
        [0.5, 0.5, 0],
    ]  # nothing fades at decay 1
    own = 6 * 3
    assert features[:, [own, own + 3]].tolist() == [[0, 0], [0.5, 0], [0.5, 0.25]], (
        "the mean domain of each field"
    )
    even = path_features(np.array([[0.0, 0.5, 0.5]] * 2), np.array([False, True, True]))
    assert even[-1, own + 3] == features[-1, own + 3] * 2, (
        "as much of the field in one interval as in two"
    )
    skewed = path_features(np.array([[0.0, 1.0, 0.0]] * 2), np.array([False, True, True]))
    assert even[-1, own + 5] > skewed[-1, own + 5], "how evenly it was read"
    faded = features[:, [6, 7, 8, own + 6, own + 9]]
    assert faded[1].tolist() == [0.5, 0, 0, 0.5, 0]
    # a decay counts a twentieth of the budget
    assert faded[2].tolist() == pytest.approx([0.5 * 0.9**10, 0.5, 0, 0.5 * 0.9**10, 0.25])
    assert features[:, -2].tolist() == [0, 0.5, 1]


def test_the_regression_predicts_runs_that_it_has_not_seen(walks: list[Trajectory]) -> None:
    fitted = Regression([as_logged(one) for one in walks[16:]])
    asked = [as_logged(one) for one in walks[:16]]
    truth = np.array([one.measured_TY[-1] - one.measured_TY[0] for one in asked])
    found = np.array([fitted.at_end(one.weights_TK) for one in asked])
    assert found.shape == (16, 2 + 5)
    explained = 1 - (found - truth).var(axis=0) / truth.var(axis=0)
    assert (explained[:2] > 0.8).all(), explained  # losses are those of few tokens, and noisy


@pytest.mark.parametrize(("ridges", "off"), [(fitted_run._RIDGES, 0.15), ((1e-6,), 1e-4)])
def test_runs_that_measured_exactly_what_the_features_say_are_fitted_but_for_the_ridge(
    ridges: tuple[float, ...], off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The targets have a deviation of 1 to 1.6. The smallest ridge penalty costs up to 0.13."""
    monkeypatch.setattr(fitted_run, "_RIDGES", ridges)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(path_features(UNIFORM[None], TARGETS).shape[1], 2))
    paths = rng.dirichlet(np.ones(5), size=(60, 4))
    runs = [Logged(path, path_features(path, TARGETS) @ truth, TARGETS) for path in paths]
    fitted = Regression(runs[:50])
    for one in runs[50:]:
        expected = one.measured_TY[-1] - one.measured_TY[0]
        assert fitted.at_end(one.weights_TK) == pytest.approx(expected, abs=off)


def test_a_fitted_run_is_a_trainer_in_the_circumstances_of_its_example(
    walks: list[Trajectory],
) -> None:
    fitted = Regression([as_logged(one) for one in walks])
    path = run(DynamicsModel(fitted, walks[0]), Fixed(Mixture.normalise(NAMES, [1, 1, 0, 1, 1])))
    assert len(path) == len(walks[0])
    assert path.domains == walks[0].domains
    assert [signals.step for signals in path.signals] == [
        signals.step for signals in walks[0].signals
    ]
    assert path.last.progress == 1.0
    assert path.last.loss.present.tolist() == [True, True, False, True, True]
    last = fitted.start_Y + fitted.at_end(path.weights_TK())
    assert path.last.probes["evaluation"].values == pytest.approx(last[:2])


def test_better_policies_get_higher_estimates_and_the_truth_lies_within(
    evaluator: OffPolicyEvaluator, walks: list[Trajectory]
) -> None:
    best = walks[16 + int(np.argmax([gain_of(one) for one in walks[16:]]))].weights_TK()
    worst = walks[16 + int(np.argmin([gain_of(one) for one in walks[16:]]))].weights_TK()
    good, bad, even = (evaluator(Path(path)) for path in (best, worst, np.tile(UNIFORM, (8, 1))))
    assert good.gain.mean > even.gain.mean > bad.gain.mean
    behaviour = np.mean([gain_of(one) for one in walks])
    for estimate, path in ((good, best), (bad, worst)):
        truth = feedback_gain(LAWS, torch.from_numpy(path)) - behaviour
        assert estimate.gain.low is not None
        assert estimate.gain.high is not None
        assert estimate.gain.low < truth < estimate.gain.high
    assert not bad.supported
    assert bad.gain.high is not None
    assert bad.gain.mean < 0


@pytest.mark.parametrize(
    ("poor", "supported"), [(0.6, True), (0.0, False), (-0.02, False), (-0.6, False)]
)
def test_a_policy_is_supported_if_it_is_surely_better_than_behaviour_and_the_fallback(
    walks: list[Trajectory], poor: float, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`poor` is how far the static mixture lies from the best one towards behaviour. If
    negative, the policy lies that far. The only mixture that is divided by role is a poor one."""
    monkeypatch.setattr(off_policy, "_DIVISIONS", [(0.2, 0.0)])
    monkeypatch.setattr(off_policy, "PRIOR", (0.2, 0.0))
    best_K = LAWS.best_static().numpy()
    behaviour_K = np.mean([one.weights_TK().mean(axis=0) for one in walks], axis=0)
    static_K, planted_K = (
        best_K + max(0.0, share) * (behaviour_K - best_K) for share in (poor, -poor)
    )
    planted_TK = np.tile(planted_K, (8, 1))
    truth = feedback_gain(LAWS, torch.from_numpy(planted_TK))
    assert truth > np.mean([gain_of(one) for one in walks])
    assert (truth < feedback_gain(LAWS, LAWS.best_static().expand(8, -1))) == (poor < 0)
    evaluator = OffPolicyEvaluator(walks, {"best": static_K})
    assert evaluator.static_K == pytest.approx(static_K), "surely above the one divided by role"
    estimate = evaluator(Path(planted_TK))
    assert estimate.gain.low is not None
    assert (estimate.gain.low > 0) == (poor > -0.6), (
        "further off, not even behaviour is surely worse"
    )
    assert (estimate.over_static.mean >= 0) == (poor >= 0)
    assert estimate.within_reach
    assert estimate.supported == estimate.figures()["supported"] == supported


def test_a_difference_smaller_than_the_error_of_the_fit_supports_nothing(
    walks: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prior is .006 below the best mixture."""
    monkeypatch.setattr(off_policy, "PRIOR", (0.9, 0.5))
    planted_TK = LAWS.best_static().expand(8, -1).numpy()
    estimate = OffPolicyEvaluator(walks, {"uniform": UNIFORM})(Path(planted_TK))
    low, high = estimate.over_static.low, estimate.over_static.high
    assert low is not None
    assert high is not None
    static_TK = torch.from_numpy(np.tile(estimate.static_K, (8, 1)))
    truth = feedback_gain(LAWS, torch.from_numpy(planted_TK)) - feedback_gain(LAWS, static_TK)
    assert low < 0 < truth < high
    assert not estimate.supported


def test_errors_twice_as_large_widen_every_interval_that_decides(
    evaluator: OffPolicyEvaluator, walks: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = OffPolicyEvaluator._missed
    monkeypatch.setattr(OffPolicyEvaluator, "_missed", lambda judge: 2 * missed(judge))
    unsure = OffPolicyEvaluator(walks, {"uniform": UNIFORM})
    path = Path(walks[0].weights_TK())
    for name in ("gain", "over_static"):
        narrow, wide = (getattr(judge(path), name) for judge in (evaluator, unsure))
        assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_more_policies_compared_widen_the_intervals_that_decide(
    evaluator: OffPolicyEvaluator, walks: list[Trajectory]
) -> None:
    many = OffPolicyEvaluator(walks, {"uniform": UNIFORM}, looks=10)(Path(walks[0].weights_TK()))
    once = evaluator(Path(walks[0].weights_TK()))
    assert many.over_static.level == pytest.approx(1 - 0.05 / 10)
    assert once.over_static.level == once.value.level == many.value.level == 0.95
    for name in ("gain", "over_static"):
        assert getattr(many, name).low < getattr(once, name).low


def test_the_error_of_a_difference_grows_with_the_distance_and_is_never_zero() -> None:
    rng = np.random.default_rng(0)
    paths = rng.dirichlet(np.ones(5), size=(64, 4))
    errors = rng.normal(size=64)
    differences = _DifferenceError.of(errors, np.arange(64) % 8, paths)
    same, near, far = (
        differences.errors(paths[0], (1 - share) * paths[0] + share * paths[1]).std()
        for share in (0.0, 0.1, 1.0)
    )
    assert 0 < same < near < far
    assert far == pytest.approx(np.sqrt(2), rel=0.4), "pairs differ by √2 times one error"


def test_the_static_mixture_is_chosen_with_all_looks_counted(
    walks: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[float] = []
    compared = off_policy._compared

    def spied(*given: Any) -> Any:
        levels.append(given[-1])
        return compared(*given)

    monkeypatch.setattr(off_policy, "_compared", spied)
    OffPolicyEvaluator(walks, {str(n): one.weights_TK()[0] for n, one in enumerate(walks[:5])})
    assert set(levels) == {1 - (1 - 0.95) / (27 + 5)}


def test_where_evidence_is_weak_the_prior_is_played(evaluator: OffPolicyEvaluator) -> None:
    """Others have higher estimates, by less than the error. The one with the highest is worse."""
    prior_K = np.array(list(divided_shares(DOMAINS, 0.5, 1.0).values()))
    assert evaluator.static_K == pytest.approx(prior_K)
    assert evaluator.by_role == (0.5, 1.0)
    assert evaluator.is_prior
    mixtures = [
        np.array(list(divided_shares(DOMAINS, *one).values())) for one in off_policy._DIVISIONS
    ]
    first_K = max(mixtures, key=lambda mixture_K: evaluator._earned(evaluator.held(mixture_K)))
    assert held_gain(first_K) < held_gain(prior_K)


@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize(("times", "leaves"), [(1.0, True), (20.0, False)])
def test_where_evidence_is_strong_the_prior_is_left(
    walks: list[Trajectory],
    planted: bool,
    times: float,
    leaves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prior is planted: it reads almost no target. What is better is divided by role, or one
    that is `planted`. With errors 20 times as large, the same data leave nothing."""
    missed = OffPolicyEvaluator._missed
    monkeypatch.setattr(OffPolicyEvaluator, "_missed", lambda judge: times * missed(judge))
    monkeypatch.setattr(off_policy, "PRIOR", (0.02, 1.0))
    if planted:
        monkeypatch.setattr(off_policy, "_DIVISIONS", [(0.1, 1.0)])
    best_K = LAWS.best_static().numpy()
    found = OffPolicyEvaluator(walks, {"planted": best_K if planted else UNIFORM})
    poor_K = np.array(list(divided_shares(DOMAINS, 0.02, 1.0).values()))
    assert found.is_prior == (not leaves)
    if leaves:
        assert np.array_equal(found.static_K, best_K) == planted
        assert held_gain(found.static_K) > held_gain(poor_K)
    else:
        assert found.static_K == pytest.approx(poor_K)
    estimate = found(Path(np.tile(found.static_K, (8, 1))))
    assert estimate.figures()["static_is_prior"] == (not leaves)


def held_gain(mixture_K: FloatArray) -> float:
    return feedback_gain(LAWS, torch.from_numpy(np.tile(mixture_K, (8, 1))))


def test_on_a_scarce_target_the_prior_is_what_even_plays() -> None:
    tokens = round(LAWS.interval * 8)
    domains = tuple(
        replace(one, tokens=round(0.02 * tokens)) if one.is_target else one for one in DOMAINS
    )

    def logged(number: int) -> Trajectory:
        sampler = ScoringSampler(0, number)
        sampler.probes = (Named(),)
        return run(Simulator(LAWS, seed=number, domains=domains), sampler)

    runs = [logged(number) for number in range(8)]
    judge = OffPolicyEvaluator(runs, {"uniform": UNIFORM})
    targets = {one.name: 1.0 for one in domains if one.is_target}
    even = Paced(
        power=0.0, objective=targets, epochs=dict.fromkeys(targets, 4.0), tokens=tokens
    ).mixture(Trajectory.start(runs[0].signals[0]))
    prior_K = np.array(list(divided_shares(domains, *off_policy.PRIOR).values()))
    assert judge.held(prior_K)[-1] == pytest.approx(even.weights_K, abs=1e-4)
    assert judge.held(prior_K)[-1][TARGETS] == pytest.approx(0.08, abs=1e-4)


def test_a_static_mixture_that_is_not_surely_better_is_divided_by_role(
    walks: list[Trajectory],
) -> None:
    behaviour_K = np.mean([one.weights_TK().mean(axis=0) for one in walks], axis=0)
    evaluator = OffPolicyEvaluator(walks, {"behaviour": behaviour_K})
    assert evaluator.static_K == pytest.approx(
        list(divided_shares(DOMAINS, *evaluator.by_role).values())
    )
    assert evaluator.static_K != pytest.approx(behaviour_K, abs=0.01)


def test_a_mixture_that_no_run_tried_is_out_of_reach(evaluator: OffPolicyEvaluator) -> None:
    alone = np.zeros((8, 5))
    alone[:, 1] = 1.0
    estimate = evaluator(Path(alone))
    assert estimate.outside > 0.25
    assert not estimate.within_reach
    assert not estimate.supported
    assert evaluator(Path(np.tile(UNIFORM, (8, 1)))).outside < 0.25


def test_evaluation_is_deterministic_and_says_so_in_plain_json(
    evaluator: OffPolicyEvaluator,
) -> None:
    import json

    path = Path(np.tile(UNIFORM, (8, 1)))
    first, second = evaluator(path).figures(), evaluator(path).figures()
    assert first == second
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert first["gain_low"] <= first["gain"] <= first["gain_high"]
    assert first["runs"] == 48


def test_the_static_mixture_is_one_of_those_that_might_be_best(walks: list[Trajectory]) -> None:
    returns = [gain_of(one) for one in walks[:10]]
    found = static_candidates(walks[:10], returns, 0.2)
    assert len(found) == 2 + 2
    best = int(np.argmax(returns))
    assert found[f"mean of run {best}"] == pytest.approx(walks[best].weights_TK().mean(axis=0))
    assert found["uniform"] == pytest.approx(UNIFORM)


def test_losses_that_were_absent_are_taken_as_last_known(walks: list[Trajectory]) -> None:
    measured_TY = as_logged(walks[0]).measured_TY
    assert np.isfinite(measured_TY).all()
    first = walks[0].signals[0].loss
    assert not first.present.any()
    assert measured_TY[0, 2:] == pytest.approx(measured_TY[1, 2:])

"""Fits, the choice within bounds, the verdict on stages, the next runs, MixMin, and
recommendations on planted truths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.recommend import words
from cuvee.recommend.checks.protocol import repetition_warnings
from cuvee.recommend.choose import Bounds, choose, optimise, splits
from cuvee.recommend.design import pick, propose_next
from cuvee.recommend.fits import Surrogate, features, fit_surrogate
from cuvee.recommend.mixmin import mixmin_of
from cuvee.recommend.plan import Plan, Stage
from cuvee.recommend.recommend import Recommendation, Request, recommend
from cuvee.recommend.table import Runs, runs_of
from cuvee.recommend.tokens import mean_lengths, planned_against_achieved, to_samples, to_tokens
from cuvee.simulation.simulator import ScalingLaws
from cuvee.testing.runs import example_domains, example_run

NAMES = ("web", "code", "maths")
BEST = np.array([0.5, 0.3, 0.2])


def planted(paths: Any) -> Any:
    """(M, 2): the first metric is lowest at BEST in any order; the second falls with maths."""
    mean = paths.mean(axis=1)
    first = 3.0 + 4.0 * np.square(mean - BEST).sum(axis=1)
    return np.stack([first, 2.0 - 0.3 * np.log(mean[:, 2] + 0.02)], axis=1)


def table(count: int = 40, phases: int = 1, noise: float = 0.005) -> Runs:
    rng = np.random.default_rng(3)
    paths = rng.dirichlet(np.ones(3), (count, phases))
    values = planted(paths) + noise * rng.normal(size=(count, 2))
    shares = np.full(phases, 1 / phases)
    return Runs(tuple(map(str, range(count))), NAMES, ("loss", "maths"), paths, values, shares)


def surrogate_of(runs: Runs, objective: dict[str, float] | None = None) -> Surrogate:
    usable, costs = runs.usable(objective)
    return fit_surrogate(usable, costs, ["gaussian_process"])


@pytest.fixture(scope="module")
def fitted() -> Surrogate:
    return surrogate_of(table(), {"loss": 1.0})


@pytest.fixture(scope="module")
def found() -> Recommendation:
    runs = Runs(**{**table().__dict__, "available": {"web": 500, "code": 400, "maths": 50}})
    return recommend(runs, Request({"loss": 1.0}, tokens=1000, pareto=("loss", "maths")))


def test_the_best_mixture_is_found(fitted: Surrogate) -> None:
    choice = choose(fitted, Bounds.of(NAMES), table().mixtures_NPK)
    assert choice.is_tied
    assert choice.path_PK[0] == pytest.approx(BEST, abs=0.03)


def test_predictions_cover_what_is_true(fitted: Surrogate) -> None:
    asked = np.random.default_rng(9).dirichlet(np.ones(3), (200, 1))
    real = planted(asked) + 0.005 * np.random.default_rng(8).normal(size=(200, 2))
    inside = np.abs(fitted.means(asked) - real) <= fitted.half_widths(asked)
    assert inside.mean() > 0.85
    assert fitted.evidence.ranks.value > 0.98
    assert 0 <= fitted.evidence.regret < 0.05 * fitted.evidence.regret_of_chance
    assert fitted.evidence.noise["loss"] == pytest.approx(0.005, rel=0.8)


def test_a_paired_difference_is_surer_than_two_predictions(fitted: Surrogate) -> None:
    one, other = np.array([[0.5, 0.3, 0.2]]), np.array([[0.48, 0.31, 0.21]])
    paired = fitted.difference(one, other)
    assert paired.low is not None
    assert paired.high is not None
    assert paired.low <= float(np.subtract(*planted(np.stack([one, other]))[:, 0])) <= paired.high
    assert paired.high - paired.low < fitted.objective_half_width(np.stack([one, other])).sum()
    itself = fitted.difference(one, one)
    assert (itself.mean, itself.low, itself.high) == pytest.approx((0, 0, 0), abs=1e-6)


def test_weights_of_the_fits_favour_the_one_that_predicts() -> None:
    runs, costs = table(60).usable(None)
    weights = fit_surrogate(runs, costs, ["gaussian_process", "log_linear"]).evidence.weights
    assert weights["loss"]["gaussian_process"] > 0.8
    assert sum(weights["loss"].values()) == pytest.approx(1.0)


def test_a_metric_that_is_only_noise_gives_no_claim_and_a_wide_interval() -> None:
    rng = np.random.default_rng(4)
    noise = 3 + 0.01 * rng.normal(size=(24, 1))
    mixtures = rng.dirichlet(np.ones(3), (24, 1))
    runs = Runs(tuple(map(str, range(24))), NAMES, ("loss",), mixtures, noise, np.ones(1))
    found = recommend(runs)
    assert found.surrogate.evidence.weights["loss"]["constant"] > 0.5
    assert "constant" not in found.surrogate.evidence.ranks_by_fit
    assert found.change.high is not None
    assert found.change.high > 0
    interval = found.predicted.metrics["loss"]
    assert interval.low < 3.0 < interval.high
    assert interval.high - interval.low > 2 * 0.01, "wider than one deviation on each side"


def test_repeats_of_a_mixture_measure_the_noise() -> None:
    runs = table(20)
    again = Runs(
        **{
            **runs.__dict__,
            "names": tuple(map(str, range(40))),
            "mixtures_NPK": np.concatenate([runs.mixtures_NPK] * 2),
            "values_ND": np.concatenate([runs.values_ND, runs.values_ND + 0.02]),
        }
    )
    known = surrogate_of(again).evidence
    assert known.noise_measured
    assert known.noise["loss"] == pytest.approx(0.02 / np.sqrt(2))


def test_order_is_left_out_where_it_does_not_matter() -> None:
    runs = table(60, phases=2)
    surrogate = surrogate_of(runs, {"loss": 1.0})
    choice = choose(surrogate, Bounds.of(NAMES), runs.mixtures_NPK)
    assert not surrogate.order
    assert choice.is_tied
    assert choice.path_PK[0] == pytest.approx(choice.path_PK[1])


def test_two_stages_are_recommended_where_the_order_surely_matters() -> None:
    laws = ScalingLaws.draw(3, 1, intervals=20, forgetting=0.4)
    rng = np.random.default_rng(0)
    paths = rng.dirichlet(np.ones(3), (72, 2))

    def truth(asked: Any) -> Any:
        whole = torch.from_numpy(np.repeat(asked, 10, axis=1))
        return np.array([laws.losses(one)[-1].numpy() for one in whole])

    values = truth(paths) + 0.003 * rng.normal(size=(72, 3))
    runs = Runs(tuple(map(str, range(72))), NAMES, NAMES, paths, values, np.array([0.5, 0.5]))
    costs = dict(zip(NAMES, laws.value_K.tolist(), strict=True))
    recommended = recommend(runs, Request(costs))
    assert len(recommended.plan.stages) == 2
    assert recommended.plan.stages[0].end == 0.5
    assert words.verdict(recommended)[0].startswith("Phased: 2 stages.")
    gained = recommended.choice.gained
    assert gained is not None
    assert gained.high is not None
    assert gained.high < 0
    one = recommend(runs, Request(costs, most_stages=1))
    both = np.stack([recommended.choice.path_PK, one.choice.path_PK])
    phased, tied = truth(both) @ laws.value_K.numpy()
    assert phased < tied


def test_three_phases_split_in_every_way() -> None:
    assert splits(3, 2) == [((0,), (1, 2)), ((0, 1), (2,))]
    assert splits(3, 3) == [((0,), (1,), (2,))]
    paths = np.zeros((5, 3, 2))
    assert features(paths, np.full(3, 1 / 3), True).shape == (5, 6)


def test_bounds_that_no_mixture_meets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no domain 'wbe'; did you mean 'web'"):
        Bounds.of(NAMES, caps={"wbe": 0.1})
    with pytest.raises(ConfigError, match="leave room for 60"):
        Bounds.of(NAMES, caps=dict.fromkeys(NAMES, 0.2))
    with pytest.raises(ConfigError, match="leave room for 40"):
        Bounds.of(NAMES, available=dict.fromkeys(NAMES, 10), tokens=300, epoch_cap=4)
    with pytest.raises(ConfigError, match=r"the floor of web is 0\.2 and its cap 0\.1"):
        Bounds.of(NAMES, caps={"web": 0.1}, floors={"web": 0.2})


def test_caps_may_sum_to_one_up_to_rounding() -> None:
    bounds = Bounds.of(NAMES, caps={"web": 0.7, "code": 0.2, "maths": 0.1 - 1e-12})
    path = bounds.within(np.full((1, 1, 3), 1 / 3), np.ones(1))[0, 0]
    assert path == pytest.approx([0.7, 0.2, 0.1])


def test_caps_and_floors_hold(fitted: Surrogate) -> None:
    bounds = Bounds.of(NAMES, caps={"web": 0.2}, floors={"maths": 0.4})
    path = choose(fitted, bounds, table().mixtures_NPK).path_PK
    assert path[0, 0] <= 0.2 + 1e-9
    assert path[0, 2] >= 0.4 - 1e-9
    assert path.sum(axis=1) == pytest.approx(1.0)


def test_the_search_is_the_same_twice(fitted: Surrogate) -> None:
    asked = [
        optimise(fitted.objective, Bounds.of(NAMES), table().mixtures_NPK, np.ones(1), ((0,),), 5)
        for _ in range(2)
    ]
    assert (asked[0] == asked[1]).all()


def test_the_next_runs_differ_and_are_near_the_best(fitted: Surrogate) -> None:
    few = surrogate_of(table(10), {"loss": 1.0})
    chosen = propose_next(few, Bounds.of(NAMES), table(10).mixtures_NPK, 4)
    assert chosen.shape == (4, 1, 3)
    apart = [0.5 * np.abs(a - b).sum() for n, a in enumerate(chosen) for b in chosen[:n]]
    assert min(apart) > 0.005
    real = planted(chosen)[:, 0]
    assert real.min() < np.median(table(10).values_ND[:, 0])


def test_a_run_that_is_done_is_not_proposed_while_others_promise_more(fitted: Surrogate) -> None:
    pool = np.concatenate([table().mixtures_NPK[:5], BEST[None, None]])
    assert pick(fitted, pool, table().mixtures_NPK, 1)[0] == 5
    assert sorted(pick(fitted, pool, table().mixtures_NPK, 9)) == list(range(6))


def test_epochs_caps_and_the_change_are_reported(found: Recommendation) -> None:
    epochs = found.plan.epochs()
    assert epochs["maths"] <= 4.0 + 1e-6
    assert epochs["web"] == pytest.approx(found.plan.mean["web"] * 1000 / 500)
    assert found.present["web"] == pytest.approx(500 / 950)
    assert found.change.mean == pytest.approx(
        found.predicted.objective.mean - found.present_predicted.objective.mean
    )
    assert found.predicted.metrics["loss"].low < found.predicted.metrics["loss"].high


def test_the_front_goes_from_one_metric_to_the_other(found: Recommendation) -> None:
    first = [one.metrics["loss"].mean for _, one in found.front]
    second = [one.metrics["maths"].mean for _, one in found.front]
    assert first[0] == min(first)
    assert second[-1] == min(second)
    assert first[-1] > first[0]


def test_the_document_is_plain_json_and_gives_the_plan_back(found: Recommendation) -> None:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Plan.from_json(document["plan"]) == found.plan
    text = words.text(found)
    assert "Tied: one mixture for the whole run." in text
    assert "Pareto front of loss and maths" in text
    with pytest.raises(ConfigError, match="no plan of `cuvee recommend`"):
        Plan.from_json({"stages": [{}], "tokens": None, "available": {}})


def test_runs_with_curves_use_the_dynamics_model() -> None:
    logged = [example_run("odm", seed, domains=example_domains(2, 1)) for seed in range(16)]
    recommended = recommend(runs_of(logged))
    assert "dynamics_model" in recommended.surrogate.evidence.ranks_by_fit
    assert len(recommended.predicted.metrics) == 3


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"epoch_cap": 0.0}, "epoch_cap is 0"),
        ({"most_stages": 4}, "stages is 4"),
        ({"caution": float("inf")}, "caution is inf"),
        ({"present": {"web": -1.0, "code": 2.0}}, "--from: the weight of web is -1"),
        ({"pareto": ("loss", "loss")}, "names loss twice"),
        ({"floors": {"web": 0.6, "code": 0.6}}, "the floors sum to 1\\.2, which must be below 1"),
        ({"present": "even"}, "--from is 'even'"),
        ({"present": {"wiki": 1.0}}, "--from names wiki"),
        ({"pareto": ("loss", "no")}, "no metric 'no'"),
        ({"objective": {"lost": 1.0}}, "did you mean 'loss'"),
    ],
)
def test_a_mistake_in_the_request_is_named(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recommend(table(), Request(**request_))


def test_mixmin_finds_the_weights_that_made_the_examples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    likely = rng.dirichlet(np.ones(50), 3)
    truth = np.array([0.6, 0.3, 0.1])
    drawn = rng.choice(50, 20_000, p=truth @ likely)
    logs = np.log(likely[:, drawn].T)
    path = tmp_path / "outputs.csv"
    rows = "\n".join(",".join(map(str, row)) for row in logs.tolist())
    path.write_text(f"{','.join(NAMES)}\n{rows}\n")
    assert mixmin_of(path, NAMES).weights_K == pytest.approx(truth, abs=0.04)
    recommended = recommend(table(), Request({"loss": 1.0}, outputs=path))
    assert recommended.mixmin is not None
    assert recommended.mixmin[1].objective.low < recommended.mixmin[1].objective.high
    path.write_text("web,code,maths\n-1,0.5,-2\n")
    with pytest.raises(ConfigError, match="finite numbers of 0 or less"):
        mixmin_of(path, NAMES)


def test_model_outputs_that_are_no_numbers_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "outputs.csv"
    path.write_text("web,code,maths\n-1,-2,-3\n-1,x,-3\n")
    with pytest.raises(ConfigError, match=r"outputs\.csv, line 3: could not convert"):
        mixmin_of(path, NAMES)
    path.write_text("web,code,maths\n-1,,-3\n")
    with pytest.raises(ConfigError, match="needs log-probabilities"):
        mixmin_of(path, NAMES)


def test_weights_of_samples_follow_from_lengths() -> None:
    tokens = Mixture.of({"web": 0.5, "code": 0.5})
    lengths = mean_lengths({"web": [100, 300], "code": [5000, 3000]}, sequence_length=1000)
    assert lengths == {"web": 200.0, "code": 1000.0}
    samples = to_samples(tokens, lengths)
    assert samples.as_dict() == pytest.approx({"web": 5 / 6, "code": 1 / 6})
    assert to_tokens(samples, lengths).weights_K == pytest.approx(tokens.weights_K)
    with pytest.raises(ConfigError, match="no mean length is known of code"):
        to_samples(tokens, {"web": 3.0})
    lines = planned_against_achieved(tokens, {"web": 300, "code": 100})
    assert lines[0] == "web: planned 50.00%, achieved 75.00% (+25.00 points)"


def test_a_proxy_that_repeats_less_than_the_target_is_named() -> None:
    domains = (Domain("web", 10**9), Domain("maths", 10**6))
    mixture = Mixture.of({"web": 0.9, "maths": 0.1})
    warnings = repetition_warnings(domains, mixture, 10**6, 10**8)
    assert len(warnings) == 1
    assert "reads maths 0.1 times and the target run 10 times" in warnings[0]
    assert "give the proxy 10,000 of its 1,000,000 tokens" in warnings[0]
    assert repetition_warnings(domains, mixture, 10**6, 10**6) == []


def test_a_plan_runs_from_start_to_end() -> None:
    mixture = Mixture.of({"web": 1.0})
    with pytest.raises(ConfigError, match="they must run from 0 to 1"):
        Plan((Stage(0.0, 0.5, mixture),))
    with pytest.raises(ConfigError, match="same domains"):
        Plan((Stage(0.0, 0.5, mixture), Stage(0.5, 1.0, Mixture.of({"code": 1.0}))))

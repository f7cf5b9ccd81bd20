"""RegMix: its prior and cap, what it proposes, which runs it fits, what each fit recovers, and
what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Run, Trajectory
from cuvee.evaluation.ranks import rank_correlation
from cuvee.methods.regmix import method as regmix
from cuvee.methods.regmix.fit import FITS, cross_validated, installed
from cuvee.methods.regmix.gaussian_process import _negative_log_posterior, fit_gaussian_process
from cuvee.methods.regmix.method import RegMix, draw
from cuvee.methods.regmix.runs import Table
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.fixed import Fixed

DOMAINS = (
    Domain("web", 800_000),
    Domain("code", 150_000),
    Domain("mail", 40_000),
    Domain("maths", 10_000, role="target"),
)
NAMES = tuple(domain.name for domain in DOMAINS)


@dataclass(frozen=True)
class Space:
    domains: tuple[Domain, ...] = DOMAINS


def losses_of(mixtures_NK: Any) -> Any:
    """A planted truth: each loss falls as a power of its domain's share and, a little, of its
    neighbours' shares."""
    help_KK = np.eye(4) + 0.1 * (np.ones((4, 4)) - np.eye(4))
    return np.array([1.5, 2.0, 2.5, 1.0]) + 1.2 * (0.02 + np.asarray(mixtures_NK) @ help_KK) ** -0.3


def run_of(
    policy: Policy | Mixture, *, name: str = "", progress: float = 1.0, worse: bool = False
) -> Run:
    """A finished proxy under the planted truth."""
    before = Signals(
        DOMAINS,
        0,
        0.0,
        np.zeros(4, int),
        Measured.absent(4),
        {"valid_loss": Measured.all([7.0] * 4)},
    )
    mixture = policy if isinstance(policy, Mixture) else policy.mixture(Trajectory.start(before))
    loss_K = losses_of(mixture.weights_K) + 10.0 * worse
    after = Signals(
        DOMAINS,
        9,
        progress,
        np.ones(4, int),
        Measured.absent(4),
        {"valid_loss": Measured.all(loss_K)},
    )
    return Run(name or mixture.digest()[:12], 0, {}, Trajectory([before, after], [mixture]))


def proxies(method: RegMix) -> list[Run]:
    return [run_of(policy) for policy in method.propose(Space(), ())]


def mixture_of(policy: Policy) -> Mixture:
    return policy.mixture(run_of(Mixture.uniform(NAMES)).trajectory)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regmix, "_CANDIDATES", 4000)


def test_the_prior_has_the_published_mean_and_is_sparse() -> None:
    drawn = draw(DOMAINS, 20_000, np.random.default_rng(0))
    base_K = np.sqrt([domain.tokens for domain in DOMAINS])
    assert drawn.mean(axis=0) == pytest.approx(base_K / base_K.sum(), abs=0.01)
    assert 0.1 < (drawn == 0).mean() < 0.9
    assert drawn[drawn > 0].min() > 1e-4


def test_a_domain_of_almost_nothing_breaks_no_draw() -> None:
    tiny = (*DOMAINS, Domain("speck", 1))
    assert np.isfinite(draw(tiny, 1000, np.random.default_rng(0))).all()


def test_proxies_are_drawn_by_seed_and_more_of_them_keep_those_that_are_there() -> None:
    few, more = RegMix(proxies=8, seed=3), RegMix(proxies=12, seed=3)
    asked = [mixture_of(policy) for policy in more.propose(Space(), ())]
    assert [mixture_of(policy) for policy in few.propose(Space(), ())] == asked[:8]
    assert [
        mixture_of(policy) for policy in RegMix(proxies=8, seed=4).propose(Space(), ())
    ] != asked[:8]
    apart = [
        first.total_variation(second) for first in asked for second in asked if first is not second
    ]
    assert min(apart) > 0.005, "no run is spent on what another one tells"


def test_more_proxies_than_a_small_corpus_has_mixtures_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="over 1 domains only 1 mixtures"):
        RegMix(proxies=8).propose(Space(DOMAINS[:1]), ())


def test_only_what_is_missing_is_proposed_whatever_order_runs_ended_in() -> None:
    method = RegMix(proxies=10)
    logged = proxies(method)[::-1]
    assert tuple(method.propose(Space(), logged)) == ()
    (missing,) = method.propose(Space(), logged[:4] + logged[5:])
    assert mixture_of(missing) == logged[4].trajectory.mixtures[0]
    reordered = Mixture.of(dict(reversed(logged[4].trajectory.mixtures[0].as_dict().items())))
    assert (
        tuple(
            method.propose(
                Space(), [*logged[:4], replace_mixture(logged[4], reordered), *logged[5:]]
            )
        )
        == ()
    )


def replace_mixture(run: Run, *mixtures: Mixture) -> Run:
    before, after = run.trajectory.signals
    return replace(run, trajectory=Trajectory([before, *[after] * len(mixtures)], mixtures))


def some_mixtures(count: int) -> Any:
    """(count, 4) from the prior, no two nearly alike."""
    return np.array(
        [
            mixture_of(policy).weights_K
            for policy in RegMix(proxies=count, seed=1).propose(Space(), ())
        ]
    )


@pytest.mark.parametrize(
    ("name", "least"), [("gaussian_process", 0.98), ("lightgbm", 0.9), ("log_linear", 0.9)]
)
def test_each_fit_ranks_mixtures_that_it_has_not_seen(name: str, least: float) -> None:
    mixtures = some_mixtures(144)
    losses = losses_of(mixtures)[:, 1] + 0.01 * np.random.default_rng(2).normal(size=144)
    predicted = FITS[name](mixtures[:96], losses[:96])(mixtures[96:])
    assert rank_correlation(predicted, losses[96:], resamples=1).value > least


def test_log_linear_recovers_a_planted_law() -> None:
    mixtures = some_mixtures(200)
    planted = 1.7 + np.exp(mixtures @ np.array([-2.0, 0.4, 0.1, -0.6]))
    predict = FITS["log_linear"](mixtures[:40], planted[:40])
    assert predict(mixtures[40:]) == pytest.approx(planted[40:], abs=2e-3)


def test_the_gaussian_process_knows_a_steep_beginning_and_a_domain_that_does_not_matter() -> None:
    mixtures = some_mixtures(200)
    planted = 2.0 - 0.3 * np.log(mixtures[:, 1] + 0.01)
    predict = FITS["gaussian_process"](mixtures[:60], planted[:60])
    assert np.abs(predict(mixtures[60:]) - planted[60:]).max() < 0.05


def test_the_posterior_is_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    mixtures, values = some_mixtures(60), losses_of(some_mixtures(60))[:, 1]
    process = fit_gaussian_process(mixtures[:40], values[:40])

    def features(asked: Any) -> Any:
        return (np.log1p(asked * 4 / 0.05) - process.centre_K) / process.scale_K

    kernel = ConstantKernel(process.signal**2) * Matern(1.0, nu=2.5)
    other = GaussianProcessRegressor(kernel, alpha=process.noise**2 + 1e-8, optimizer=None)
    other.fit(features(mixtures[:40]), (values[:40] - process.mean) / process.spread)
    mean, covariance = other.predict(features(mixtures[40:]), return_cov=True)
    assert process(mixtures[40:]) == pytest.approx(process.mean + process.spread * mean, abs=1e-6)
    ours = process.covariance(mixtures[40:], mixtures[40:])
    assert ours == pytest.approx(process.spread**2 * covariance, abs=1e-7)
    assert process.deviation(mixtures[40:]) ** 2 == pytest.approx(np.diag(ours), abs=1e-9)


def test_the_search_for_hyper_parameters_follows_the_true_gradient() -> None:
    mixtures = some_mixtures(30)
    values = (losses_of(mixtures)[:, 0] - 3.0) / 0.5
    at, prior = np.array([0.3, -0.2, 0.5, 0.9, 0.1, -2.0]), np.zeros(6)

    def cost(logs: Any) -> Any:
        return _negative_log_posterior(logs, features_NK=mixtures, values_N=values, prior=prior)

    found = [(cost(at + 1e-5 * unit)[0] - cost(at - 1e-5 * unit)[0]) / 2e-5 for unit in np.eye(6)]
    assert cost(at)[1] == pytest.approx(np.array(found), rel=1e-5, abs=1e-5)


def test_many_mixtures_are_predicted_as_each_by_itself() -> None:
    mixtures = draw(DOMAINS, 5000, np.random.default_rng(0))
    predict = FITS["gaussian_process"](mixtures[:20], losses_of(mixtures[:20])[:, 0])
    assert predict(mixtures)[[0, 4095, 4096, 4999]] == pytest.approx(
        predict(mixtures[[0, 4095, 4096, 4999]])
    )


@pytest.mark.filterwarnings("error")
def test_a_loss_that_never_changes_is_predicted_as_it_is() -> None:
    mixtures = some_mixtures(30)
    for name, fit in FITS.items():
        assert fit(mixtures, np.full(30, 3.0))(mixtures) == pytest.approx(3.0, abs=1e-3), name


def test_cross_validation_never_shows_a_run_to_the_fit_that_predicts_it() -> None:
    def seen_only(mixtures: Any, losses: Any) -> Any:
        known = {tuple(mixture) for mixture in mixtures}
        return lambda asked: np.array([float(tuple(mixture) in known) for mixture in asked])

    mixtures = some_mixtures(23)
    assert (cross_validated(seen_only, mixtures, np.zeros((23, 2))) == 0).all()


@pytest.mark.parametrize("fit", ["gaussian_process", "log_linear"])
@pytest.mark.usefixtures("quick")
def test_it_commits_to_a_better_mixture_than_any_proxy_had(fit: Any) -> None:
    method = RegMix(proxies=64, fit=fit)
    runs = proxies(method)
    committed = mixture_of(method.commit(Space(), runs))
    ours = losses_of(committed.weights_K).mean()
    theirs = sorted(run.trajectory.last.probes["valid_loss"].values.mean() for run in runs)
    assert ours < theirs[1]
    assert ours < losses_of(np.array([d.tokens for d in DOMAINS]) / 1e6).mean()


@pytest.mark.usefixtures("quick")
def test_best_is_the_fit_that_ranks_unseen_proxies_best_and_says_so(tmp_path: Any) -> None:
    method = RegMix(proxies=40)
    runs = proxies(method)
    policy = method.commit(Space(), runs)
    assert isinstance(policy, Fixed)
    evidence = policy.evidence
    assert set(evidence["rank_correlations"]) == set(FITS)
    assert (
        evidence["rank_correlations"][evidence["fit"]]
        == max(evidence["rank_correlations"].values())
        > 0.8
    )
    assert (evidence["rank_correlation"]["runs"], evidence["missing"]) == (40, 0)
    assert evidence["predicted"]["code"] == pytest.approx(
        losses_of(mixture_of(policy).weights_K)[1], abs=0.3
    )
    save_policy(tmp_path / "policy", policy)
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, Fixed)
    assert loaded.evidence == evidence
    assert mixture_of(method.commit(Space(), runs[::-1])) == mixture_of(policy), (
        "the order of runs decides nothing"
    )


@pytest.mark.usefixtures("quick")
def test_no_domain_is_read_more_often_than_the_cap() -> None:
    method = RegMix(proxies=32, fit="log_linear", objective={"maths": 1.0})
    runs = proxies(method)
    assert mixture_of(method.commit(Space(), runs))["maths"] > 0.5
    limited = replace(method, tokens=400_000, epoch_cap=2.0)
    assert proxies(limited)[0].id == runs[0].id, "proxies serve targets of any length"
    committed = mixture_of(limited.commit(Space(), runs))
    assert committed["maths"] == pytest.approx(2.0 * 10_000 / 400_000, rel=1e-3)
    assert (
        committed.weights_K * 400_000 <= 2.0001 * np.array([domain.tokens for domain in DOMAINS])
    ).all()
    with pytest.raises(ConfigError, match="epoch_cap"):
        replace(method, tokens=10_000_000, epoch_cap=2.0).commit(Space(), runs)


def test_the_objective_is_a_mean_or_by_role_or_by_name() -> None:
    runs = proxies(RegMix(proxies=8))

    def values(objective: Any) -> dict[str, float]:
        table = Table.of(DOMAINS, runs, objective)
        return dict(zip(table.valued, table.values_D.tolist(), strict=True))

    assert values("valid_loss") == dict.fromkeys(NAMES, 0.25)
    assert values("source_target") == pytest.approx(
        {"web": 1 / 6, "code": 1 / 6, "mail": 1 / 6, "maths": 0.5}
    )
    assert values({"code": 3, "web": 1, "mail": 0}) == {"code": 0.75, "web": 0.25}


def test_runs_that_say_nothing_are_left_out_and_named() -> None:
    good = proxies(RegMix(proxies=9))
    uniform = Mixture.uniform(NAMES)
    moved = replace_mixture(run_of(uniform, name="moved"), uniform, good[0].trajectory.mixtures[0])
    stopped, diverged = (
        run_of(uniform, name="stopped", progress=0.4),
        run_of(uniform, name="diverged", worse=True),
    )
    unseen = run_of(uniform, name="unseen")
    unseen = replace(
        unseen,
        trajectory=Trajectory(
            [replace(s, probes={}) for s in unseen.trajectory.signals], [uniform]
        ),
    )
    table = Table.of(DOMAINS, [moved, stopped, diverged, unseen, *good], "valid_loss")
    assert len(table.mixtures_NK) == 9
    assert {run: why.split(":")[0] for run, why in table.left_out.items()} == {
        "moved": "has not kept one mixture",
        "stopped": "ended at 40% of its budget",
        "diverged": "has diverged",
        "unseen": "has no final validation loss of web, code, mail",
    }


def test_what_a_base_model_forgets_is_no_divergence() -> None:
    forgetful = replace(
        run_of(Mixture.uniform(NAMES), name="forgetful", worse=True),
        config={"proxy": {"model_sha256": "0"}},
    )
    table = Table.of(DOMAINS, [forgetful, *proxies(RegMix(proxies=8))], "valid_loss")
    assert (len(table.mixtures_NK), table.left_out) == (9, {})


def test_a_domain_without_a_validation_loss_does_not_count() -> None:
    def without_mail(run: Run) -> Run:
        absent = [
            replace(
                s,
                probes={
                    "valid_loss": Measured(
                        s.probes["valid_loss"].values, np.array([True, True, False, True])
                    )
                },
            )
            for s in run.trajectory.signals
        ]
        return replace(run, trajectory=Trajectory(absent, run.trajectory.mixtures))

    runs = [without_mail(run) for run in proxies(RegMix(proxies=8))]
    assert Table.of(DOMAINS, runs, "valid_loss").valued == ("web", "code", "maths")
    with pytest.raises(PolicyError, match="no final validation loss of mail"):
        Table.of(DOMAINS, runs, {"mail": 1.0})


def test_a_fit_that_knows_nothing_is_refused() -> None:
    method = RegMix(proxies=16, fit="log_linear")
    with pytest.raises(
        PolicyError,
        match=r"0 of 0 proxy runs can be fitted, at least 8 are needed: run the proxies first",
    ):
        method.commit(Space(), ())
    runs = [
        run_of(m.mixture(run_of(Mixture.uniform(NAMES)).trajectory))
        for m in method.propose(Space(), ())
    ]
    with pytest.raises(PolicyError, match="3 of 3"):
        method.commit(Space(), runs[:3])
    with pytest.raises(PolicyError, match="may be chance: train more proxies"):
        method.commit(Space(), shuffled(runs))


def shuffled(runs: Sequence[Run]) -> list[Run]:
    """Everybody with the losses of somebody else."""
    others = np.random.default_rng(0).permutation(len(runs))
    return [
        replace(run, trajectory=Trajectory(runs[other].trajectory.signals, run.trajectory.mixtures))
        for run, other in zip(runs, others, strict=True)
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"proxies": 3}, "proxies is 3"),
        ({"fit": "forest"}, "fit is 'forest'"),
        ({"tokens": 0}, "tokens is 0"),
        ({"epoch_cap": 0.0}, "epoch_cap is 0.0"),
        ({"objective": "accuracy"}, "objective is 'accuracy'"),
        ({"objective": {"web": 0.0}}, "objective is"),
        ({"objective": {"web": -1.0, "code": 2.0}}, "objective is"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RegMix(**options)


def test_an_objective_that_does_not_fit_the_corpus_is_refused() -> None:
    runs = proxies(RegMix(proxies=8))
    with pytest.raises(ConfigError, match="latin"):
        Table.of(DOMAINS, runs, {"latin": 1.0})
    sources = tuple(replace(domain, role="source") for domain in DOMAINS)
    with pytest.raises(ConfigError, match="--target"):
        Table.of(sources, runs, "source_target")


def test_a_fit_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuvee.methods.regmix.fit.find_spec", lambda name: None)
    assert installed("gaussian_process") == ("gaussian_process",)
    assert installed("best") == ("gaussian_process", "log_linear")
    with pytest.raises(ConfigError, match="pip install 'lightgbm"):
        RegMix(fit="lightgbm").propose(Space(), ())

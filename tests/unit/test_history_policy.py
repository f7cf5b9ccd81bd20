"""The Data Mixing Agent's policy: conformance, one file for any run, memory that is rebuilt,
and its fallback without support."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.agents.history import HistoryActor
from cuvee.core.domain import Domain, natural_K
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.learning.off_policy import PRIOR
from cuvee.loop import run
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.history.encoder import reference_mixture
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.policies.paced import Paced
from cuvee.simulation.continual import continual
from cuvee.simulation.simulator import Simulator
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains

TINY = {"hidden": 8, "layers": 1, "heads": 2, "action": 4}


def lively(policy: HistoryPolicy) -> HistoryPolicy:
    """The heads of an untrained actor hardly say anything: make them speak."""
    with torch.no_grad():
        policy.actor.head.weight.mul_(50.0)
        for head in policy.critic.heads:
            for parameter in head.parameters():
                parameter.mul_(50.0)
    return policy


def steered(
    policy: Policy, trainer: ScriptedTrainer, so_far: Trajectory | None = None
) -> Trajectory:
    so_far = so_far or Trajectory.start(trainer.start(policy.probes))
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        policy.learn(so_far)
    return so_far


class TestHistoryPolicy(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return lively(HistoryPolicy(TINY, temperature=0.5, floor=0.1, seed=1))


class TestOnItsFallback(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return HistoryPolicy(TINY, support={"supported": False}, fallback={"target": 0.3})


@pytest.mark.parametrize("K", [2, 12, 52, 104])
def test_an_untrained_policy_moves_from_the_source_to_the_reference(K: int) -> None:
    domains = some_domains(K)
    paths = steered(HistoryPolicy(), ScriptedTrainer(domains, intervals=10)).weights_TK()
    target = np.array([domain.is_target for domain in domains])
    assert np.all(np.diff(paths[:4, target].sum(1)) > 0), "a domain without weight rises"
    assert 0.5 * np.abs(paths[-1] - reference_mixture(domains)).sum() < 0.05


def test_one_file_serves_any_domains_and_decides_as_before(tmp_path: Path) -> None:
    policy = lively(HistoryPolicy("full"))
    save_policy(tmp_path / "p", policy)
    assert sum(file.stat().st_size for file in (tmp_path / "p").iterdir()) < 10e6
    loaded = load_policy(tmp_path / "p")
    assert isinstance(loaded, HistoryPolicy)
    assert json.loads(json.dumps(loaded.settings())) == policy.settings()
    for K in (2, 12):
        domains = tuple(
            Domain(f"n{k}", 10 ** (k % 5 + 2), "target" if k % 2 else "source") for k in range(K)
        )
        trainers = (ScriptedTrainer(domains, 3) for _ in range(2))
        first, second = (
            steered(each, trainer) for each, trainer in zip((policy, loaded), trainers, strict=True)
        )
        assert first == second


def test_memory_follows_whatever_run_it_is_asked_about() -> None:
    """Two interleaved runs, skipped timesteps, a branched history and a reloaded one all give
    the decision of a new policy."""
    used = lively(HistoryPolicy(TINY))
    runs = [
        steered(lively(HistoryPolicy(TINY)), ScriptedTrainer(some_domains(K), 9)) for K in (3, 5)
    ]

    def prefix(run: Trajectory, length: int) -> Trajectory:
        return Trajectory(run.signals[: length + 1], run.mixtures[:length])

    uniform = Mixture.uniform(runs[0].names)
    branch = Trajectory(
        runs[0].signals[:6], [*runs[0].mixtures[:2], uniform, *runs[0].mixtures[3:5]]
    )
    asked = [
        prefix(runs[0], 2),
        prefix(runs[0], 3),
        prefix(runs[1], 3),
        prefix(runs[0], 4),
        prefix(runs[0], 8),
        branch,
    ]
    asked += [
        prefix(runs[1], 0),
        Trajectory.from_json(runs[1].to_json()),
        runs[1],
        prefix(runs[1], 4),
    ]
    for so_far in asked:
        fresh = lively(HistoryPolicy(TINY))
        assert used.mixture(so_far) == fresh.mixture(so_far)
        assert used.learn(so_far) == fresh.learn(so_far)


def test_only_what_is_new_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, original = 0, HistoryActor.step

    def counted(self: HistoryActor, *inputs: Any) -> Any:
        nonlocal steps
        steps += 1
        return original(self, *inputs)

    monkeypatch.setattr(HistoryActor, "step", counted)
    steered(HistoryPolicy(TINY), ScriptedTrainer(some_domains(), 12))
    assert steps == 12


def test_domains_may_come_and_go() -> None:
    policy, few, many = lively(HistoryPolicy(TINY)), some_domains(4), some_domains(6)
    so_far = steered(policy, ScriptedTrainer(few, 5))
    trainer = ScriptedTrainer(many, 5)
    wider = Signals(many, 6, 0.5, np.zeros(6, dtype=np.int64), Measured.absent(6))
    so_far = so_far.append(policy.mixture(so_far), wider)
    so_far = steered(policy, trainer, so_far)
    assert so_far.last_mixture is not None
    assert so_far.last_mixture.names == tuple(domain.name for domain in many)
    assert policy.mixture(so_far) == lively(HistoryPolicy(TINY)).mixture(so_far), (
        "resumed after the change"
    )


def test_roles_are_needed() -> None:
    sources = tuple(Domain(f"d{k}", 100) for k in range(3))
    with pytest.raises(PolicyError, match=r"none is a target domain.*--target NAME"):
        HistoryPolicy(TINY).mixture(Trajectory.start(ScriptedTrainer(sources).start(())))
    with pytest.raises(PolicyError, match="none is a source domain"):
        HistoryPolicy(TINY).mixture(
            Trajectory.start(ScriptedTrainer((Domain("a", 5, "target"),)).start(()))
        )


def test_a_timestep_that_cannot_be_read_leaves_the_state_unchanged() -> None:
    """Feedback of three fields is refused. Afterwards the policy decides as without that call."""
    policy, domains = lively(HistoryPolicy(TINY)), some_domains(3)
    signals = ScriptedTrainer(domains).start(())
    so_far = Trajectory.start(signals)
    mixture = policy.mixture(so_far)
    odd = replace(signals, step=1, probes={"evaluation": Measured.all([-1.0, -2.0, -3.0])})
    with pytest.raises(PolicyError, match="two fields"):
        policy.mixture(Trajectory([signals, odd], [mixture]))
    longer = Trajectory([signals, replace(odd, probes={})], [mixture])
    assert policy.mixture(longer) == lively(HistoryPolicy(TINY)).mixture(longer)


def test_it_says_what_it_thinks() -> None:
    policy, domains = lively(HistoryPolicy(TINY, seed=3)), some_domains(5)
    trainer = ScriptedTrainer(domains)
    so_far = Trajectory.start(trainer.start(()))
    mixture = policy.mixture(so_far)
    said: Any = policy.learn(so_far.append(mixture, trainer.advance(mixture)))
    assert said["acts"] == "history"
    assert said["entropy"] == pytest.approx(mixture.entropy())
    assert said["target_share"] == pytest.approx(mixture["d4"])
    assert set(said["agent"]) == {"own_value", "last_value", "natural_value", "uniform_value"}
    assert len({round(value, 7) for value in said["agent"].values()}) == 4, (
        "the critic tells them apart"
    )
    assert policy.explain(so_far)["target_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [
        (None, [1 / 12, 2 / 12, 3 / 12, 1 / 2]),
        ({"target": 0.1}, [0.15, 0.30, 0.45, 0.10]),
        ({"target": 0.1, "flatness": 1.0}, [0.3, 0.3, 0.3, 0.1]),
        (
            {"target": 0.1, "shares": {"d0": 0.5, "d1": 0.0, "d2": 0.0, "d3": 0.4, "gone": 0.1}},
            [5 / 9, 0.0, 0.0, 4 / 9],
        ),
        ({"target": 0.1, "shares": {"other": 0.5, "d3": 0.5}}, [0.15, 0.30, 0.45, 0.10]),
    ],
)
def test_without_support_it_plays_the_fallback_and_says_so(
    fallback: dict[str, float] | None, expected: Sequence[float]
) -> None:
    policy = HistoryPolicy(TINY, support={"supported": False, "lower": -0.02}, fallback=fallback)
    trainer = ScriptedTrainer(some_domains(4))
    so_far = Trajectory.start(trainer.start(()))
    mixture = policy.mixture(so_far)
    assert mixture.weights_K == pytest.approx(expected)
    said: Any = policy.learn(so_far.append(mixture, trainer.advance(mixture)))
    assert (said["acts"], said["supported"]) == ("fallback", False)
    assert {"own_value", "fallback_value"} <= set(said["agent"]), (
        "what it would have done is still told"
    )


@pytest.mark.parametrize("fallback", [{"web": 1.0}, {"target": 1.5}, {"flatness": 1.0}])
def test_a_fallback_that_is_none_is_refused(fallback: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="give target, flatness, shares"):
        HistoryPolicy(TINY, fallback=fallback)


def test_questions_belong_to_the_run() -> None:
    policy = lively(HistoryPolicy(TINY))
    assert policy.probes == ()
    asking = policy.with_evaluation({"target": ["t.jsonl"], "general": ["g.jsonl"]}, share=0.1)
    (probe,) = asking.probes
    assert probe.fields == ("general", "target")  # type: ignore[attr-defined]
    so_far = Trajectory.start(ScriptedTrainer(some_domains()).start(()))
    assert asking.mixture(so_far) == policy.mixture(so_far), "the same actor"


def test_feedback_is_heeded_where_there_is_some() -> None:
    policy, domains = lively(HistoryPolicy(TINY)), some_domains()

    def after(evaluation: list[float]) -> Mixture:
        so_far = Trajectory.start(ScriptedTrainer(domains).start(()))
        first, then = (
            Signals(
                domains,
                10 * t,
                0.1 * t,
                np.full(4, 9 * t),
                Measured.absent(4),
                {"evaluation": Measured.all(e)},
            )
            for t, e in enumerate([[-2.0, -3.0], evaluation])
        )
        return policy.mixture(Trajectory([first, then], [policy.mixture(so_far)]))

    assert after([-2.2, -2.5]) != after([-1.9, -2.0])


def test_bad_settings_are_named() -> None:
    with pytest.raises(PolicyError, match="huge"):
        HistoryPolicy("huge")
    with pytest.raises(PolicyError, match="depth"):
        HistoryPolicy({"depth": 2})
    with pytest.raises(PolicyError, match="heads 3"):
        HistoryPolicy({"heads": 3})
    with pytest.raises(PolicyError, match="general, code"):
        HistoryPolicy(evaluation={"general": ["a"], "code": ["b"]})
    with pytest.raises(PolicyError, match="temperature 0"):
        HistoryPolicy(temperature=0.0)
    with pytest.raises(PolicyError, match="lower but lacks 'supported'"):
        HistoryPolicy(support={"lower": -0.1})


def test_a_natural_share_of_nothing_is_no_fault() -> None:
    domains = (Domain("a", 10**9), Domain("b", 0), Domain("c", 7, "target"))
    assert natural_K(domains)[1] == 0
    mixture = HistoryPolicy(TINY).mixture(Trajectory.start(ScriptedTrainer(domains).start(())))
    assert np.isfinite(mixture.weights_K).all()


SCARCE = (
    Domain("web", 1_000_000),
    Domain("books", 500_000),
    Domain("rare", 10_000, role="target"),
)


@pytest.mark.parametrize("support", [None, {"supported": False}])
@pytest.mark.parametrize(
    ("epochs", "max_epochs", "passes"),
    [(None, 4.0, 4.0), (2.0, 4.0, 2.0), ({"rare": 16.0}, 4.0, 4.0), ({"rare": 16.0}, None, 16.0)],
)
def test_actor_and_fallback_pace_what_may_be_read(
    support: Any, epochs: Any, max_epochs: float | None, passes: float
) -> None:
    told = HistoryPolicy(TINY, support=support, max_epochs=max_epochs).capped(epochs, 400_000)
    laws, _ = continual(2, 1, seed=0, intervals=10)
    trainer = Simulator(replace(laws, interval=40_000.0), seed=0, domains=SCARCE)
    steered_run = run(trainer, told)
    share_T = steered_run.weights_TK()[:, 2]
    assert share_T.mean() * 400_000 <= passes * 10_000 * 1.001
    # a policy that wanted more from the start reads evenly
    wanted = passes * 10_000 / 400_000
    if support:
        np.testing.assert_allclose(share_T, wanted, rtol=1e-3)
    assert share_T.max() <= 1.3 * wanted


def test_the_prior_on_scarce_text_is_what_even_plays() -> None:
    laws, _ = continual(2, 1, seed=0, intervals=10)
    prior = {"target": PRIOR[0], "flatness": PRIOR[1]}
    agent = HistoryPolicy(TINY, support={"supported": False}, fallback=prior)
    even = Paced(power=0.0, objective={"rare": 1.0})
    ours_TK, theirs_TK = (
        run(
            Simulator(replace(laws, interval=40_000.0), seed=0, domains=SCARCE),
            policy.capped({"rare": 4.0}, 400_000),
        ).weights_TK()
        for policy in (agent, even)
    )
    np.testing.assert_allclose(ours_TK, theirs_TK, atol=1e-4)


def test_plenty_is_played_as_before() -> None:
    free = lively(HistoryPolicy(TINY, seed=1))
    domains = tuple(replace(domain, tokens=10**9) for domain in SCARCE)
    laws, _ = continual(2, 1, seed=0, intervals=4)
    first_TK, second_TK = (
        run(Simulator(laws, seed=0, domains=domains), policy).weights_TK()
        for policy in (free, free.capped(None, 4_000_000))
    )
    np.testing.assert_array_equal(first_TK, second_TK)


def test_a_limit_of_no_pass_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_epochs is 0"):
        HistoryPolicy(TINY, max_epochs=0.0)

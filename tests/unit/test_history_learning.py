"""From logged runs to a policy: what is held out, what is kept, resuming, and what is refused."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.agents.learning import digest
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.evaluation.statistics import Estimate
from cuvee.learning import history_learning, model_actor
from cuvee.learning.history_learning import LearnProgress, learn
from cuvee.learning.learn_settings import LearnSettings
from cuvee.learning.logged_runs import imagine
from cuvee.learning.off_policy import OffPolicyEvaluator
from cuvee.learning.planning import plan
from cuvee.loop import run
from cuvee.methods.data_mixing_agent import DataMixingAgent
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.fixed import Fixed, Scheduled
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.recipes.reports.diagnosis import diagnose
from cuvee.simulation.continual import continual
from cuvee.simulation.curves import fit_curves
from cuvee.simulation.dynamics_model import as_logged
from cuvee.simulation.simulator import Simulator

TINY: dict[str, Any] = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 1, "action": 4},
    "bc_updates": 2,
    "updates": 4,
    "eval_every": 2,
    "batch_size": 4,
    "draws": 2,
    "critic_warmup_steps": 1,
}


class Named:
    name = "evaluation"


def runs_of(count: int, sources: int = 2, targets: int = 1, seed: int = 0) -> list[Run]:
    laws, domains = continual(sources, targets, seed, intervals=5)
    found = []
    for number in range(count):
        sampler = ScoringSampler(seed, number)
        sampler.probes = (Named(),)
        trajectory = run(Simulator(laws, seed=number, domains=domains), sampler)
        found.append(
            Run(
                f"run-{sources}-{number}",
                number,
                {"corpus": "c0ffee"},
                trajectory,
                Cost(100, 1.0, 2.0),
            )
        )
    return found


RUNS = runs_of(12)


def settings(**changes: Any) -> LearnSettings:
    return LearnSettings.of({**TINY, **changes})


def test_it_learns_evaluates_and_says_where_it_comes_from(tmp_path: Path) -> None:
    seen: list[LearnProgress] = []
    learned = learn(RUNS, Feedback(), settings(), seed=3, observer=seen.append)
    assert [one["update"] for one in learned.evaluations] == [0, 2, 4]
    assert [one.done for one in seen] == list(range(1, 7))
    assert [one.stage for one in seen] == ["cloning"] * 2 + ["learning"] * 4
    assert len(learned.held_out) == 3
    assert learned.provenance["proxies"] == {"tokens": 1200, "flops": 12.0, "seconds": 24.0}
    assert learned.provenance["corpora"] == ["c0ffee"]
    assert set(learned.provenance["held_out"]) < set(learned.provenance["runs"])
    support = learned.policy.settings()["support"]
    assert support["supported"] == next(iter(learned.estimates.values())).supported
    assert set(learned.policy.settings()["fallback"]["shares"]) == set(RUNS[0].trajectory.names)
    save_policy(tmp_path / "policy", learned.policy, learned.provenance)
    again = load_policy(tmp_path / "policy")
    assert digest(again.state_dict()) == digest(learned.policy.state_dict())


def test_the_actor_that_is_kept_is_the_best_of_those_within_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdicts = iter([(0.1, True), (0.5, False), (0.2, True)])

    class Said:
        def __init__(self, low: float, near: bool) -> None:
            self.low, self.near = low, near
            self.supported, self.path, self.static_K = True, RUNS[0].trajectory, np.full(3, 1 / 3)
            self.by_role, self.is_prior = (0.5, 0.0), False

        def figures(self) -> dict[str, Any]:
            return {"over_static_low": self.low, "within_reach": self.near}

    class OffPolicyEvaluator:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, _policy: Any) -> Said:
            return Said(*next(verdicts, (0.2, True)))

    monkeypatch.setattr(history_learning, "OffPolicyEvaluator", OffPolicyEvaluator)
    learned = learn(RUNS, Feedback(), settings(), seed=3)
    assert learned.provenance["support"]["update"] == 4


def test_cloning_alone_is_no_updates() -> None:
    learned = learn(RUNS, Feedback(), settings(updates=0), seed=0)
    assert [one["update"] for one in learned.evaluations] == [0]


def test_without_held_out_runs_nothing_is_evaluated() -> None:
    learned = learn(RUNS, Feedback(), settings(held_out=0.0), seed=0)
    assert learned.estimates == {}
    assert learned.policy.supported
    assert learned.provenance["support"] == {
        "supported": None,
        "steered_by": "actor",
        "learner": "cql",
        "plan": None,
        "update": 4,
        "spaces": {},
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 4, 6])
def test_interrupted_learning_resumes_to_the_same_bits(after: int, tmp_path: Path) -> None:
    def interrupt(now: LearnProgress) -> None:
        if now.done == after:
            raise Stop

    whole = learn(RUNS, Feedback(), settings(), seed=1)
    with pytest.raises(Stop):
        learn(RUNS, Feedback(), settings(), seed=1, folder=tmp_path, observer=interrupt)
    resumed = learn(RUNS, Feedback(), settings(), seed=1, folder=tmp_path)
    assert digest(resumed.policy.state_dict()) == digest(whole.policy.state_dict())
    assert [one["worst"] for one in resumed.evaluations] == [
        one["worst"] for one in whole.evaluations
    ]


def test_a_folder_of_other_runs_or_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    learn(RUNS, Feedback(), settings(updates=0), seed=0, folder=tmp_path)
    others: list[dict[str, Any]] = [
        {"runs": RUNS[:-1]},
        {"feedback": Feedback(0.4)},
        {"seed": 1},
        {"settings": settings()},
    ]
    for other in others:
        asked = {
            "runs": RUNS,
            "feedback": Feedback(),
            "settings": settings(updates=0),
            "seed": 0,
            **other,
        }
        with pytest.raises(
            PolicyError, match=f"{tmp_path} holds .* other settings: remove that folder"
        ):
            learn(**asked, folder=tmp_path)


def test_several_domain_spaces_are_evaluated_one_by_one() -> None:
    mixed = [*RUNS, *runs_of(10, sources=3, targets=2, seed=4)]
    learned = learn(mixed, Feedback(), settings(), seed=0)
    assert len(learned.estimates) == 2
    assert set(learned.policy.settings()["fallback"]) == {"target", "flatness"}
    trajectory = Trajectory.start(mixed[-1].trajectory.signals[0])
    assert learned.policy.mixture(trajectory).weights_K.shape == (5,)


def test_too_few_runs_are_refused_and_bad_ones_named() -> None:
    with pytest.raises(PolicyError, match=r"7 of 7 runs .* at least 8"):
        learn(RUNS[:7], Feedback(), settings())
    blind = [replace(one, trajectory=_without_feedback(one.trajectory)) for one in RUNS]
    with pytest.raises(PolicyError, match="0 of 12 runs"):
        learn(blind, Feedback(), settings())


def _without_feedback(trajectory: Trajectory) -> Trajectory:
    last = replace(
        trajectory.last, probes={**trajectory.last.probes, "evaluation": Measured.absent(2)}
    )
    return Trajectory([*trajectory.signals[:-1], last], trajectory.mixtures)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cql_alfa": 1}, "the agent has no cql_alfa"),
        ({"architecture": "huge"}, "'huge': use small or full"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"eval_every": 0}, "eval_every"),
        ({"learner": "sarsa"}, "learner is 'sarsa': use cql, model, both"),
        ({"architecture": {"width": 3}}, "unexpected keyword argument 'width'"),
        ({"held_out": "half"}, "cannot be built from {'held_out': 'half'}"),
    ],
)
def test_mistaken_settings_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LearnSettings.of(options)


def test_imagined_trajectories_are_whole_runs_of_the_same_domains() -> None:
    imagined = imagine(RUNS, 6, 0.5, seed=0)
    assert len(imagined) == 6
    assert {one.names for one in imagined} == {RUNS[0].trajectory.names}
    assert {len(one) for one in imagined} == {5}
    assert len({one.weights_TK().tobytes() for one in imagined}) == 6
    assert Feedback()(imagined[0]).present.all()
    learned = learn(RUNS, Feedback(), settings(imagined=4), seed=0)
    assert len(learned.evaluations) == 3


def test_the_method_commits_to_what_was_learned() -> None:
    method = DataMixingAgent(evaluation={"general": ["g.jsonl"], "target": ["t.jsonl"]}, agent=TINY)

    class Corpus:
        domains = RUNS[0].trajectory.domains

    policy = method.commit(Corpus(), RUNS)
    assert policy.probes == (), "questions belong to the run that it steers"
    assert policy.mixture(
        Trajectory.start(RUNS[0].trajectory.signals[0])
    ).weights_K.sum() == pytest.approx(1)


def changed_in_mid_run(one: Run) -> Run:
    """The same run, as if its first domain had been added after the second interval."""
    trajectory = one.trajectory
    few = trajectory.domains[1:]
    signals = [
        Signals(
            few,
            now.step,
            now.progress,
            now.tokens_K[1:],
            Measured(now.loss.values[1:], now.loss.present[1:]),
            {"evaluation": now.probes["evaluation"]},
        )
        for now in trajectory.signals[:3]
    ]
    names = [domain.name for domain in few]
    mixtures = [
        Mixture.normalise(names, mixture.weights_K[1:] + 1e-3)
        for mixture in trajectory.mixtures[:2]
    ]
    changed = Trajectory([*signals, *trajectory.signals[3:]], [*mixtures, *trajectory.mixtures[2:]])
    return replace(one, id=f"changed-{one.id}", trajectory=changed)


def test_runs_whose_domains_changed_are_learned_from_and_not_evaluated_on() -> None:
    odd = [changed_in_mid_run(one) for one in RUNS[:2]]
    plain, learned = (
        learn(runs, Feedback(), settings(imagined=4), seed=3) for runs in (RUNS, [*odd, *RUNS])
    )
    assert learned.held_out == plain.held_out
    assert learned.provenance["left_out"] == {
        run.id: "its domains changed in interval 3 (source0 was added)" for run in odd
    }
    assert plain.provenance["left_out"] == {}
    assert digest(learned.policy.state_dict()) != digest(plain.policy.state_dict())
    (view,) = diagnose(learned, [*odd, *RUNS])
    assert (
        "Run changed-run-2-0 is not part of the evaluation: "
        "its domains changed in interval 3 (source0 was added)." in view.verdict
    )
    assert len(view.target_shares_NT) == len(RUNS)


def test_diagnostics_show_the_runs_that_it_was_learned_from_or_evaluated_on() -> None:
    blind = replace(RUNS[0], id="blind", trajectory=_without_feedback(RUNS[0].trajectory))
    later = replace(RUNS[1], id="later")
    learned = learn([*RUNS, blind], Feedback(), settings(), seed=3)
    (plain,) = diagnose(learned, RUNS)
    (view,) = diagnose(learned, [blind, *RUNS, later])
    assert np.array_equal(view.target_shares_NT, plain.target_shares_NT)
    assert view.heuristics == plain.heuristics
    ends_N = np.array([Feedback()(one.trajectory).values[-1] for one in RUNS])
    assert ends_N[view.best_N > 0].min() > ends_N[view.best_N == 0].max()


def test_where_the_domains_of_all_runs_changed_nothing_can_be_evaluated() -> None:
    odd = [changed_in_mid_run(one) for one in RUNS]
    with pytest.raises(
        PolicyError, match=r"changed-run-2-0: its domains changed in interval 3 .* held_out to 0"
    ):
        learn(odd, Feedback(), settings(), seed=3)
    assert learn(odd, Feedback(), settings(held_out=0.0), seed=3).estimates == {}
    with pytest.raises(PolicyError, match=r"cannot be fitted: its domains changed in interval 3"):
        as_logged(odd[0].trajectory)


def test_another_policy_is_learned_on_from(tmp_path: Path) -> None:
    first = learn(RUNS, Feedback(), settings(), seed=3).policy
    save_policy(tmp_path / "first", first)
    onwards = settings(bc_updates=0, initial=str(tmp_path / "first"))
    learned = learn(RUNS, Feedback(), onwards, seed=4, folder=tmp_path / "learning")
    assert [one["update"] for one in learned.evaluations] == [0, 2, 4]
    assert learned.provenance["learning"]["initial"] == digest(first.state_dict()["actor"])
    unchanged = learn(
        RUNS, Feedback(), settings(bc_updates=0, updates=0, initial=str(tmp_path / "first")), seed=4
    ).policy
    assert digest(unchanged.state_dict()["actor"]) == digest(first.state_dict()["actor"])
    assert (
        learn(RUNS, Feedback(), onwards, seed=4, folder=tmp_path / "learning").evaluations
        == learned.evaluations
    )


def test_what_cannot_be_learned_on_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"has the architecture .*give it as `architecture`"):
        learn(RUNS, Feedback(), settings(initial="universal"), seed=0)
    save_policy(tmp_path / "fixed", Fixed(Mixture.uniform(("a", "b"))))
    with pytest.raises(PolicyError, match=r"holds a Fixed: only what `cuvee learn` wrote"):
        learn(RUNS, Feedback(), settings(initial=str(tmp_path / "fixed")), seed=0)
    with pytest.raises(PolicyError, match="holds no policy"):
        learn(RUNS, Feedback(), settings(initial=str(tmp_path / "none")), seed=0)


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(fit_curves, members=2, steps=15)
    monkeypatch.setattr(model_actor, "fit_curves", quick)


@pytest.mark.parametrize(("learner", "learned"), [("model", {"sft", "model"}), ("both", None)])
def test_the_actor_can_be_learned_in_fitted_worlds(
    learner: str, learned: set[str] | None, quick_fit: None, tmp_path: Path
) -> None:
    found = learn(RUNS, Feedback(0.3), settings(learner=learner), seed=3)
    support = found.provenance["support"]
    assert support["learner"] in (learned or {"sft", "cql", "model"})
    assert support["steered_by"] in {"actor", "plan", "static"}
    assert {"over_static", "over_static_low", "supported"} <= set(support["plan"])
    assert found.evaluations[-1]["update"] == (8 if learner == "both" else 4)
    cut = settings(learner=learner)
    learn(RUNS, Feedback(0.3), cut, seed=3, folder=tmp_path)
    again = learn(RUNS, Feedback(0.3), cut, seed=3, folder=tmp_path)
    assert digest(again.policy.state_dict()) == digest(found.policy.state_dict())


def test_the_model_moves_the_actor(quick_fit: None) -> None:
    still, moved = (
        learn(RUNS, Feedback(), settings(learner="model", updates=updates, held_out=0.0), seed=3)
        for updates in (0, 4)
    )
    assert digest(still.policy.state_dict()) != digest(moved.policy.state_dict())


def test_a_plan_that_is_surely_better_steers(
    monkeypatch: pytest.MonkeyPatch, quick_fit: None
) -> None:
    judged = OffPolicyEvaluator.__call__

    def sure_of_plans(evaluator: Any, policy: Any) -> Any:
        bounds = (0.1, 0.05, 0.2) if isinstance(policy, Scheduled) else (-0.1, -0.2, -0.05)
        sure = Estimate(*bounds, 9, 0.95)
        return replace(judged(evaluator, policy), gain=sure, over_static=sure, outside=0.0)

    monkeypatch.setattr(OffPolicyEvaluator, "__call__", sure_of_plans)
    found = learn(RUNS, Feedback(), settings(learner="model"), seed=3)
    assert found.provenance["support"]["steered_by"] == "plan"
    assert found.policy.steered_by == "plan"
    points = found.policy.settings()["fallback"]["points"]
    played = found.policy.mixture(Trajectory.start(RUNS[0].trajectory.signals[0]))
    assert played.as_dict() == pytest.approx(points[0][1])


@pytest.mark.parametrize(("caps", "most"), [({"target2": 0.25}, 0.25), (0.5, 0.5), (None, 4.0)])
def test_the_plan_keeps_the_epoch_caps_of_the_runs(
    caps: Any, most: float, quick_fit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def recorded(*arguments: Any, epochs: Any, **more: Any) -> Scheduled:
        given.append(dict(zip([one.name for one in arguments[1]], epochs, strict=True)))
        return plan(*arguments, epochs=epochs, **more)

    monkeypatch.setattr(history_learning, "plan", recorded)
    runs = [replace(run, config={**run.config, "guard": {"epochs": caps}}) for run in RUNS]
    learn(runs, Feedback(), settings(learner="model", updates=0), seed=3)
    (epochs,) = given
    assert epochs.pop("target2") == most
    assert set(epochs.values()) == {most if isinstance(caps, float) else 4.0}

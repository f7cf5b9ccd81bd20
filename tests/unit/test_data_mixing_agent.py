"""Data Mixing Agent as a method: which proxies it asks for, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Run
from cuvee.fleet.task import task_of
from cuvee.learning.learn_settings import LearnSettings
from cuvee.loop import explore, run
from cuvee.methods.data_mixing_agent import DataMixingAgent
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.testing.policy import ScriptedTrainer

QUESTIONS = {"target": ["maths.jsonl"], "general": ["facts.jsonl"]}


@dataclass(frozen=True)
class Space:
    domains: tuple[Domain, ...] = (
        Domain("web", 900),
        Domain("code", 100),
        Domain("maths", 50, "target"),
    )


SPACE = Space()


@dataclass
class Proxies:
    """A fleet in this process that keeps what a store would keep."""

    tasks: bool = True
    done: list[Run] = field(default_factory=list)

    def load(self) -> list[Run]:
        return list(self.done)

    def run(self, policies: Sequence[Policy]) -> list[Run]:
        made = [
            Run(
                str(len(self.done) + n),
                0,
                task_of({}, policy) if self.tasks else {},
                self._train(policy),
            )
            for n, policy in enumerate(policies)
        ]
        self.done += made
        return made

    def _train(self, policy: Policy) -> Any:
        return run(ScriptedTrainer(SPACE.domains, intervals=4), policy)


@pytest.mark.parametrize("tasks", [True, False])
def test_it_asks_for_the_proxies_that_are_missing_and_no_others(tasks: bool) -> None:
    fleet = Proxies(tasks)
    assert len(explore(DataMixingAgent(QUESTIONS, proxies=5), SPACE, fleet)) == 5
    assert len({run.trajectory.mixtures[-1] for run in fleet.done}) == 5, "each goes its own way"
    assert not DataMixingAgent(QUESTIONS, proxies=5).propose(SPACE, fleet.load())
    more = DataMixingAgent(QUESTIONS, proxies=7).propose(SPACE, fleet.load())
    assert [
        policy.settings()["number"] for policy in more if isinstance(policy, ScoringSampler)
    ] == [5, 6]


def test_a_proxy_that_failed_is_asked_for_again_and_another_setting_is_another_proxy() -> None:
    fleet, method = Proxies(), DataMixingAgent(QUESTIONS, proxies=4)
    explore(method, SPACE, fleet)
    del fleet.done[1]
    (missing,) = method.propose(SPACE, fleet.load())
    assert isinstance(missing, ScoringSampler)
    assert missing.settings()["number"] == 1
    assert len(DataMixingAgent(QUESTIONS, proxies=4, seed=1).propose(SPACE, fleet.load())) == 4
    assert (
        len(DataMixingAgent(QUESTIONS, proxies=4, start={"web": 1.0}).propose(SPACE, fleet.load()))
        == 4
    )


def test_workers_elsewhere_find_the_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = DataMixingAgent(QUESTIONS, share=0.1, weight=0.7).sampler(3).settings()
    assert settings["evaluation"] == {
        "general": [str(tmp_path / "facts.jsonl")],
        "target": [str(tmp_path / "maths.jsonl")],
    }
    assert (settings["number"], settings["share"], settings["weight"]) == (3, 0.1, 0.7)


def test_it_learns_from_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(
        runs: Sequence[Run], feedback: Feedback, settings: LearnSettings, seed: int, *_: Any
    ) -> SimpleNamespace:
        return SimpleNamespace(policy=(len(runs), feedback, settings.updates, seed))

    monkeypatch.setattr("cuvee.learning.history_learning.learn", learn)
    fleet, method = (
        Proxies(),
        DataMixingAgent(QUESTIONS, proxies=3, weight=0.2, agent={"updates": 9}, seed=4),
    )
    committed: object = method.commit(SPACE, explore(method, SPACE, fleet))
    assert committed == (3, Feedback(0.2), 9, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "evaluation names nothing"),
        ({"evaluation": {"general": ["a"], "maths": ["b"]}}, "general, maths: give question files"),
        ({"evaluation": QUESTIONS, "proxies": 0}, "proxies is 0"),
        ({"evaluation": QUESTIONS, "share": 0.0}, "share is 0"),
        ({"evaluation": QUESTIONS, "weight": -1.0}, "between 0 and 1"),
        ({"evaluation": QUESTIONS, "candidates": 1}, "candidates is 1"),
    ],
)
def test_bad_options_are_named_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, PolicyError), match=said):
        DataMixingAgent(**options)


def test_both_fields_are_needed() -> None:
    for domains in (SPACE.domains[:2], SPACE.domains[2:]):
        with pytest.raises(ConfigError, match="--target"):
            DataMixingAgent(QUESTIONS).propose(Space(domains), ())

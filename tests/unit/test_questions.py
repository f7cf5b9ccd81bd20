"""Questions of a run: who is asked, what tells one run from another, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.policies.files import save_policy
from cuvee.policies.fixed import Fixed
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.recipes.build import build_policy
from cuvee.recipes.config.schema import CompareConfig, TrainConfig, parse


class Space:
    """As much of a corpus as a policy needs."""

    def __init__(self, *roles: Any) -> None:
        self.domains = tuple(Domain(f"{role}{k}", 1000, role) for k, role in enumerate(roles))
        self.names = tuple(domain.name for domain in self.domains)


BOTH: Any = Space("source", "target")


def questions(folder: Path, text: str = "three") -> dict[str, list[str]]:
    folder.mkdir(exist_ok=True)
    (folder / "q.jsonl").write_text(json.dumps({"prompt": "One, two, ", "answer": text}) + "\n")
    return {"general": [str(folder / "q.jsonl")], "target": [str(folder / "q.jsonl")]}


def saved(folder: Path, policy: Policy) -> str:
    save_policy(folder, policy)
    return str(folder)


@pytest.fixture
def history(tmp_path: Path) -> str:
    """A policy that was saved with questions of its own."""
    return saved(
        tmp_path / "history", HistoryPolicy(evaluation={"general": ["gone"], "target": ["gone"]})
    )


@pytest.fixture
def fixed(tmp_path: Path) -> str:
    return saved(tmp_path / "fixed", Fixed(Mixture.uniform(BOTH.names)))


def config(**content: Any) -> TrainConfig:
    return parse(TrainConfig, {"corpus": "c", **content}, "mine.yaml")


def test_a_run_asks_its_own_questions_or_none(history: str, tmp_path: Path) -> None:
    asked = questions(tmp_path)
    steering = build_policy(config(policy=history, evaluation={**asked, "share": 0.1}), BOTH)
    assert list(steering.probes) == [EvaluationSet(asked, share=0.1)]
    assert not build_policy(config(policy=history), BOTH).probes


def test_what_is_asked_tells_runs_apart_and_where_it_lies_does_not(
    history: str, tmp_path: Path
) -> None:
    def run_id(asked: dict[str, Any]) -> str:
        return config(policy=history, evaluation=asked).run_id("f")

    first = run_id(questions(tmp_path / "a"))
    assert run_id(questions(tmp_path / "b")) == first
    others = {
        run_id(questions(tmp_path / "c", "3")),
        run_id({**questions(tmp_path / "a"), "share": 0.5}),
    }
    assert len({first, config(policy=history).run_id("f"), *others}) == 4


def test_a_comparison_asks_those_who_read_feedback(
    history: str, fixed: str, tmp_path: Path
) -> None:
    content = {"corpus": "c", "methods": ["odm", {"policy": fixed}, {"policy": history}]}
    asked = {"evaluation": questions(tmp_path)}
    runs = parse(CompareConfig, {**content, **asked}, "mine.yaml").runs()
    assert [run.evaluation is not None for run in runs] == [False, False, True]
    before = parse(CompareConfig, content, "mine.yaml").runs()
    assert [run.run_id("f") for run in runs[:2]] == [run.run_id("f") for run in before[:2]]
    with pytest.raises(ConfigError, match="none of odm reads feedback"):
        parse(CompareConfig, {"corpus": "c", "methods": ["odm"], **asked}, "mine.yaml").runs()


def test_what_cannot_be_asked_is_refused_before_anything_is_made(
    history: str, fixed: str, tmp_path: Path
) -> None:
    asked = questions(tmp_path)
    with pytest.raises(
        ConfigError, match=r"evaluation\.target names .*none\.jsonl, which is not a file"
    ):
        config(policy=history, evaluation={**asked, "target": [str(tmp_path / "none.jsonl")]})
    with pytest.raises(ConfigError, match=r"evaluation\.target is missing"):
        config(policy=history, evaluation={"general": asked["general"]})
    with pytest.raises(
        ConfigError, match="unknown key 'targets' in evaluation; did you mean 'target'"
    ):
        config(policy=history, evaluation={**asked, "targets": []})
    with pytest.raises(ConfigError, match="evaluation is given, but odm does not use it"):
        config(method="odm", evaluation=asked)
    with pytest.raises(ConfigError, match="the policy fixed reads no feedback"):
        build_policy(config(policy=fixed, evaluation=asked), BOTH)
    one_sided: Any = Space("source", "source")
    with pytest.raises(PolicyError, match=r"none is a target domain .*--target NAME"):
        build_policy(config(policy=history), one_sided)

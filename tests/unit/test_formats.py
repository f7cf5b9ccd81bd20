"""Files of format 1, written by the code of commit 6999e59, are read under the names of today."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cuvee.agents.cql import CQLSettings
from cuvee.agents.ddpg import DDPGSettings
from cuvee.agents.sac import SACSettings
from cuvee.core.errors import CheckpointError, ConfigError, PolicyError
from cuvee.core.files import sha256_of
from cuvee.core.renamed import AGENT, GROUP_DRO, LEARN, METHOD, SEARCH, TRAIN, new_name, upgrade
from cuvee.core.state import load_state, save_state
from cuvee.core.trajectory import Trajectory
from cuvee.learning.learn_settings import LearnSettings
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.files import UNIVERSAL, load_policy, read_provenance, save_policy
from cuvee.policies.guard.guard import Guard
from cuvee.recipes.config.schema import RunConfig, TrainConfig, parse
from cuvee.recipes.search import SearchConfig
from cuvee.testing.policy import ScriptedTrainer, some_domains
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.settings import TrainerSettings

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
DECIDED = json.loads((FORMAT_1 / "decided.json").read_text())
"""What the old code decided after loading each file: weights (T, K)."""


def play(policy: Any, trainer: ScriptedTrainer, so_far: Trajectory | None = None) -> Trajectory:
    so_far = so_far or Trajectory.start(trainer.start(policy.probes))
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        policy.learn(so_far)
    return so_far


@pytest.mark.parametrize("name", ["group_dro"])
def test_a_policy_of_format_1_decides_as_it_did(name: str, tmp_path: Path) -> None:
    policy = load_policy(FORMAT_1 / name)
    decided = play(policy, ScriptedTrainer(some_domains(3), 4)).weights_TK()
    np.testing.assert_allclose(decided, DECIDED[name], rtol=1e-5)  # CPUs differ in the last bits
    save_policy(tmp_path / name, load_policy(FORMAT_1 / name))
    again = play(load_policy(tmp_path / name), ScriptedTrainer(some_domains(3), 4)).weights_TK()
    assert (again == decided).all()
    assert json.loads((tmp_path / name / "policy.json").read_text())["format"] == 2


def test_an_agent_of_format_1_is_refused_with_a_remedy() -> None:
    """It observes other features, and its critic predicts something else."""
    with pytest.raises(PolicyError, match="learn it again"):
        load_policy(FORMAT_1 / "sac")


def test_settings_of_format_1_have_the_new_names() -> None:
    settings = load_state(FORMAT_1 / "sac", stem="policy")["settings"]
    assert (settings["observe_reward"], settings["warmup_intervals"]) == (True, 3)
    agent = settings["agent_settings"]
    assert {name: agent[name] for name in ("learning_starts", "actor_lr", "kl_coef", "std")} == {
        "learning_starts": 2,
        "actor_lr": 1e-2,
        "kl_coef": 0.1,
        "std": 0.2,
    }
    assert agent.keys().isdisjoint(AGENT)
    assert read_provenance(FORMAT_1 / "sac")["method"] == {"name": "x", "warm_up": 3}, "as written"


def test_a_checkpoint_of_format_1_has_the_new_names_and_its_agent_is_refused() -> None:
    found = Checkpoints(FORMAT_1 / "checkpoints").latest()
    assert found
    _, state = found
    known = {field.name for field in dataclasses.fields(TrainerSettings)}
    assert set(state["trainer"]["settings"]) <= known
    guarded = Guard(AgentPolicy("ddpg", "gain", vector=True, observe_reward=True))
    with pytest.raises(PolicyError, match="learn it again"):
        guarded.load_state_dict(state["policy"])


def test_the_state_of_a_course_of_learning_has_the_new_names() -> None:
    old = {"judge_every": 5, "settle": 0, "trace": 0.9, "batch": 4, "actor_rate": 1e-3}
    state = {
        "identity": {"settings": old},
        "learner": {"learners": {}, "generator": None},
        "trace": [{"update": 0, "worst": 0.5, "judged": {}}],
        "best": None,
    }
    upgraded = upgrade(state)
    assert upgraded["evaluations"] == [{"update": 0, "worst": 0.5, "estimates": {}}]
    assert upgraded["learner"] == {"train_states": {}, "generator": None}
    assert upgraded["identity"]["settings"] == {LEARN[key]: value for key, value in old.items()}


def test_the_shipped_policy_has_the_weights_it_was_trained_with() -> None:
    assert json.loads((UNIVERSAL / "policy.json").read_text())["format"] == 2
    assert sha256_of(UNIVERSAL / "policy.safetensors").startswith("55593bd7050ed378")


@pytest.mark.parametrize(
    ("format_", "remedy"),
    [(3, "upgrade cuvee"), (0, "use an earlier copy"), (None, "use an earlier copy")],
)
def test_other_formats_are_refused(format_: int | None, remedy: str, tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"step": 1})
    file = tmp_path / "s" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": format_}))
    hashes = tmp_path / "s" / "hashes.json"
    known = json.loads(hashes.read_text())
    hashes.write_text(json.dumps({**known, "state.json": sha256_of(file)}))
    with pytest.raises(CheckpointError, match=f"reads formats 1 to 2: {remedy}"):
        load_state(tmp_path / "s")


def test_a_file_of_format_1_must_be_whole(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1 / "sac", tmp_path / "sac")
    text = (tmp_path / "sac" / "policy.json").read_text()
    (tmp_path / "sac" / "policy.json").write_text(text.replace('"told"', '"tolt"'))
    with pytest.raises(CheckpointError, match="altered"):
        load_policy(tmp_path / "sac")


# Old keys in configurations


WARM_UP = {"warm_up": "warmup_intervals"}


def agent_keys(settings: type[Any]) -> dict[str, str]:
    """The renamed keys of an agent with these settings."""
    known = {field.name for field in dataclasses.fields(settings)}
    return {old: new for old, new in AGENT.items() if new in known}


SECTIONS: list[tuple[type[RunConfig], dict[str, str], str]] = [
    (TrainConfig, TRAIN, "train: {OLD: 1}"),
    (SearchConfig, SEARCH, "{method: regmix, OLD: 1}"),
    (TrainConfig, WARM_UP, "method: {name: agent, OLD: 1}"),
    (TrainConfig, METHOD, "method: {name: ac_odm, OLD: {law: 1}}"),
    (TrainConfig, METHOD, "method: {name: hds, OLD: {law: 1}}"),
    (TrainConfig, METHOD, "method: {name: doge, OLD: {law: 1}}"),
    (TrainConfig, GROUP_DRO, "method: {name: doremi, OLD: 1}"),
    (TrainConfig, agent_keys(DDPGSettings), "method: {name: ac_odm, agent: {OLD: 1}}"),
    (TrainConfig, agent_keys(SACSettings), "method: {name: hds, agent: {OLD: 1}}"),
    (
        SearchConfig,
        LEARN,
        "method: {name: data_mixing_agent, evaluation: {general: [g], target: [t]}, "
        "agent: {OLD: 1}}",
    ),
]
"""A section of a configuration for each table of renamed keys."""


@pytest.mark.parametrize(
    ("kind", "section", "old", "new"),
    [(kind, section, *names) for kind, table, section in SECTIONS for names in table.items()],
)
def test_an_old_key_is_refused_with_its_new_name_before_a_run_starts(
    kind: type[RunConfig], section: str, old: str, new: str
) -> None:
    content = yaml.safe_load(section.replace("OLD", old))
    with pytest.raises(ConfigError, match=rf"\b{old}\b.* called '?{new}'? now"):
        parse(kind, {"corpus": "c", **content}, "mine")


@pytest.mark.parametrize(
    ("names", "kind"), [(TRAIN, TrainerSettings), (AGENT, CQLSettings), (LEARN, LearnSettings)]
)
def test_every_new_name_is_a_key_of_today(names: dict[str, str], kind: type[Any]) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    assert set(names.values()) <= known
    assert known.isdisjoint(names)
    assert {old: new_name(old, known) for old in names} == names

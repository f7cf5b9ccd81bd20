"""`cuvee search --runs-only`, `cuvee learn` and `cuvee train`: real proxies, a learned policy
with its page, and a run that it steers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from cuvee.cli import main
from cuvee.core.errors import ConfigError, PolicyError, StoreError
from cuvee.learning.history_learning import LearnProgress
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import load_policy, read_provenance
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.recipes.config.schema import TrainConfig, load, parse
from cuvee.recipes.search import SearchConfig, learn, run_proxies
from cuvee.recipes.train import train
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

AGENT = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 1, "action": 4},
    "bc_updates": 2,
    "updates": 2,
    "eval_every": 1,
    "critic_warmup_steps": 0,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dma")
    corpus = stdlib_corpus(folder / "text", targets=("network",)).folder
    for name in ("general", "target"):
        rows = ({"prompt": f"{name} {i} is", "answer": f" {name} {i * i}"} for i in range(8))
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    document = {
        "name": "dma",
        "corpus": str(corpus),
        "model": "llama-0.1m",
        "method": {
            "name": "data_mixing_agent",
            "proxies": 10,
            "share": 0.5,
            "evaluation": {name: [str(folder / f"{name}.jsonl")] for name in ("general", "target")},
            "agent": AGENT,
        },
        "train": {
            "steps": 6,
            "batch_size": 4,
            "sequence_length": 64,
            "interval": 2,
            "device": "cpu",
            "validate_every": 0,
        },
        "store": str(folder / "runs.db"),
        "out": str(folder / "runs"),
    }
    (folder / "dma.yaml").write_text(yaml.safe_dump(document))
    return folder / "dma.yaml"


def test_from_nothing_to_a_steered_run(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = load(SearchConfig, config)
    with pytest.raises(StoreError, match="run the proxies first"):
        learn(wanted)
    monkeypatch.setattr(
        sys, "argv", ["cuvee", "search", str(config), "--runs-only", "-q", "-w", "1"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    folder = tmp_path / "policy"
    monkeypatch.setattr(
        sys,
        "argv",
        ["cuvee", "learn", str(config), "method.agent.updates=1", "-o", str(folder), "-q"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert f"policy: {folder}" in said
    assert "Evaluated on 10 runs" in said
    page = (folder / "diagnostics.html").read_text()
    assert "3 domains, 3 intervals" in page
    assert "Target share over time" in page
    provenance = read_provenance(folder)
    assert len(provenance["runs"]) == 10
    assert provenance["proxies"]["tokens"] == 10 * 6 * 4 * 64
    assert provenance["learning"]["settings"]["updates"] == 1
    assert provenance["learning"]["seed"] == 0
    policy = load_policy(folder)
    assert not policy.probes, "questions belong to a run"
    content = yaml.safe_load(config.read_text())
    questions = content.pop("method")["evaluation"]
    target = {**content, "name": "target", "policy": str(folder)}
    without = train(parse(TrainConfig, target, "target"))
    told = train(
        parse(TrainConfig, {**target, "evaluation": {**questions, "share": 0.2}}, "target")
    )
    assert [len(run.trajectory) for run in (without, told)] == [3, 3]
    assert [Feedback()(run.trajectory).present.any() for run in (without, told)] == [False, True]


@pytest.fixture(scope="module")
def searched(config: Path) -> Path:
    run_proxies(load(SearchConfig, config))
    return config


def test_learned_again_with_other_settings(searched: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    learn(load(SearchConfig, searched), folders[0])
    other = load(
        SearchConfig, searched, ["method.agent.updates=1", "method.seed=7", "method.weight=0.4"]
    )
    learn(other, folders[1])
    said = [read_provenance(folder)["learning"] for folder in folders]
    assert [one["settings"]["updates"] for one in said] == [2, 1]
    assert [one["seed"] for one in said] == [0, 7], "the method's own where it has one"
    assert not (other.out / "dma" / "learning").exists(), "nothing is left to go on with"


def test_what_was_interrupted_with_other_settings_is_named(searched: Path, tmp_path: Path) -> None:
    def interrupt(now: LearnProgress) -> None:
        if now.done == 3:
            raise KeyboardInterrupt

    wanted = load(SearchConfig, searched)
    working = wanted.out / "dma" / "learning"
    with pytest.raises(KeyboardInterrupt):
        learn(wanted, tmp_path / "policy", interrupt)
    with pytest.raises(PolicyError, match=f"{working} holds .* remove that folder"):
        learn(load(SearchConfig, searched, ["method.weight=0.4"]), tmp_path / "policy")
    learn(wanted, tmp_path / "policy")
    assert not working.exists()


def test_a_policy_that_nobody_judged_says_so(searched: Path, tmp_path: Path) -> None:
    made = learn(load(SearchConfig, searched, ["method.agent.held_out=0"]), tmp_path / "policy")
    assert made.verdict == (
        "This policy was not evaluated, because no runs were held out. It is used all the same.",
    )
    assert made.verdict[0] in made.page.read_text()
    assert read_provenance(made.folder)["support"] == {
        "supported": None,
        "steered_by": "actor",
        "learner": "cql",
        "plan": None,
        "update": 2,
        "spaces": {},
    }
    policy = load_policy(made.folder)
    assert isinstance(policy, HistoryPolicy)
    assert policy.supported


def test_methods_that_learn_otherwise_are_named(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    other = parse(SearchConfig, {**content, "method": "doge"}, "other")
    with pytest.raises(ConfigError, match="doge does not learn from logged runs"):
        learn(other)

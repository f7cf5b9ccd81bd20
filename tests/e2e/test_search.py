"""`cuvee search`: a proxy learns a policy in a worker, and the policy steers a larger run on
other domains."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from cuvee.cli import main
from cuvee.core.errors import ConfigError
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.store.store import Store
from cuvee.policies.files import document_of, load_policy, read_provenance
from cuvee.recipes.config.schema import TrainConfig, load, parse
from cuvee.recipes.progress.fleet_watch import FleetStatus
from cuvee.recipes.search import SearchConfig, logged_runs, make_trainer, plan, search
from cuvee.recipes.train import train
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

SMALL = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 2},
    "learning_starts": 2,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_corpus(tmp_path_factory.mktemp("text")).folder


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Path:
    document = {
        "corpus": str(corpus),
        "model": "llama-0.1m",
        "method": {"name": "ac_odm", "mode": "proxy", "agent": SMALL},
        "train": {
            "steps": 12,
            "batch_size": 4,
            "sequence_length": 64,
            "interval": 2,
            "device": "cpu",
            "validate_every": 0,
        },
        "store": str(tmp_path / "runs.db"),
        "out": str(tmp_path / "runs"),
    }
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "proxy.yaml"


def test_a_policy_learned_on_a_proxy_steers_a_larger_model_with_no_reward_measured(
    config: Path, tmp_path: Path
) -> None:
    wanted = load(SearchConfig, config)
    assert (plan(wanted).runs, plan(wanted).total.tokens) == (1, 12 * 4 * 64)
    seen: list[FleetStatus] = []
    folder = search(wanted, on_change=seen.append)
    assert seen[-1].tally.done == 1
    assert [probe.name for probe in load_policy(folder).probes] == ["weight_norms"]
    assert plan(wanted).runs == 0, "what is done is not asked for again"
    assert search(wanted) == folder

    document = {
        name: value
        for name, value in yaml.safe_load(config.read_text()).items()
        if name != "method"
    }
    document |= {
        "model": "pythia-0.1m",
        "policy": str(folder),
        "train": {**document["train"], "steps": 6},
    }
    run = train(parse(TrainConfig, document, "the target"))
    assert len(run.trajectory) == 3
    assert "alignment" not in run.trajectory.last.probes


def test_each_proxy_continues_to_learn_from_the_one_before(config: Path) -> None:
    wanted = load(SearchConfig, config, ["trainer=simulator", "method.proxies=3"])
    assert plan(wanted).runs == 3
    learned = load_policy(search(wanted)).state_dict()["agent"]
    assert len(logged_runs(wanted)) == 3
    assert plan(wanted).runs == 0
    # The first interval of all has no earlier gains to be compared with.
    assert learned["buffer"]["added"] == 3 * 12 // 2 - 1


@pytest.mark.parametrize("name", ["gain", "ac_odm"])
def test_proxies_have_the_targets_caps_and_their_ends_choose_the_pace(
    name: str, config: Path, corpus: Path
) -> None:
    scarce = Corpus.open(corpus).names[0]
    method = f"{{name: {name}, mode: proxy, proxies: 4}}"
    wanted = load(
        SearchConfig,
        config,
        [
            "trainer=simulator",
            f"method={method}",
            f"guard={{epochs: {{{scarce}: 0.01}}}}",
            f"objective={{{scarce}: 1}}",
        ],
    )
    policy = load_policy(search(wanted))
    settings = [run.config["policy"]["settings"] for run in logged_runs(wanted)]
    paced = [one.get("reference", one) for one in settings]
    assert {(one["power"], one["sharpness"]) for one in paced} == {(4, 1), (0, 0), (4, 2), (0, 2)}
    assert all(one["epochs"] == {scarce: 0.01} for one in paced)
    assert "after 4 proxy runs" in policy.evidence["summary"]  # type: ignore[attr-defined]
    assert plan(wanted).runs == 0
    other = load(SearchConfig, config, ["trainer=simulator", "guard={epochs: {nothing: 4}}"])
    with pytest.raises(ConfigError, match="epoch cap for unknown domain nothing"):
        search(other)


def test_the_trainer_is_a_key_that_proxies_and_targets_follow(config: Path, tmp_path: Path) -> None:
    wanted = load(SearchConfig, config, ["trainer=simulator"])
    planned = plan(wanted)
    assert planned.each.tokens == 12 * 4 * 64
    folder = search(wanted)
    (proxy,) = logged_runs(wanted)
    assert proxy.cost.tokens == pytest.approx(planned.each.tokens, rel=0.01)  # counts are rounded
    document = {
        name: value
        for name, value in yaml.safe_load(config.read_text()).items()
        if name != "method"
    }
    target = parse(TrainConfig, {**document, "trainer": "simulator", "policy": str(folder)}, "it")
    run = train(target)
    assert [signals.step for signals in run.trajectory.signals] == [0, 2, 4, 6, 8, 10, 12]
    with Store.open(tmp_path / "runs.db") as store:
        assert store.load(run.id).trajectory == run.trajectory
    assert not list((tmp_path / "runs" / run.id).glob("model"))
    with pytest.raises(ConfigError, match=r"no trainer 'simulater'.*simulator"):
        load(SearchConfig, config, ["trainer=simulater"])


def test_a_method_without_proxies_needs_no_fleet(config: Path, tmp_path: Path) -> None:
    wanted = load(SearchConfig, config, ["method=uniform"])
    assert plan(wanted).runs == 0
    assert search(wanted).is_dir()


def test_runs_alone_are_learned_from_by_learn_and_by_the_same_command(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    learned = tmp_path / "learned"
    for command in (["search", "--runs-only"], ["learn", "-o", str(learned)], ["search"]):
        monkeypatch.setattr(sys, "argv", ["cuvee", *command, str(config), "--quiet"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        said.append(capsys.readouterr().out)
    assert said[0] == f"1 runs are done; `cuvee learn {config} -o policy/` learns from them\n"
    searched = tmp_path / "runs" / "proxy" / "policy"
    assert said[1].startswith(f"diagnostics: {learned / 'diagnostics.html'}\npolicy: {learned};")
    assert said[2].startswith(f"policy: {searched}")
    first, second = (document_of(load_policy(folder)) for folder in (learned, searched))
    assert first["settings"] == second["settings"]
    told = [dict(read_provenance(folder)) for folder in (learned, searched)]
    assert [len(one.pop("learning")) for one in told] == [1, 1], "seconds"
    assert told[0] == told[1]
    assert len(told[0]["runs"]) == 1
    assert told[0]["proxies"]["tokens"] > 0
    assert "Logged runs" in (learned / "diagnostics.html").read_text()


def test_after_a_change_the_old_proxies_that_wait_are_left_alone(
    config: Path, tmp_path: Path
) -> None:
    old, new = load(SearchConfig, config), load(SearchConfig, config, ["train.learning_rate=2e-3"])
    fingerprint = Corpus.open(old.corpus).fingerprint
    with Store.open(tmp_path / "runs.db") as store:
        waiting = store.create(
            "old", 0, {"proxy": old.proxy(fingerprint)}, group=old.group(fingerprint)
        )
        search(new)
        runs = {run.id: (run.status, run.attempts) for run in store.runs()}
    assert runs.pop(waiting) == ("waiting", 0)
    assert list(runs.values()) == [("done", 1)]


def test_a_worker_refuses_a_corpus_that_changed(config: Path) -> None:
    wanted = load(SearchConfig, config)
    with pytest.raises(ConfigError, match="search again"):
        make_trainer({**wanted.proxy("0" * 64)}, 0)


def test_the_command_says_what_it_would_cost_and_what_failed(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cuvee(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cuvee", "search", str(config), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert cuvee("--dry-run", "--workers", "2") == 0
    said = capsys.readouterr().out
    assert "ac_odm requests 1 proxy runs next (0 are done): 3,072 tokens" in said
    assert "steps on this machine" in said
    assert re.search(r"peak memory of a run: \d+\.\d\d GiB", said)
    assert not (tmp_path / "runs").exists()
    assert (
        cuvee("train.learning_rate=1e30", "max_attempts=2", "--store", str(tmp_path / "other.db"))
        == 1
    )
    said = capsys.readouterr().err
    assert "0 done, 0 running, 0 waiting, 1 failed, 1 retried" in said
    assert any(
        line.startswith("failed: ") and "after 2 attempts: DivergedError: " in line
        for line in said.splitlines()
    )
    assert re.match(
        r"error: 1 of 1 runs of proxy-ac_odm-s0-[0-9a-f]{8} failed after 2 attempts each",
        said.splitlines()[-1],
    )

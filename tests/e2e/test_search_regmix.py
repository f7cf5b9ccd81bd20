"""RegMix through `cuvee search`: many proxies, two killed workers, each run done once, and a
policy that steers a target run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cuvee.cli import main
from cuvee.core.state import load_state
from cuvee.core.trajectory import Run
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.store.store import Store
from cuvee.policies.files import load_policy
from cuvee.policies.fixed import Fixed
from cuvee.recipes.config.schema import TrainConfig, load, parse
from cuvee.recipes.search import SearchConfig, plan, search
from cuvee.recipes.train import train
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

PROXIES, STEPS = 10, 30


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    document = {
        "corpus": str(stdlib_corpus(folder / "text").folder),
        "model": "llama-0.1m",
        "method": {
            "name": "regmix",
            "proxies": PROXIES,
            "fit": "gaussian_process",
            "objective": {"algorithms": 1.0},
            "tokens": 200_000,
        },
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "sequence_length": 64,
            "learning_rate": 1e-2,
            "device": "cpu",
            "validate_every": 0,
        },
        "store": str(folder / "runs.db"),
        "out": str(folder / "runs"),
    }
    (folder / "mix.yaml").write_text(yaml.safe_dump(document))
    return folder / "mix.yaml"


@pytest.fixture(scope="module")
def logged(config: Path) -> list[Run]:
    """The proxies of a search that was killed when its first runs had finished, and run again."""
    wanted = load(SearchConfig, config)
    assert plan(wanted).runs == PROXIES
    command = [
        sys.executable,
        "-m",
        "cuvee.cli",
        "search",
        str(config),
        "--workers",
        "2",
        "--quiet",
    ]
    group = wanted.group(Corpus.open(wanted.corpus).fingerprint)
    with Store.open(config.parent / "runs.db") as store:
        killed = subprocess.Popen(command, start_new_session=True)
        while killed.poll() is None and store.tally(group).done < 3:
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        done = {run.id: run.cost for run in store.runs(group, "done")}
        assert 3 <= len(done) < PROXIES
        search(wanted, workers=2)
        after = {run.id: run for run in store.runs(group)}
        assert {run.status for run in after.values()} == {"done"}
        assert len(after) == PROXIES
        assert all(
            after[run_id].attempts == 1 and after[run_id].cost == cost
            for run_id, cost in done.items()
        )
        return [store.load(run_id) for run_id in after]


def test_proxies_differ_in_their_mixture_and_in_nothing_else(logged: list[Run]) -> None:
    assert {run.seed for run in logged} == {0}
    assert len({run.trajectory.mixtures[0] for run in logged}) == PROXIES
    assert all(set(run.trajectory.mixtures) == {run.trajectory.mixtures[0]} for run in logged)
    proxies = {json.dumps(run.config["proxy"], sort_keys=True) for run in logged}
    assert len(proxies) == 1
    starts = {tuple(run.trajectory.signals[0].probes["valid_loss"].values) for run in logged}
    assert len(starts) == 1, "all start from the same weights and are validated on the same text"


def test_the_policy_rests_on_all_of_them_and_says_how_well_it_knows(
    config: Path, logged: list[Run]
) -> None:
    wanted = load(SearchConfig, config)
    assert plan(wanted).runs == 0
    folder = search(wanted)
    policy = load_policy(folder)
    assert isinstance(policy, Fixed)
    assert policy.evidence["rank_correlation"]["runs"] == PROXIES
    assert policy.evidence["rank_correlation"]["low"] > 0
    assert policy.evidence["left_out"] == {}
    provenance = load_state(folder, stem="policy")["provenance"]
    assert provenance["proxies"]["tokens"] == sum(run.cost.tokens for run in logged), (
        "work that was lost included"
    )
    assert provenance["proxies"]["tokens"] >= PROXIES * STEPS * 4 * 64

    document = {
        name: value
        for name, value in yaml.safe_load(config.read_text()).items()
        if name != "method"
    }
    run = train(
        parse(TrainConfig, {**document, "policy": str(folder), "name": "target"}, "the target")
    )
    weights_K = run.trajectory.mixtures[0].weights_K
    tokens_K = np.array([domain.tokens for domain in run.trajectory.domains])
    assert (weights_K * 200_000 <= 4.001 * tokens_K).all()
    losses = [one.trajectory.last.probes["valid_loss"].values[0] for one in (run, *logged)]
    assert losses[0] <= sorted(losses[1:])[3], (
        "among the best of the proxies, on a run of the same length"
    )


def test_the_command_says_what_the_policy_rests_on(
    config: Path,
    logged: list[Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["cuvee", "search", str(config), "--quiet"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert said.startswith("gaussian_process ranks proxies that it has not seen with Spearman 0.")
    assert f"{PROXIES} runs fitted, 0 left out, 0 missing\npolicy: " in said


def test_more_proxies_keep_those_that_are_there(config: Path, logged: list[Run]) -> None:
    search(load(SearchConfig, config))
    more = load(SearchConfig, config, [f"method.proxies={PROXIES + 3}"])
    planned = plan(more)
    assert (planned.runs, planned.logged) == (3, PROXIES)

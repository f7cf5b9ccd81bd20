"""MixMin through `cuvee search --workers 2`: one proxy per domain on real text, the mixture,
and a target run under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.store.store import Store
from cuvee.methods.mixmin import mixture_of_outputs
from cuvee.policies.files import document_of, load_policy
from cuvee.policies.fixed import Fixed
from cuvee.probes.token_losses import NAME
from cuvee.recipes.config.schema import TrainConfig, load, parse
from cuvee.recipes.search import SearchConfig
from cuvee.recipes.train import train
from stdlib_corpus import NAMES, stdlib_corpus

pytestmark = pytest.mark.training

TOKENS = 2048


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


def searched(folder: Path, text: Corpus, workers: int) -> None:
    """Run `cuvee search` to its end in `folder`."""
    document = {
        "corpus": str(text.folder),
        "model": "llama-0.1m",
        "method": {"name": "mixmin", "objective": {"algorithms": 1.0}, "tokens": TOKENS},
        "train": {
            "steps": 40,
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
    command = [sys.executable, "-m", "cuvee.cli", "search", str(folder / "mix.yaml")]
    done = subprocess.run(
        [*command, "--workers", str(workers), "-q"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def by_two(text: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search with two workers."""
    folder = tmp_path_factory.mktemp("two")
    searched(folder, text, workers=2)
    return folder


def test_the_proxies_outputs_become_a_mixture_that_steers(text: Corpus, by_two: Path) -> None:
    config = load(SearchConfig, by_two / "mix.yaml")
    with Store.open(by_two / "runs.db") as store:
        runs = [store.load(run.id) for run in store.runs(config.group(text.fingerprint))]
    assert len(runs) == len(NAMES)
    by_domain = {}
    for run in runs:
        (name,) = (n for n, w in run.trajectory.mixtures[0].as_dict().items() if w == 1.0)
        by_domain[name] = run.trajectory.last.probes[NAME]
        assert all(NAME not in signals.probes for signals in run.trajectory.signals[:-1])
    assert {measured.shape for measured in by_domain.values()} == {(1, TOKENS // 64 * 63)}

    policy = load_policy(by_two / "runs" / "mix" / "policy")
    assert isinstance(policy, Fixed)
    log_probs_NK = np.stack([-by_domain[name].values[0] for name in NAMES], axis=1)
    expected_K = mixture_of_outputs(log_probs_NK, np.full(len(log_probs_NK), 1 / len(log_probs_NK)))
    weights = policy.settings()["weights"]
    assert [weights[name] for name in NAMES] == pytest.approx(expected_K.tolist())
    assert max(weights, key=weights.__getitem__) == "algorithms", "its own text is what counts"
    print(policy.evidence["summary"], weights)
    assert policy.evidence["loss"] < policy.evidence["losses"]["algorithms"]

    target = {
        "corpus": str(text.folder),
        "policy": str(by_two / "runs" / "mix" / "policy"),
        "train": {
            "steps": 4,
            "batch_size": 4,
            "sequence_length": 64,
            "interval": 2,
            "device": "cpu",
        },
        "store": str(by_two / "runs.db"),
        "out": str(by_two / "runs"),
    }
    run = train(parse(TrainConfig, target, "the test"))
    executed = run.trajectory.mixtures[0].as_dict()
    assert executed["algorithms"] == pytest.approx(weights["algorithms"], abs=0.02)
    assert NAME not in run.trajectory.last.probes


def test_the_same_seed_gives_the_same_mixture_with_any_number_of_workers(
    text: Corpus, tmp_path: Path, by_two: Path
) -> None:
    searched(tmp_path, text, workers=1)
    found = [
        document_of(load_policy(folder / "runs" / "mix" / "policy"))["settings"]
        for folder in (tmp_path, by_two)
    ]
    assert found[0] == found[1]

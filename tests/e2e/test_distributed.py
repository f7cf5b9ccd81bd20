"""Two gloo processes train as one process does, and raise named errors when they diverge."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cuvee.core.mixture import Mixture
from cuvee.core.state import load_state
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.loop import run
from cuvee.policies.fixed import Fixed
from cuvee.probes.norms import WeightNorms
from cuvee.testing.probes import GradientNorm
from cuvee.testing.trainer import assert_same_state
from cuvee.training.distributed import Ranks
from one_rank import a_trainer, fail
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

PROGRAM = str(Path(__file__).parents[1] / "one_rank.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def healthy(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a torchrun of two ranks wrote what happened."""
    out = tmp_path_factory.mktemp("healthy")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, PROGRAM, str(corpus.folder), str(out)], check=True, env=environment)
    return out


def test_two_ranks_train_what_one_rank_trains(healthy: Path, corpus: Corpus) -> None:
    texts = [(healthy / f"trajectory-{rank}.json").read_text() for rank in range(2)]
    assert texts[0] == texts[1]
    two = Trajectory.from_json(json.loads(texts[0]))
    states = [load_state(healthy / f"state-{rank}") for rank in range(2)]
    assert_same_state(states[0], states[1])

    class Replay(Fixed):
        def mixture(self, so_far: Trajectory) -> Mixture:
            return two.mixtures[len(so_far)]

    trainer = a_trainer(corpus, Ranks())
    probes = (WeightNorms(), GradientNorm())
    one = run(trainer, Replay(Mixture.uniform(corpus.names), probes=probes))
    assert len(one) == len(two) == 3
    for a, b in zip(one.signals, two.signals, strict=True):
        assert (a.step, a.tokens_K.tolist()) == (b.step, b.tokens_K.tolist())
        np.testing.assert_allclose(a.loss.values, b.loss.values, rtol=1e-5)
        assert set(a.probes) == set(b.probes)
        for name in a.probes:
            np.testing.assert_allclose(
                a.probes[name].values, b.probes[name].values, rtol=1e-4, atol=1e-5
            )
    own = trainer.state_dict()
    for name, weights in own["update"]["weights"].items():
        np.testing.assert_allclose(weights, states[0]["update"]["weights"][name], atol=2e-5)
    assert_same_state(own["stream"], states[0]["stream"])


def test_one_bit_of_a_mixture_stops_every_rank_before_it_trains(healthy: Path) -> None:
    reports = [json.loads((healthy / f"bit-{rank}.json").read_text()) for rank in range(2)]
    assert reports[0]["error"] == reports[1]["error"]
    assert "rank 1 is at step 3" in reports[0]["error"]
    for report in reports:
        assert report["step"] == 3
        assert report["digest"] in report["error"]


def test_ranks_that_were_started_differently_never_begin(healthy: Path) -> None:
    errors = [(healthy / f"settings-{rank}.txt").read_text() for rank in range(2)]
    assert errors[0] == errors[1]
    assert errors[0].startswith("ranks disagree on corpus, settings and weights: rank 1 has ")


def test_a_policy_that_fails_on_the_first_rank_ends_the_others(healthy: Path) -> None:
    assert (healthy / "broken-0.txt").read_text() == "ZeroDivisionError: the policy is broken"
    assert (
        (healthy / "broken-1.txt")
        .read_text()
        .startswith("TrainingError: the policy failed on rank 0")
    )


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_rank_that_is_gone_is_named_within_the_timeout(
    how: str, corpus: Corpus, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(2):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
        }
        with mock.patch.dict(os.environ, environment):
            ranks.append(context.Process(target=fail, args=(corpus, tmp_path, how)))
            ranks[-1].start()
    ranks[0].join(timeout=60)
    for process in ranks:
        process.kill()
        process.join()
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert "no answer from rank 1, which hangs or was killed" in report["error"]
    assert "step 4" in report["error"]
    assert report["step"] == 4
    assert report["seconds"] < 20

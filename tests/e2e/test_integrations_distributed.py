"""Two processes of a host trainer: equal mixtures, the sums of one process, exact resume, and
failures that leave its process group working."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from stdlib_corpus import stdlib_corpus
from steered_rank import steered

pytestmark = pytest.mark.training
PROGRAM = str(Path(__file__).parents[1] / "steered_rank.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def ranks(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*torchrun, PROGRAM, str(corpus.folder), str(out)], check=True, env=environment)
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_both_hold_the_same_trajectory_and_weights(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["whole"] == ranks[1]["whole"]


def test_they_measure_what_one_process_measures(
    ranks: list[dict[str, Any]], corpus: Corpus, tmp_path: Path
) -> None:
    """With the same rows in a step, in half as many processes of twice as many rows."""
    alone = steered(corpus, tmp_path, rows=4)
    one, two = (Trajectory.from_json(each["trajectory"]) for each in (alone, ranks[0]["whole"]))
    assert [s.step for s in one.signals] == [s.step for s in two.signals] == [0, 3, 7, 10]
    # Compare until the first decision from measurements.
    for a, b in zip(one.signals[:2], two.signals[:2], strict=True):
        np.testing.assert_array_equal(a.tokens_K, b.tokens_K)
        np.testing.assert_allclose(a.loss.values, b.loss.values, rtol=1e-5)
        for name in a.probes:
            found, expected = b.probes[name].values, a.probes[name].values
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("stop", [4, 6])
def test_resumed_they_end_the_same(ranks: list[dict[str, Any]], stop: int) -> None:
    for rank in ranks:
        assert rank[f"from {stop}"] == rank["whole"]


def test_a_rank_with_another_log_is_named_and_the_hosts_group_lives(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert "ranks disagree: rank 1 is at step 0" in rank["diverged"]["error"]
        assert rank["diverged"]["sum"] == 2.0


def test_a_rank_that_hangs_is_named_and_the_hosts_group_lives(ranks: list[dict[str, Any]]) -> None:
    assert "no answer from rank 1" in ranks[0]["missing"]["error"]
    assert [rank["missing"]["sum"] for rank in ranks] == [2.0, 2.0]

"""Runs as Minari episodes, under any reward."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Run, Trajectory
from cuvee.integrations.minari import episodes_of, export_minari
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.testing.runs import example_run
from cuvee.testing.toy import ToyTrainer

RUNS = [
    Run(f"toy-{seed}", seed, {}, run(ToyTrainer(4 + seed, seed=seed), Exp3())) for seed in range(3)
]


def encode(so_far: Trajectory) -> np.ndarray:
    return np.array([so_far.last.progress, *so_far.last.loss.filled(0.0)])


def reward(so_far: Trajectory) -> float:
    before, after = (signals.probes["valid_loss"].values.mean() for signals in so_far.signals[-2:])
    return float(before - after)


def test_an_episode_is_a_run() -> None:
    for run_, episode in zip(RUNS, episodes_of(RUNS, encode, reward), strict=True):
        T = len(run_.trajectory)
        assert episode.observations.shape == (T + 1, 4)
        assert episode.actions.tolist() == run_.trajectory.weights_TK().tolist()
        assert episode.rewards[-1] == reward(run_.trajectory)
        assert episode.terminations.tolist() == [False] * (T - 1) + [True]
        assert not episode.truncations.any()


def test_what_is_no_set_of_episodes_is_refused() -> None:
    with pytest.raises(StoreError, match="no runs"):
        episodes_of([], encode, reward)
    with pytest.raises(StoreError, match="interval 1 of run toy-0 has no reward"):
        episodes_of(RUNS, encode, lambda so_far: None)
    with pytest.raises(StoreError, match="other domains"):
        episodes_of([RUNS[0], example_run("x")], encode, reward)


def test_a_dataset_is_written_and_read_back_or_what_is_missing_is_named(tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("h5py", "PIL")):
        with pytest.raises(StoreError, match=r"minari\[hdf5\]"):
            export_minari(RUNS, "cuvee/toy-v0", encode, reward, tmp_path)
        return
    dataset = export_minari(RUNS, "cuvee/toy-v0", encode, reward, tmp_path, description="toys")
    found = list(dataset.iterate_episodes())
    assert [len(episode.rewards) for episode in found] == [4, 5, 6]
    for run_, episode in zip(RUNS, found, strict=True):
        assert episode.actions.tolist() == run_.trajectory.weights_TK().tolist()
    assert loaded_elsewhere("cuvee/toy-v0", tmp_path) == [
        [len(run_.trajectory), run_.trajectory.weights_TK().tolist()] for run_ in RUNS
    ]


def loaded_elsewhere(dataset_id: str, folder: Path) -> list[list[object]]:
    """The number of rewards and the actions of each episode, as another process reads them."""
    code = (
        "import json, sys, minari; data = minari.load_dataset(sys.argv[1]); print(json.dumps("
        "[[len(one.rewards), one.actions.tolist()] for one in data.iterate_episodes()]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, dataset_id],
        env={**os.environ, "MINARI_DATASETS_PATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found: list[list[object]] = json.loads(ran.stdout)
    return found

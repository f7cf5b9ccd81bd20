"""A run that is killed with SIGKILL and resumed in another process equals an undisturbed run,
bit by bit."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.probes.norms import WeightNorms
from cuvee.testing.trainer import assert_same_state
from cuvee.training.checkpoint import Checkpoints
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training

SETTINGS = TrainerSettings(
    steps=24, interval=2, batch_size=4, sequence_length=64, validation_tokens=512, device="cpu"
)


def train(corpus: Corpus, folder: Path, acknowledge: Connection, doomed: bool) -> None:
    torch.set_num_threads(1)
    stream = MixtureStream(
        corpus, Mixture.uniform(corpus.names), batch_size=4, sequence_length=64, seed=1
    )
    trainer = LMTrainer(build_model("llama-0.1m", corpus, seed=1), stream, corpus, SETTINGS)
    checkpoints = Checkpoints(folder)
    if found := checkpoints.latest():
        trainer.restore(found[1], [WeightNorms()])
    else:
        trainer.start([WeightNorms()])
    while not trainer.done:
        if doomed and trainer.step + SETTINGS.interval >= SETTINGS.steps:
            acknowledge.send(trainer.step)
            signal.pause()  # however slow the killer is, it finds a run that is not over
        shares_K = np.random.default_rng(trainer.step).dirichlet(np.ones(len(corpus.names)))
        trainer.advance(Mixture.normalise(corpus.names, shares_K))
        checkpoints.save(trainer.step, trainer.state_dict())
        acknowledge.send(trainer.step)


def test_killed_runs_end_where_an_unbroken_one_ends(tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path / "data")
    fork = multiprocessing.get_context("fork")

    def end_of(folder: Path, kills: tuple[int, ...]) -> dict[str, object]:
        """The last checkpoint of a run that is killed soon after each of the steps in `kills`."""
        for last in (*kills, SETTINGS.steps):
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(
                target=train, args=(corpus, folder, sender, last < SETTINGS.steps)
            )
            process.start()
            acknowledged = 0
            while acknowledged < last:
                assert receiver.poll(timeout=60)
                acknowledged = receiver.recv()
            if last == SETTINGS.steps:
                process.join()
            else:
                time.sleep(0.003 * last)
                process.kill()
                process.join()
                assert process.exitcode == -signal.SIGKILL
            while receiver.poll():
                acknowledged = receiver.recv()
            found = Checkpoints(folder).latest()
            assert found is not None
            assert found[0] >= acknowledged
        assert found is not None
        return found[1]

    assert_same_state(
        end_of(tmp_path / "killed", (2, 8, 14, 20)), end_of(tmp_path / "unbroken", ())
    )

"""The program that one rank of `test_distributed.py` runs.

`one_rank.py CORPUS OUT` under torchrun, or `fail` in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cuvee.core.errors import TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.state import save_state
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.loop import run
from cuvee.probes.base import Context
from cuvee.probes.norms import WeightNorms
from cuvee.testing.probes import GradientNorm, GradientNormMeter
from cuvee.training.distributed import Leader, Ranks
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer

SETTINGS = TrainerSettings(
    steps=8,
    batch_size=6,
    sequence_length=64,
    interval=3,
    micro_batch_size=2,
    validation_tokens=512,
    device="cpu",
)


class Steering:
    """A policy whose choices differ between processes, so that only one of them may be asked."""

    def __init__(self) -> None:
        self.probes = (WeightNorms(), GradientNorm())
        self.noise = np.random.default_rng(os.getpid())

    def mixture(self, so_far: Trajectory) -> Mixture:
        noise_K = (
            self.noise.random(len(so_far.names)) if len(so_far) else np.ones(len(so_far.names))
        )
        return Mixture.normalise(so_far.names, noise_K)

    def learn(self, so_far: Trajectory) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


class Broken(Steering):
    def mixture(self, so_far: Trajectory) -> Mixture:
        raise ZeroDivisionError("the policy is broken")


def a_trainer(corpus: Corpus, ranks: Ranks, settings: TrainerSettings = SETTINGS) -> LMTrainer:
    torch.set_num_threads(1)
    stream = MixtureStream(
        corpus,
        Mixture.uniform(corpus.names),
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        seed=3,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    return LMTrainer(build_model("llama-0.1m", corpus, seed=1), stream, corpus, settings, ranks)


def healthy(corpus: Corpus, ranks: Ranks, out: Path) -> None:
    """Train a whole run, then with one bit of a mixture changed, then with a policy that fails.
    Write down the outcomes."""
    trainer = a_trainer(corpus, ranks)
    so_far = run(trainer, Leader(Steering(), ranks))
    (out / f"trajectory-{ranks.rank}.json").write_text(json.dumps(so_far.to_json()))
    save_state(out / f"state-{ranks.rank}", trainer.state_dict())

    trainer = a_trainer(corpus, ranks)
    first = trainer.start(())
    trainer.advance(Mixture.uniform(first.names))
    weights_K = Mixture.uniform(first.names).weights_K.copy()
    if ranks.rank == 1:
        time.sleep(1.0)  # late, but not too late
        weights_K[0] = np.nextafter(weights_K[0], 1.0)
    mixture = Mixture(first.names, weights_K)
    try:
        trainer.advance(mixture)
    except TrainingError as error:
        report = {"error": str(error), "step": trainer.step, "digest": mixture.digest()}
        (out / f"bit-{ranks.rank}.json").write_text(json.dumps(report))
    own_settings = dataclasses.replace(SETTINGS, learning_rate=1e-3 * (1 + ranks.rank))
    try:
        a_trainer(corpus, ranks, own_settings).start(())
    except TrainingError as error:
        (out / f"settings-{ranks.rank}.txt").write_text(str(error))
    try:
        Leader(Broken(), ranks).mixture(so_far)
    except (TrainingError, ZeroDivisionError) as error:
        (out / f"broken-{ranks.rank}.txt").write_text(f"{type(error).__name__}: {error}")


def fail(corpus: Corpus, out: Path, how: str) -> None:
    """Rank 1 hangs or dies in the middle of step 4. Rank 0 records its error and the time."""
    ranks = Ranks.connect(timeout=2.0)
    trainer = a_trainer(corpus, ranks)

    class Accident(GradientNormMeter):
        def before_forward(self, batch: object) -> None:
            if trainer.step == 4 and ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else time.sleep(3600)

    class AccidentProbe(GradientNorm):
        def attach(self, context: Context) -> Accident:
            return Accident(self.name, context)

    first = trainer.start([AccidentProbe()])
    trainer.advance(Mixture.uniform(first.names))
    began = time.monotonic()
    try:
        trainer.advance(Mixture.uniform(first.names))
    except TrainingError as error:
        report = {"error": str(error), "step": trainer.step, "seconds": time.monotonic() - began}
        (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    corpus_folder, out_folder = sys.argv[1:]
    group = Ranks.connect(timeout=120.0)
    healthy(Corpus.open(corpus_folder), group, Path(out_folder))
    group.close()

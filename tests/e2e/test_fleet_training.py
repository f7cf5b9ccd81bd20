"""Real proxies that are killed while they train end with the same numbers as undisturbed ones."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.fleet.local import LocalFleet
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.together import together
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import NAMES, stdlib_corpus

TRAIN = {
    "steps": 12,
    "interval": 2,
    "batch_size": 4,
    "sequence_length": 64,
    "validation_tokens": 512,
    "validate_every": 2,
}


def make_trainer(proxy: Mapping[str, Any], seed: int) -> LMTrainer:
    corpus, settings = Corpus.open(proxy["corpus"]), TrainerSettings(**proxy["train"], seed=seed)
    stream = MixtureStream(
        corpus,
        Mixture.uniform(corpus.names),
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        seed=seed,
    )
    return LMTrainer(build_model("llama-0.1m", corpus, seed=seed), stream, corpus, settings)


@pytest.mark.training
def test_killed_proxies_end_with_the_numbers_of_unbroken_ones(tmp_path: Path) -> None:
    proxy = {"corpus": str(stdlib_corpus(tmp_path).folder), "train": TRAIN}
    policies: list[Policy] = [
        Exp3(),
        Fixed(Mixture.of(dict(zip(NAMES, (0.25, 0.25, 0.5), strict=True)))),
    ]
    with Store.open(tmp_path / "store.sqlite") as store:
        fleet = LocalFleet(
            store,
            make_trainer,
            proxy,
            group="g",
            checkpoints=tmp_path / "checkpoints",
            every=2,
            max_attempts=9,
        )
        ids = [fleet.plan(policy) for policy in policies]
        killer = threading.Thread(target=kill_at, args=(store, ids[0], (1, 3)))
        killer.start()
        found = fleet.run(policies)
        killer.join()
        assert store.summary(ids[0]).attempts >= 2
    for policy, one in zip([Exp3(), policies[1]], found, strict=True):
        assert one.trajectory == run(make_trainer(proxy, 0), policy)


@pytest.mark.training
@pytest.mark.parametrize("gain", [2.0, 0.5])
def test_proxies_of_one_process_end_with_the_same_numbers(tmp_path: Path, gain: float) -> None:
    """Either trained together and killed, or one after the other because the trial was slower."""
    proxy = {"corpus": str(stdlib_corpus(tmp_path).folder), "train": TRAIN, "gain": gain}
    weights = [(0.25, 0.25, 0.5), (0.5, 0.25, 0.25)]
    policies: list[Policy] = [
        Exp3(),
        *(Fixed(Mixture.of(dict(zip(NAMES, each, strict=True)))) for each in weights),
    ]
    with Store.open(tmp_path / "store.sqlite") as store:
        fleet = LocalFleet(
            store,
            make_trainer_as_if,
            proxy,
            group="g",
            checkpoints=tmp_path / "checkpoints",
            every=2,
            lease_seconds=2.0,
            together=3,
        )
        ids = [fleet.plan(policy) for policy in policies]
        killer = threading.Thread(target=kill_at, args=(store, ids[2], (3,) if gain > 1.0 else ()))
        killer.start()
        found = fleet.run(policies)
        killer.join()
        tally = store.tally("g")
    assert (tally.done, tally.lost_attempts) == (3, 3 if gain > 1.0 else 0)
    for policy, one in zip([Exp3(), *policies[1:]], found, strict=True):
        assert one.trajectory == run(make_trainer(proxy, 0), policy)


def make_trainer_as_if(proxy: Mapping[str, Any], seed: int) -> LMTrainer:
    """In a worker, where the trial is to find this gain."""
    together._timed_trial = lambda trainers: together.Comparison(proxy["gain"], same_bits=True)
    return make_trainer(proxy, seed)


def kill_at(store: Store, run_id: str, intervals: tuple[int, ...]) -> None:
    """Kills the worker of a run when it has recorded so many intervals."""
    for number in intervals:
        while (summary := store.summary(run_id)).intervals < number or summary.status == "waiting":
            time.sleep(0.01)
        if summary.status == "running" and summary.worker:
            os.kill(int(summary.worker.split("/")[-2]), signal.SIGKILL)

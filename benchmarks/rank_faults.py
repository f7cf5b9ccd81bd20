"""Ranks that are late, hang, die or hold another mixture: detection time, and effect on training.

    python benchmarks/rank_faults.py [--injections 500] [--most-ranks 8] [--timeout 2] [--seed 0]

Reliability test 6, over gloo on CPUs. Each injection starts 2 to 8 processes that train a tiny
model, and disturbs one of them at one step: "late" (less than the timeout: nothing may fail),
"hangs", "killed" (during the update), "bit" (the last bit of one weight of its mixture). The
planted fault is a trainer that skips the agreement before each step. The benchmark must detect that
this trainer trains on mixed weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cuvee.core.errors import TrainingError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.data.stream.stream import MixtureStream
from cuvee.training.distributed import Ranks
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer

MODEL = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}
KINDS = ("late", "hangs", "killed", "bit")
INTERVAL = 3


@dataclass(frozen=True)
class Injection:
    kind: str
    ranks: int
    victim: int
    step: int
    seconds: float
    timeout: float


class Trusting(Ranks):
    """Planted: takes it on trust that the ranks agree, and only counts."""

    def agree(self, step: int, batch: Batch | MixtureUpdate, counted: int) -> int:
        total = torch.tensor([counted])
        self.sum(total, "the count")
        return int(total)


def one_rank(injection: Injection, kind: type[Ranks], corpus: Corpus, answer: Connection) -> None:
    """Trains nine steps.

    Sends the error, the number of steps, the mixture, and the seconds that it waited.
    """
    torch.set_num_threads(1)
    ranks = kind.connect(timeout=injection.timeout)
    mine = ranks.rank == injection.victim
    uniform = Mixture.uniform(corpus.names)
    size = 2 * injection.ranks
    stream = MixtureStream(
        corpus,
        uniform,
        batch_size=size,
        sequence_length=16,
        seed=0,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    settings = TrainerSettings(
        steps=9,
        batch_size=size,
        sequence_length=16,
        interval=INTERVAL,
        validate_every=0,
        validation_tokens=64,
        device="cpu",
    )
    trainer = LMTrainer(build_model(MODEL, corpus), stream, corpus, settings, ranks)
    trainer.start(())

    def strike(*_: Any) -> None:
        if mine and trainer.step == injection.step:
            if injection.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif injection.kind in ("late", "hangs"):
                time.sleep(injection.seconds)

    trainer.model.get_input_embeddings().register_forward_hook(strike)
    error, began, mixture = "", time.monotonic(), uniform
    try:
        while not trainer.done:
            mixture = uniform
            if mine and injection.kind == "bit" and trainer.step + INTERVAL > injection.step:
                weights_K = uniform.weights_K.copy()
                weights_K[0] = np.nextafter(weights_K[0], 1.0)
                mixture = Mixture(uniform.names, weights_K)
            began = time.monotonic()
            trainer.advance(mixture)
    except TrainingError as raised:
        error = str(raised)
    waited = time.monotonic() - began
    answer.send(
        {
            "rank": ranks.rank,
            "error": error,
            "step": trainer.step,
            "digest": mixture.digest(),
            "waited": waited,
        }
    )
    os._exit(0)


def inject(injection: Injection, kind: type[Ranks], corpus: Corpus) -> list[dict[str, Any]]:
    """The answers of the surviving ranks.

    This process hosts the rendezvous store, as torchrun does.
    """
    fork = multiprocessing.get_context("fork")
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(store.port),
        WORLD_SIZE=str(injection.ranks),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    processes, pipes = [], []
    for rank in range(injection.ranks):
        os.environ["RANK"] = str(rank)
        receiver, sender = fork.Pipe(duplex=False)
        processes.append(fork.Process(target=one_rank, args=(injection, kind, corpus, sender)))
        processes[-1].start()
        sender.close()
        pipes.append(receiver)
    answers = []
    for rank, pipe in enumerate(pipes):
        silent = rank == injection.victim and injection.kind in ("killed", "hangs")
        if not silent and pipe.poll(timeout=120):
            answers.append(pipe.recv())
    for process in processes:
        process.kill()
        process.join()
    return answers


def evaluate(injection: Injection, answers: list[dict[str, Any]]) -> dict[str, float]:
    """The faults found: training on mixed weights, and surviving ranks without a clear error."""
    expected = injection.ranks - (injection.kind in ("killed", "hangs"))
    wrong = int(len(answers) != expected)
    mixed = 0
    start = injection.step // INTERVAL * INTERVAL
    digests = {answer["digest"] for answer in answers}
    for answer in answers:
        error = answer["error"]
        if injection.kind == "late":
            wrong += bool(error) or answer["step"] != 9
        elif injection.kind == "bit":
            blamed = f"rank {injection.victim}" if injection.victim else "rank 1"
            mixed = max(mixed, answer["step"] - start)
            wrong += not (
                blamed in error and "rank 0" in error and all(digest in error for digest in digests)
            )
        else:
            wrong += f"no answer from rank {injection.victim}," not in error
    waited = max((answer["waited"] for answer in answers if injection.kind != "late"), default=0.0)
    return {"wrong": wrong, "mixed": mixed, "waited": waited}


def small_corpus(folder: Path) -> Corpus:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("heapq", "bisect"):
        (folder / f"{name}.txt").write_text((library / f"{name}.py").read_text())
    files = [folder / "heapq.txt", folder / "bisect.txt"]
    return build(
        files, folder / "corpus", BuildSettings(vocab_size=300, valid_share=0.0), workers=1
    )


def measure(
    injections: int, most_ranks: int, timeout: float, seed: int, corpus: Corpus
) -> dict[str, dict[str, float]]:
    """What was wrong over all injections, by their kind."""
    generator = random.Random(seed)
    totals = {kind: {"n": 0.0, "wrong": 0, "mixed_steps": 0, "worst_wait": 0.0} for kind in KINDS}
    for i in range(injections):
        kind = KINDS[i % len(KINDS)]
        ranks = generator.randint(2, most_ranks)
        seconds = generator.uniform(0.0, timeout / 2) if kind == "late" else 3600.0
        victim, step = generator.randrange(ranks), generator.randrange(9)
        injection = Injection(kind, ranks, victim, step, seconds, timeout)
        found = evaluate(injection, inject(injection, Ranks, corpus))
        total = totals[kind]
        total["n"] += 1
        total["wrong"] += found["wrong"]
        total["mixed_steps"] = max(total["mixed_steps"], found["mixed"])
        total["worst_wait"] = max(total["worst_wait"], round(found["waited"], 2))
        if found["wrong"] or found["mixed"]:
            print("not as promised:", injection, found)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--injections", type=int, default=500)
    parser.add_argument("--most-ranks", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = small_corpus(Path(folder))
        totals = measure(
            options.injections, options.most_ranks, options.timeout, options.seed, corpus
        )
        planted = Injection("bit", 2, 1, 4, 0.0, options.timeout)
        caught = evaluate(planted, inject(planted, Trusting, corpus))["mixed"] > 0
    document = {
        "by_kind": totals,
        "planted": 1,
        "caught": int(caught),
        "timeout": options.timeout,
        "seed": options.seed,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()

"""What steering a run by an agent costs: measuring, deciding and learning, over a plain run.

    python benchmarks/agent_overhead.py --corpus DIR [--models llama-1m llama-5m] [--rounds 30]

DIR is a raw folder, as in online.py. Methods run side by side in one process, on one thread. Each
round trains one interval of 10 steps (16 rows × 256 tokens) under each method, in random order.
Ratios are taken within a round, of processor time, which other programs disturb less. A plain run
plays `uniform` and measures nothing. Validation and checkpoints are left out, because all methods
have the same. The first rounds fill the replay buffer, and are not counted.

The last line is one JSON object, by model and method:

    wall_ratio      time of an interval with all that the method does, over a plain one:
                    [median, low, high], a 95 % bootstrap interval over rounds
    decision_share  time of deciding and learning, over a plain interval
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from online_corpora import prepare

from cuvee.core.protocols import Policy, Trainer
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.recipes.build import build_policy, build_trainer
from cuvee.recipes.config.schema import TrainConfig, parse
from cuvee.training.distributed import Ranks

PLAIN = "uniform"
METHODS = (PLAIN, "gain", "ac_odm", "hds")
INTERVAL = 10


class Steered:
    """A run that is trained interval by interval, as in `cuvee.loop.run`."""

    def __init__(self, corpus: Corpus, folder: Path, model: str, method: str, steps: int) -> None:
        train = {
            "steps": steps,
            "batch_size": 16,
            "sequence_length": 256,
            "interval": INTERVAL,
            "validate_every": steps,
            "validation_tokens": 4096,
        }
        given = {"corpus": str(folder), "model": model, "method": method, "train": train}
        config = parse(TrainConfig, given, "the benchmark")
        self._policy: Policy = build_policy(config, corpus)
        self._trainer: Trainer = build_trainer(config, corpus, Ranks())
        self._so_far = Trajectory.start(self._trainer.start(self._policy.probes))

    def interval(self) -> tuple[float, float]:
        """Return the processor seconds of one interval, and those of deciding and learning."""
        began = time.process_time()
        mixture = self._policy.mixture(self._so_far)
        decided = time.process_time()
        self._so_far = self._so_far.append(mixture, self._trainer.advance(mixture))
        trained = time.process_time()
        self._policy.learn(self._so_far)
        ended = time.process_time()
        return ended - began, (decided - began) + (ended - trained)


def measured(
    corpus: Corpus, folder: Path, model: str, rounds: int, skipped: int
) -> dict[str, dict[str, Any]]:
    """Return the figures of each method but the plain one."""
    steps = INTERVAL * (rounds + skipped + 1)
    runs = {method: Steered(corpus, folder, model, method, steps) for method in METHODS}
    rng = np.random.default_rng(0)
    whole_RM, deciding_RM = np.zeros((2, rounds, len(METHODS)))
    for r in range(-skipped, rounds):
        for m in rng.permutation(len(METHODS)):
            whole, deciding = runs[METHODS[m]].interval()
            if r >= 0:
                whole_RM[r, m], deciding_RM[r, m] = whole, deciding
    plain_R = whole_RM[:, 0]
    return {
        method: {
            "wall_ratio": median(whole_RM[:, m] / plain_R),
            "decision_share": median(deciding_RM[:, m] / plain_R),
        }
        for m, method in enumerate(METHODS)
        if m > 0
    }


def median(x_R: np.ndarray) -> list[float]:
    """Return [median, low, high], with a 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    again_N = np.median(rng.choice(x_R, (2000, len(x_R))), axis=1)
    return [round(float(x), 4) for x in (np.median(x_R), *np.quantile(again_N, (0.025, 0.975)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["llama-1m", "llama-5m"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--skipped", type=int, default=8)
    parser.add_argument("--out", type=Path, help="keeps the built corpus, as online.py does")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        corpus = prepare(options.corpus, "clean", out, 0)
        result: dict[str, Any] = {"rounds": options.rounds, "domains": len(corpus.names)}
        for model in options.models:
            folder = out / "corpora" / "clean"
            result[model] = measured(corpus, folder, model, options.rounds, options.skipped)
            print(model, json.dumps(result[model]), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""The gain of training tiny proxies together (`cuvee.training.together.together`), and its limits.

    python benchmarks/vectorised.py --corpus DIR [DIR …] [--model llama-0.1m]
                                    [--shapes 16x256 4x128 …] [--members 2 4 8]

`--corpus` is the output of `cuvee corpus build`; give several to see the effect of the vocabulary's
size. Every figure is of whole training intervals with streams, optimizers and measurements, on one
thread, in processor seconds (wall seconds on a GPU), the best of several rounds in which both ways
take turns.

`gain`: N trainers one after the other against the same N together. `bound`: N batches through one
model in one step against N steps, which is the upper bound for any stacking. `trial` is the result
of `compare` for forward and backward passes alone, by which the fleet decides; `same_bits` says
whether losses and gradients are equal to the last bit. `share` divides the time of one trainer:
matrix products, attention, loss (everything with the vocabulary's dimension except its products),
elementwise operations, AdamW, other operations, and the time between operations, in Python, most of
which stacking saves. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.together.together import Together, compare
from cuvee.training.trainer import LMTrainer

_CLASSES = {
    "products": ("mm", "bmm", "addmm", "addmm_", "baddbmm"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",
                  "_scaled_dot_product_flash_attention_for_cpu_backward"),
    "loss": ("_softmax", "amax", "gather", "scatter_add_", "index_add_", "log", "fill_"),
    "adamw": ("_fused_adamw_",),
    "elementwise": ("mul", "add", "mul_", "add_", "copy_", "sum", "mean", "pow", "rsqrt", "silu",
                    "silu_backward", "neg", "cat"),
}  # fmt: skip


def trainer_of(corpus: Corpus, model: str, batch: int, length: int, seed: int) -> LMTrainer:
    settings = TrainerSettings(
        steps=10**6, batch_size=batch, sequence_length=length, validate_every=0, seed=seed
    )
    stream = MixtureStream(
        corpus, Mixture.uniform(corpus.names), batch_size=batch, sequence_length=length, seed=seed
    )
    trainer = LMTrainer(build_model(model, corpus, seed=seed), stream, corpus, settings)
    trainer.start(())
    return trainer


def advance(*trainers: LMTrainer) -> None:
    for trainer in trainers:
        trainer.advance(Mixture.uniform(trainer.corpus.names))


def advance_together(trainers: list[LMTrainer]) -> None:
    group = Together(trainers)

    def placed(trainer: LMTrainer) -> None:
        with group.place(trainer):
            advance(trainer)

    with ThreadPoolExecutor(len(trainers)) as pool:
        list(pool.map(placed, trainers))


def best_of(rounds: int, *ways: Callable[[], None]) -> list[float]:
    """Seconds of each way, which take turns; the first turn of each is not counted."""
    best = [float("inf")] * len(ways)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for turn in range(rounds + 1):
        for number, way in enumerate(ways):
            began = clock()
            way()
            if turn:
                best[number] = min(best[number], clock() - began)
    return best


def shares(trainer: LMTrainer) -> dict[str, float]:
    """Shares of one trainer's time by class of operation.

    A profiler slows every operation, and small ones most.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        advance(trainer)
        seconds = time.perf_counter() - began
    times: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in _CLASSES.items() if name in names), "other_operations")
        times[kind] += event.self_cpu_time_total / 1e6
    times["between_operations"] = max(0.0, seconds - sum(times.values()))
    total = sum(times.values())
    return {
        kind: round(spent / total, 3)
        for kind, spent in sorted(times.items(), key=lambda item: -item[1])
    }


def measure(
    corpus: Corpus, model: str, batch: int, length: int, members: int, rounds: int = 3
) -> dict[str, Any]:
    """`gain`, `bound`, `trial` and `same_bits` of one shape."""
    torch.set_num_threads(1)
    trainers = [trainer_of(corpus, model, batch, length, seed) for seed in range(members)]
    trial = compare(trainers)
    alone, stacked = best_of(rounds, lambda: advance(*trainers), lambda: advance_together(trainers))
    large = trainer_of(corpus, model, members * batch, length, 0)
    one, whole = best_of(rounds, lambda: advance(trainers[0]), lambda: advance(large))
    return {
        "gain": round(alone / stacked, 2),
        "bound": round(members * one / whole, 2),
        "trial": round(trial.gain, 2),
        "same_bits": trial.same_bits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--model", default="llama-0.1m")
    parser.add_argument("--shapes", nargs="+", default=["16x256", "16x128", "4x128", "2x64"])
    parser.add_argument("--members", nargs="+", type=int, default=[2, 4, 8])
    options = parser.parse_args()
    found = []
    for folder in options.corpus:
        corpus = Corpus.open(folder)
        for shape in options.shapes:
            batch, length = map(int, shape.split("x"))
            row: dict[str, Any] = {"vocabulary": corpus.vocab_size, "shape": shape}
            torch.set_num_threads(1)
            trainer = trainer_of(corpus, options.model, batch, length, 0)
            advance(trainer)
            row["share"] = shares(trainer)
            row["together"] = {
                str(members): measure(corpus, options.model, batch, length, members)
                for members in options.members
            }
            print(json.dumps(row), flush=True)
            found.append(row)
    best = max(each["gain"] for row in found for each in row["together"].values())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(
        json.dumps(
            {"vectorised_gain": best, "model": options.model, "device": device, "shapes": found}
        )
    )


if __name__ == "__main__":
    main()

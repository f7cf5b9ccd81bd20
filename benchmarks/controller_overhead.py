"""What steering costs a step of the Hugging Face Trainer, with ODM and with AC-ODM.

    python benchmarks/controller_overhead.py [--preset llama-5m] [--rounds 8]

Each round trains a few steps three times from the same weights on the same rows, in random order:
`plain` (the host's own loss, the same dataset without stamps), `loss` (ODM) and `alignment` (AC-ODM
at its default stride). A round's ratio compares mean step times in processor seconds, which other
processes on the machine disturb less. Reported are the median over rounds and its 95 % bootstrap
interval. Step times include decisions and everything else at an interval's end.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

import tokenizers

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.integrations.huggingface import Steering
from cuvee.integrations.lane_rows import collate, take_rows
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.odm import ODM
from cuvee.training.model import build_model

DOMAINS, ROWS, LENGTH, INTERVAL = 22, 4, 256, 10
WARM, STEPS = 3, 13


class Corpus(MemoryCorpus):
    """Random tokens; what they are does not matter here."""

    vocab_size = 4096
    end_of_text = 0

    def tokenizer(self) -> tokenizers.Tokenizer:
        raise NotImplementedError("the tokens are random numbers")

    class manifest:
        class tokenizer:
            sha256 = None


class Clock(TrainerCallback):  # type: ignore[misc]
    """Processor seconds from step to step; the first ones, which allocate, are left out."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, *_: Any, **host: Any) -> None:
        self.marks.append(time.process_time())

    @property
    def seconds(self) -> float:
        return float(np.diff(self.marks)[WARM:].mean())


def corpus_of(generator: np.random.Generator) -> Corpus:
    tokens = 200_000
    return Corpus(
        {
            f"d{k}": TokenPool(f"d{k}", generator.integers(1, 4096, tokens), np.array([0]))
            for k in range(DOMAINS)
        }
    )


def without_stamps(rows: Any) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    take_rows(batch)
    return batch


def step_seconds(kind: str, corpus: Corpus, preset: str, folder: str) -> float:
    method = ACODM() if kind == "alignment" else ODM()
    policy = method.commit(corpus, ())
    steer = Steering(
        corpus,  # type: ignore[arg-type]
        policy,
        interval=INTERVAL,
        sequence_length=LENGTH,
    )
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    args, clock = steer.arguments(args), Clock()
    kwargs = steer.trainer_kwargs()
    if kind == "plain":
        kwargs = {"train_dataset": kwargs["train_dataset"], "data_collator": without_stamps}
        kwargs["callbacks"] = []
    kwargs["callbacks"] = [clock, *kwargs["callbacks"]]
    Trainer(build_model(preset, corpus, seed=0), args, **kwargs).train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="llama-5m")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    corpus = corpus_of(generator)
    ratios: dict[str, list[float]] = {"loss": [], "alignment": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            order = generator.permutation(["plain", "loss", "alignment"])
            seconds = {kind: step_seconds(kind, corpus, options.preset, folder) for kind in order}
            for kind in ratios:
                ratios[kind].append(seconds[kind] / seconds["plain"])
            print(number, {kind: round(each[-1], 4) for kind, each in ratios.items()}, flush=True)
    report: dict[str, Any] = {"preset": options.preset, "rounds": options.rounds}
    for kind, each in ratios.items():
        medians = np.median(generator.choice(each, (2000, len(each))), axis=1)
        report[f"hf_step_ratio_{kind}"] = round(float(np.median(each)), 4)
        report[f"hf_step_ratio_{kind}_95"] = np.quantile(medians, [0.025, 0.975]).round(4).tolist()
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""What steering costs a step of the Hugging Face Trainer, with ODM, DoGE and AC-ODM.

    python benchmarks/controller_overhead.py [--preset llama-5m] [--methods loss …]

Four trainers train the same weights on rows of the same size: `plain` (the host's own loss, the
same dataset without stamps), `loss` (ODM), `alignment` (DoGE, gradient alignment at its default
stride) and `ac_odm` (which reads 8 rows of validation text every fourth step). They take turns step
by step, in random order, so a change of the machine's speed meets all of them alike. The time of a
step is the processor time of its own thread, from the beginning of the step to the beginning
of the next one, so it includes decisions and the reading of rows.

A pair is the same step of two trainers. The ratio of each place in an interval is the median over
its pairs, and the reported ratio is the mean over the places. So a slow moment of the machine does
not count, and what happens once an interval does. Its 95 % interval is a bootstrap over intervals.
The first interval is left out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from string import ascii_lowercase
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from cuvee.core.protocols import Method
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.integrations.huggingface import Steering
from cuvee.integrations.lane_rows import collate, take_rows
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.doge import DoGE
from cuvee.methods.odm import ODM
from cuvee.training.model import build_model

DOMAINS, ROWS, LENGTH, INTERVAL = 22, 4, 256, 10
METHODS: dict[str, Method] = {"loss": ODM(), "alignment": DoGE(), "ac_odm": ACODM()}


def corpus_in(folder: Path) -> Corpus:
    """A corpus of random words; what they are does not matter here."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(ascii_lowercase), 6)) for _ in range(4000)]
    sources = folder / "sources"
    sources.mkdir()
    for k in range(DOMAINS):
        texts = (" ".join(generator.choice(words, 400)) for _ in range(60))
        rows = [json.dumps({"text": text}) for text in texts]
        (sources / f"d{k}.jsonl").write_text("\n".join(rows))
    settings = BuildSettings(vocab_size=4096, valid_share=0.1, test_share=0.0)
    return build([sources], folder / "corpus", settings, workers=1)


def without_stamps(rows: Any) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    take_rows(batch)
    return batch


class Turn(TrainerCallback):  # type: ignore[misc]
    """Stops a trainer's thread at the beginning of each step, until its next turn."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        """Processor seconds of the thread at the beginning of each step, and at the end."""
        self._go = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self.error: BaseException | None = None

    def on_step_begin(self, *_: Any, **host: Any) -> None:
        self.end()
        self.wait()

    def end(self) -> None:
        self.marks.append(time.thread_time())
        self._done.release()

    def wait(self) -> None:
        self._go.acquire()

    def take(self) -> None:
        """Let the thread run until the beginning of its next step."""
        self._go.release()
        self._done.acquire()
        if self.error is not None:
            raise self.error

    def seconds(self) -> list[float]:
        """Return the processor seconds of each step."""
        seconds: list[float] = np.diff(self.marks).tolist()
        return seconds


class Player:
    """One of the trainers, in a thread of its own."""

    def __init__(self, trainer: Trainer, turn: Turn) -> None:
        self.turn = turn
        self._trainer = trainer
        threading.Thread(target=self._train, daemon=True).start()
        turn.take()  # until the beginning of the first step

    def _train(self) -> None:
        self.turn.wait()
        try:
            self._trainer.train()
        except BaseException as error:
            self.turn.error = error
        self.turn.end()


def player_of(kind: str, corpus: Corpus, preset: str, folder: str, steps: int) -> Player:
    policy = METHODS.get(kind, ODM()).commit(corpus, ())
    steer = Steering(corpus, policy, interval=INTERVAL, sequence_length=LENGTH)
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    args, turn = steer.arguments(args), Turn()
    kwargs = steer.trainer_kwargs()
    if kind == "plain":
        kwargs = {"train_dataset": kwargs["train_dataset"], "data_collator": without_stamps}
        kwargs["callbacks"] = []
    kwargs["callbacks"] = [turn, *kwargs["callbacks"]]
    return Player(Trainer(build_model(preset, corpus, seed=0), args, **kwargs), turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="llama-5m")
    parser.add_argument("--intervals", type=int, default=12)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    kinds = ("plain", *options.methods)
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    steps = (1 + options.intervals) * INTERVAL
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_in(Path(folder))
        players = {kind: player_of(kind, corpus, options.preset, folder, steps) for kind in kinds}
        for step in range(steps):
            for kind in generator.permutation(kinds):
                players[kind].turn.take()
            last = {kind: round(player.turn.seconds()[-1], 4) for kind, player in players.items()}
            print(f"step {step}, processor seconds: {json.dumps(last)}", flush=True)
    seconds = {kind: np.array(player.turn.seconds()) for kind, player in players.items()}
    print(json.dumps({"preset": options.preset, **summary(seconds, generator)}))


def summary(
    seconds: dict[str, np.ndarray[Any, Any]], generator: np.random.Generator
) -> dict[str, Any]:
    """Return what the last line reports, from the seconds of each step of each trainer."""
    by_place = {kind: each.reshape(-1, INTERVAL)[1:] for kind, each in seconds.items()}
    plain_NI = by_place.pop("plain")
    pairs = len(plain_NI)
    report: dict[str, Any] = {"intervals": pairs}
    report["plain_step_seconds"] = round(float(np.median(plain_NI)), 4)
    for kind, steered_NI in by_place.items():
        ratio_NI = steered_NI / plain_NI
        draws = generator.integers(pairs, size=(2000, pairs))
        means = np.median(ratio_NI[draws], axis=1).mean(axis=1)
        report[f"hf_step_ratio_{kind}"] = round(float(np.median(ratio_NI, axis=0).mean()), 4)
        report[f"hf_step_ratio_{kind}_95"] = np.quantile(means, [0.025, 0.975]).round(4).tolist()
    return report


if __name__ == "__main__":
    main()

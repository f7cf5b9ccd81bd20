"""The training losses of a small model stay the same, so a change of the arithmetic is noticed.

Processors sum in different orders, so losses are compared to 1e-3 nats and not to the bit.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cuvee.core.mixture import Mixture
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.stream.stream import MixtureStream
from cuvee.loop import run
from cuvee.policies.fixed import Fixed
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer

pytestmark = pytest.mark.training

GOLDEN_TK = [
    [5.162892, 5.154299],
    [4.337316, 4.458023],
    [4.094041, 4.220965],
]
"""Loss by domain of each interval, in nats per token."""


def test_training_losses_are_what_they_were(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "text").mkdir()
    for seed, name in enumerate(("colours", "numbers")):
        rows = (json.dumps({"text": text}) for text in _documents(seed))
        (tmp_path / "text" / f"{name}.jsonl").write_text("\n".join(rows))
    corpus = build(
        [tmp_path / "text"],
        tmp_path / "corpus",
        BuildSettings(vocab_size=300, test_share=0),
        workers=1,
    )
    settings = TrainerSettings(
        steps=12,
        batch_size=8,
        sequence_length=64,
        interval=4,
        learning_rate=3e-3,
        validation_tokens=256,
        device="cpu",
    )
    mixture = Mixture.of({"colours": 0.75, "numbers": 0.25})
    stream = MixtureStream(corpus, mixture, batch_size=8, sequence_length=64, seed=3)
    model = build_model("llama-0.1m", corpus, seed=2)
    history = run(LMTrainer(model, stream, corpus, settings), Fixed(mixture))
    losses_TK = np.array([signals.loss.values for signals in history.signals[1:]])
    np.testing.assert_allclose(losses_TK, GOLDEN_TK, atol=1e-3)


def _documents(seed: int) -> list[str]:
    """Two hundred documents of made-up sentences, the same on every machine."""
    draw = random.Random(seed)
    words = [["red", "green", "blue", "dark", "pale"], ["one", "two", "three", "four", "five"]][
        seed
    ]
    return [
        " ".join(draw.choice(words) for _ in range(draw.randint(20, 60))) + "." for _ in range(200)
    ]

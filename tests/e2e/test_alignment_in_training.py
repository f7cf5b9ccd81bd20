"""Alignment and an evaluation set in a real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe
from cuvee.core.signals import Signals
from cuvee.data.stream.stream import MixtureStream
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training


def test_a_trainer_reports_them_and_trains_no_differently(tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path / "data")
    rows = [
        {"prompt": f"def {name}(", "answer": "self):\n"}
        for name in ("close", "open", "read", "write", "seek")
    ]
    questions = tmp_path / "code.jsonl"
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    mixture = Mixture.of({"algorithms": 0.5, "mail": 0.5, "network": 0.0})

    def run(probes: list[Probe]) -> list[Signals]:
        settings = TrainerSettings(
            steps=40,
            interval=20,
            batch_size=8,
            sequence_length=64,
            device="cpu",
            micro_batch_size=3,
        )
        stream = MixtureStream(
            corpus, Mixture.uniform(corpus.names), batch_size=8, sequence_length=64, seed=1
        )
        trainer = LMTrainer(build_model("llama-0.1m", corpus, seed=1), stream, corpus, settings)
        return [
            trainer.start(probes),
            trainer.advance(mixture),
            trainer.advance(Mixture.uniform(corpus.names)),
        ]

    start, first, second = run(
        [GradientAlignment(stride=3), EvaluationSet({"code": [questions]}, share=0.002)]
    )
    plain = run([])

    assert not start.probes["alignment"].present.any()
    absent = corpus.names.index("network")
    assert first.probes["alignment"].present.sum() == 4
    assert second.probes["alignment"].present.all()
    assert not first.probes["alignment"].present[absent].any()
    gram = second.probes["alignment"].values
    assert np.linalg.eigvalsh(gram).min() > -1e-6 * np.trace(gram)
    assert 0 < start.probes["evaluation_tokens"].values <= 3 * 0.002 * 20 * 8 * 64
    scores = [float(signals.probes["evaluation"].values[0]) for signals in (start, first, second)]
    assert scores[0] < scores[1] < scores[2] < 0
    assert [signals.loss for signals in (start, first, second)] == [
        signals.loss for signals in plain
    ]
    assert second.probes["valid_loss"] == plain[2].probes["valid_loss"]

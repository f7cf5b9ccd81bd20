"""The loss on the test split: measured once, on the final model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.training.distributed import Ranks
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import NAMES, stdlib_corpus

pytestmark = pytest.mark.training
SETTINGS = TrainerSettings(
    steps=4, batch_size=2, sequence_length=32, interval=2, validation_tokens=128, device="cpu"
)


def trained(corpus: Corpus) -> tuple[LMTrainer, list[set[str]]]:
    trainer = LMTrainer.build("llama-0.1m", corpus, SETTINGS, Ranks())
    signals = [trainer.start(())]
    while not trainer.done:
        signals.append(trainer.advance(Mixture.uniform(NAMES)))
    return trainer, [set(one.probes) for one in signals]


def test_it_is_measured_at_the_end_only_counted_and_hidden_from_proxies(tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path, test_share=0.1)
    tested, names = trained(corpus)
    assert ["test_loss" in there for there in names] == [False, False, True]
    hidden, names = trained(corpus.without_test())
    assert not any("test_loss" in there for there in names)
    tokens = tested.validation.tokens([corpus.pool(name, "test") for name in NAMES])
    extra = tested.cost.flops - hidden.cost.flops
    assert extra == pytest.approx(tokens * tested.size.flops_per_token / 3)

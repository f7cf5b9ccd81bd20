"""`ValidTokenLosses`: the loss of every validation token, once, at the end of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals
from cuvee.data.corpus.corpus import Corpus
from cuvee.probes.base import Context
from cuvee.probes.token_losses import NAME, ValidTokenLosses
from cuvee.training.distributed import Ranks
from cuvee.training.settings import TrainerSettings
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import NAMES, stdlib_corpus

pytestmark = pytest.mark.training

LENGTH, TOKENS = 32, 128
SETTINGS = TrainerSettings(
    steps=4,
    batch_size=2,
    sequence_length=LENGTH,
    interval=2,
    validation_tokens=TOKENS,
    device="cpu",
)
MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("corpus"))


def trained(corpus: Corpus, probe: ValidTokenLosses, mixture: Mixture) -> list[Signals]:
    trainer = LMTrainer.build(MODEL, corpus, SETTINGS, Ranks())
    signals = [trainer.start((probe,))]
    while not trainer.done:
        signals.append(trainer.advance(mixture))
    return signals


def test_they_are_measured_at_the_end_only_and_average_to_the_validation_loss(
    corpus: Corpus,
) -> None:
    signals = trained(corpus, ValidTokenLosses(tokens=TOKENS), Mixture.uniform(NAMES))
    assert [NAME in one.probes for one in signals] == [False, False, True]
    losses, valid = (signals[-1].probes[name] for name in (NAME, "valid_loss"))
    windows = TOKENS // LENGTH
    assert losses.shape == (len(NAMES), windows * (LENGTH - 1))
    assert losses.present.all()
    np.testing.assert_allclose(losses.values.mean(axis=1), valid.values, rtol=1e-6)


def test_the_tokens_are_the_same_under_every_mixture(corpus: Corpus) -> None:
    probe = ValidTokenLosses(tokens=TOKENS)
    one, other = (trained(corpus, probe, Mixture.uniform(NAMES[:2]).to(NAMES)) for _ in range(2))
    assert one[-1].probes[NAME] == other[-1].probes[NAME]
    third = trained(corpus, probe, Mixture.of({NAMES[2]: 1.0}).to(NAMES))[-1].probes[NAME]
    assert (third.present == one[-1].probes[NAME].present).all()


def test_rows_are_the_domains_that_are_asked_for_and_short_ones_end_early(corpus: Corpus) -> None:
    names = (NAMES[2], NAMES[0])
    everything = ValidTokenLosses(domains=names, tokens=10**6)
    losses = trained(corpus, everything, Mixture.uniform(NAMES))[-1].probes[NAME]
    there = [len(corpus.pool(name, "valid")) // LENGTH * (LENGTH - 1) for name in names]
    assert losses.present.sum(axis=1).tolist() == there
    assert losses.shape == (2, max(there))


def test_ranks_share_the_tokens_and_add_up_to_the_same(corpus: Corpus) -> None:
    trainer = LMTrainer.build(MODEL, corpus, SETTINGS, Ranks())
    pools = [corpus.pool(name, "valid") for name in NAMES]
    cpu = torch.device("cpu")
    whole = trainer.validation.token_losses(trainer.loss, pools, cpu, 1, 0, 1)
    parts = [trainer.validation.token_losses(trainer.loss, pools, cpu, 1, r, 3) for r in range(3)]
    assert sum(part.read for part in parts) == whole.read == len(NAMES) * TOKENS
    total = torch.stack([part.losses_DN for part in parts]).sum(0)
    torch.testing.assert_close(total, whole.losses_DN)


def test_their_cost_is_that_of_a_validation_on_as_many_tokens(corpus: Corpus) -> None:
    costs = []
    for probes in ((), (ValidTokenLosses(tokens=TOKENS),)):
        trainer = LMTrainer.build(MODEL, corpus, SETTINGS, Ranks())
        trainer.start(probes)
        while not trainer.done:
            trainer.advance(Mixture.uniform(NAMES))
        costs.append(trainer.cost.flops)
    assert costs[1] - costs[0] == pytest.approx(
        len(NAMES) * TOKENS * trainer.size.flops_per_token / 3
    )


def test_nothing_to_measure_on_is_refused_before_the_first_step(corpus: Corpus) -> None:
    trainer = LMTrainer.build(MODEL, corpus, SETTINGS, Ranks())
    with pytest.raises(ConfigError, match="no validation text of latin"):
        trainer.start((ValidTokenLosses(domains=("latin", NAMES[0])),))
    with pytest.raises(ConfigError, match="needs a training loop with validation text"):
        ValidTokenLosses().attach(Context(trainer.model, torch.device("cpu")))
    with pytest.raises(ConfigError, match="tokens is 1"):
        ValidTokenLosses(tokens=1)

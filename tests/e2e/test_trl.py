"""TRL's SFTTrainer: what its fused loss gives is measured as the logits' losses are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.huggingface import Steering
from cuvee.integrations.trl import SFTSteering
from cuvee.policies.fixed import Fixed
from cuvee.probes.alignment import GradientAlignment
from cuvee.training.model import build_model
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training
torch.set_num_threads(1)
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEERED = {"interval": 4, "sequence_length": 32, "lag": 1}
ARGS = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "max_steps": 9,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_strategy": "no",
    "learning_rate": 1e-3,
    "bf16": False,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


class Probing(Fixed):
    """A mixture that stays, with alignment measured."""

    probes = (GradientAlignment(stride=1),)


def policy_of(corpus: Corpus) -> Probing:
    return Probing(Mixture.natural(corpus.domains))


def sft(corpus: Corpus, out: Path, policy: Any, **changes: Any) -> tuple[SFTSteering, SFTTrainer]:
    steer = SFTSteering(corpus, policy, **STEERED)
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    args = steer.arguments(SFTConfig(str(out), **{**ARGS, **skip, **changes}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=corpus.tokenizer(), eos_token="<eos>", pad_token="<pad>"
    )
    model = build_model(SMALL, corpus, seed=1)
    trainer = SFTTrainer(model, args, processing_class=tokenizer, **steer.trainer_kwargs())
    return steer, trainer


def test_losses_and_alignment_are_those_of_the_plain_trainer(
    corpus: Corpus, tmp_path: Path
) -> None:
    steer, trainer = sft(corpus, tmp_path, policy_of(corpus), gradient_checkpointing=False)
    trainer.train()
    plain = Steering(corpus, policy_of(corpus), **STEERED)
    args = plain.arguments(TrainingArguments(str(tmp_path), **ARGS))
    Trainer(build_model(SMALL, corpus, seed=1), args, **plain.trainer_kwargs()).train()
    found, expected = steer.controller.trajectory, plain.controller.trajectory
    assert [signals.step for signals in found.signals] == [0, 3, 7, 9]
    for a, b in zip(found.signals, expected.signals, strict=True):
        np.testing.assert_array_equal(a.tokens_K, b.tokens_K)
        np.testing.assert_allclose(a.loss.values, b.loss.values, rtol=1e-5)
        alignment = b.probes["alignment"].values
        scale = max(np.abs(alignment).max(), 1e-12)
        np.testing.assert_allclose(a.probes["alignment"].values, alignment, atol=1e-4 * scale)


def test_what_the_host_would_do_to_the_rows_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="skip_prepare_dataset"):
        sft(corpus, tmp_path, "odm", dataset_kwargs=None)
    with pytest.raises(ConfigError, match="loss_type is 'dft'"):
        sft(corpus, tmp_path, "odm", loss_type="dft")

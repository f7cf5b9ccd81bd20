"""TRL's SFTTrainer: what its fused loss gives is measured as the logits' losses are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
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
STEERED: dict[str, Any] = {"interval": 4, "sequence_length": 32, "lag": 1}
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


def policy_of(corpus: Corpus) -> Fixed:
    """A mixture that stays, with alignment measured."""
    return Fixed(Mixture.natural(corpus.domains), probes=[GradientAlignment(stride=1)])


def sft(
    corpus: Corpus, out: Path, policy: Any, *, steered: Any = STEERED, **changes: Any
) -> tuple[SFTSteering, SFTTrainer]:
    steer = SFTSteering(corpus, policy, **steered)
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


def odd_tokens_only(tokens_BL: Tensor) -> Tensor:
    """Stands for the mask of prompts."""
    return tokens_BL.masked_fill(tokens_BL % 2 == 0, -100)


class Reference:
    """A plain loop over packed rows: losses by domain and interval, summed token by token."""

    def __init__(self, corpus: Corpus, pieces: int) -> None:
        self.pieces = pieces
        self.model = build_model(SMALL, corpus, seed=1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)
        self.stream = MixtureStream(
            corpus,
            Mixture.natural(corpus.domains),
            batch_size=6 * pieces,
            sequence_length=32 // pieces,
            seed=0,
        )

    def train_step(self, sums_K: np.ndarray, counts_K: np.ndarray) -> None:
        batch = next(self.stream)
        tokens_BL = torch.from_numpy(batch.tokens_BL).view(6, 32)
        domain_BL = torch.from_numpy(np.array(batch.domain_BL)).view(6, 32)
        labels_BL = odd_tokens_only(tokens_BL)
        labels_BL[:, :: 32 // self.pieces] = -100
        labels_BL[~torch.from_numpy(batch.counted_BL.copy()).view(6, 32)] = -100
        logits_BLV = self.model(tokens_BL).logits[:, :-1]
        targets_BL = labels_BL[:, 1:]
        loss_BL = cross_entropy(logits_BLV.mT, targets_BL, reduction="none")
        for b, j in (targets_BL != -100).nonzero().tolist():
            sums_K[domain_BL[b, j + 1]] += float(loss_BL.detach()[b, j])
            counts_K[domain_BL[b, j + 1]] += 1
        (loss_BL.sum() / (targets_BL != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_packed_rows_with_masked_labels_are_measured_token_by_token(
    corpus: Corpus, tmp_path: Path
) -> None:
    packed = {**STEERED, "pieces": 4, "labels": odd_tokens_only}
    policy = Fixed(Mixture.natural(corpus.domains))
    steer, trainer = sft(
        corpus,
        tmp_path,
        policy,
        steered=packed,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        gradient_checkpointing=False,
    )
    trainer.train()
    reference = Reference(corpus, pieces=4)
    last = 0
    for signals in steer.controller.trajectory.signals[1:]:
        sums_K, counts_K = np.zeros(3), np.zeros(3)
        for _ in range(last, signals.step):
            reference.train_step(sums_K, counts_K)
        last = signals.step
        np.testing.assert_allclose(signals.loss.values, sums_K / counts_K, rtol=1e-5)
    assert last == ARGS["max_steps"]


def test_a_row_of_pieces_holds_several_domains(corpus: Corpus, tmp_path: Path) -> None:
    steer = SFTSteering(corpus, "odm", **STEERED, pieces=4)
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    steer.arguments(SFTConfig(str(tmp_path), **{**ARGS, **skip}))
    row = steer.trainer_kwargs()["train_dataset"][0]
    assert row["input_ids"].shape == (32,)
    assert len(row["cuvee_domain"].unique()) > 1
    with pytest.raises(ConfigError, match="pieces is 5"):
        SFTSteering(corpus, "odm", **STEERED, pieces=5)


def test_what_the_host_would_do_to_the_rows_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="skip_prepare_dataset"):
        sft(corpus, tmp_path, "odm", dataset_kwargs=None)
    with pytest.raises(ConfigError, match="loss_type is 'dft'"):
        sft(corpus, tmp_path, "odm", loss_type="dft")

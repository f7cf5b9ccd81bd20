"""The blockwise loss against full logits, and the loss meter on mixed, packed and split batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.probes.base import Context, MicroBatch
from cuvee.probes.loss import LossByDomain
from cuvee.training import loss as loss_module
from cuvee.training.loss import NextTokenLoss

torch.set_num_threads(1)

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 97,
}
PLAIN = [
    {"model_type": "llama", "tie_word_embeddings": True, **SIZES},
    {"model_type": "llama", **SIZES},
    {"model_type": "gpt_neox", **SIZES},
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 97},
]
OTHER = [
    {
        "model_type": "gemma2",
        "head_dim": 8,
        "num_key_value_heads": 1,
        "final_logit_softcapping": 0.05,
        **SIZES,
    },
    {"model_type": "phi", **SIZES},
]


def model_of(fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = dict(fields)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(fields.pop("model_type"), **fields)
    )
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)  # so that no bias is zero
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    return model


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens_BL = torch.randint(0, 97, (5, 13), generator=torch.Generator().manual_seed(1))
    counted_BL = torch.ones(5, 13, dtype=torch.bool)
    counted_BL[:, -1] = False
    counted_BL[2, 7:] = False
    return tokens_BL, counted_BL


def reference(
    model: PreTrainedModel, tokens_BL: torch.Tensor, counted_BL: torch.Tensor
) -> torch.Tensor:
    logits = model(tokens_BL).logits
    loss_BL = functional.cross_entropy(logits[:, :-1].mT, tokens_BL[:, 1:], reduction="none")
    return functional.pad(loss_BL, (0, 1)).masked_fill(~counted_BL, 0.0)


@pytest.mark.parametrize("fields", PLAIN + OTHER, ids=lambda fields: fields["model_type"])
@pytest.mark.parametrize("block", [1, 2**20])
def test_loss_and_gradients_are_those_of_whole_logits(
    fields: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loss_module, "_CPU_BLOCK", block
    )  # 1: blocks of 64 positions, which do not divide 65
    model, (tokens_BL, counted_BL) = model_of(fields), a_batch()
    expected_BL = reference(model, tokens_BL, counted_BL)
    (expected_BL.sum() / 7.0).backward()
    expected = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    loss = NextTokenLoss(model)
    assert loss.blockwise == (fields in PLAIN)
    total, loss_BL = loss(tokens_BL, counted_BL, 7.0)
    total.backward()
    assert not loss_BL.requires_grad
    torch.testing.assert_close(loss_BL, expected_BL.detach())
    torch.testing.assert_close(total.detach(), expected_BL.detach().sum() / 7.0)
    for own, other in zip(
        (w.grad for w in model.parameters() if w.grad is not None), expected, strict=True
    ):
        torch.testing.assert_close(own, other)


def test_bf16_is_near_float32_and_its_sums_are_float32() -> None:
    model, (tokens_BL, counted_BL) = model_of(PLAIN[0]), a_batch()
    exact_BL = reference(model, tokens_BL, counted_BL).detach()
    total, loss_BL = NextTokenLoss(model, compute=torch.bfloat16)(tokens_BL, counted_BL, 1.0)
    total.backward()
    assert loss_BL.dtype == torch.float32
    assert all(
        weight.grad is None or weight.grad.dtype == torch.float32 for weight in model.parameters()
    )
    torch.testing.assert_close(loss_BL, exact_BL, rtol=0.02, atol=0.05)


def test_a_target_of_vanishing_probability_has_a_large_loss_and_not_an_infinite_one() -> None:
    model, (tokens_BL, counted_BL) = model_of(PLAIN[1]), a_batch()
    model.get_output_embeddings().weight.data *= 400
    expected_BL = reference(model, tokens_BL, counted_BL).detach()
    assert expected_BL.max() > 150
    with torch.no_grad():
        _, loss_BL = NextTokenLoss(model)(tokens_BL, counted_BL, 1.0)
    torch.testing.assert_close(loss_BL, expected_BL, rtol=1e-4, atol=1e-3)


def test_a_model_that_sees_the_future_is_refused() -> None:
    with pytest.raises(ConfigError, match="uses later tokens"):
        NextTokenLoss(model_of({"model_type": "bert", **SIZES}))


@given(data=st.data(), K=st.integers(1, 6))
def test_the_meter_gives_every_token_loss_to_its_own_domain(data: st.DataObject, K: int) -> None:
    """Mixed and packed rows, two micro-batches, two ranks: sums of sums are exact."""
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    meters = [
        LossByDomain().attach(Context(torch.nn.Linear(1, 1), torch.device("cpu"))) for _ in range(2)
    ]
    losses, domains, counts = [], [], []
    for meter in meters:
        meter.begin_interval(tuple(Domain(f"d{k}", 1) for k in range(K)))
        for _ in range(2):
            shape = (int(generator.integers(1, 4)), int(generator.integers(1, 9)))
            counted_BL = generator.random(shape) < 0.7
            loss_BL = (generator.random(shape) * counted_BL).astype(np.float32)
            domain_BL = generator.integers(0, K, shape)
            batch = MicroBatch(
                torch.zeros(shape),
                torch.from_numpy(domain_BL),
                torch.from_numpy(counted_BL),
                denominator=3.0,
            )
            meter.after_forward(batch, torch.from_numpy(loss_BL))
            losses += loss_BL.ravel().tolist()
            domains += domain_BL.ravel().tolist()
            counts += counted_BL.ravel().tolist()
    measured = meters[0].read(meters[0].sums() + meters[1].sums())["loss"]
    for k in range(K):
        own = [
            loss
            for loss, domain, counted in zip(losses, domains, counts, strict=True)
            if domain == k and counted
        ]
        assert measured.present[k] == bool(own)
        assert measured.values[k] == pytest.approx(np.mean(own) if own else 0.0, rel=1e-12)
    meters[0].begin_interval((Domain("d0", 1),))
    assert meters[0].sums().tolist() == [0.0, 0.0]

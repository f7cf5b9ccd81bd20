"""Tiny models, batches and K separate backward passes, for the tests of GradientAlignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
)

from cuvee.core.domain import Domain
from cuvee.core.signals import Measured
from cuvee.probes.alignment import AlignmentMeter, GradientAlignment
from cuvee.probes.base import Context, Meter, MicroBatch
from cuvee.probes.meters import Meters

VOCAB, ROWS, LENGTH, K = 61, 12, 24, 5
DOWN = {"llama": "model.layers.1.mlp.down_proj", "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h"}


def domains(count: int = K) -> tuple[Domain, ...]:
    return tuple(Domain(f"d{k}", tokens=1000) for k in range(count))


def model_of(kind: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shared = {"vocab_size": VOCAB, "max_position_embeddings": 64, "tie_word_embeddings": True}
    if kind == "llama":
        config = LlamaConfig(**sizes, **shared)
    elif kind == "gpt_neox":
        config = GPTNeoXConfig(**sizes, **shared)
    else:
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=64)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return AutoModelForCausalLM.from_config(config).train()


def rows_of_one_domain(seed: int = 0, used: int = K) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    counted_BL = torch.rand(ROWS, LENGTH, generator=generator) < 0.9
    counted_BL[:, -1] = False
    domain_B = torch.randint(0, used, (ROWS,), generator=generator)
    return MicroBatch(
        tokens_BL=torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator),
        domain_BL=domain_B[:, None].expand(ROWS, LENGTH),
        counted_BL=counted_BL,
        denominator=float(counted_BL.sum()),
    )


def mixed_rows(seed: int = 0) -> MicroBatch:
    batch = rows_of_one_domain(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    domain_BL = torch.randint(0, K, (ROWS, LENGTH // 3), generator=generator).repeat_interleave(
        3, dim=1
    )
    return MicroBatch(batch.tokens_BL, domain_BL, batch.counted_BL, batch.denominator)


def token_losses(model: Callable[..., Any], batch: MicroBatch) -> Tensor:
    """(B, L): the loss of the next token at each position, 0 where it is not counted."""
    logits_BLV = model(input_ids=batch.tokens_BL).logits.float()
    labels_BL = batch.tokens_BL.roll(-1, dims=1)
    return cross_entropy(logits_BLV.transpose(1, 2), labels_BL, reduction="none") * batch.counted_BL


def train_step(
    model: Callable[..., Any], batches: list[MicroBatch], meter: Meter | Meters, step: int = 0
) -> None:
    """What a trainer does, less the update."""
    meter.begin_step(step)
    for batch in batches:
        meter.before_forward(batch)
        loss_BL = token_losses(model, batch)
        meter.after_forward(batch, loss_BL.detach())
        (loss_BL.sum() / batch.bound()).backward()  # type: ignore[no-untyped-call]
    meter.before_update()


def measured(meter: Meter) -> Measured:
    return meter.read(meter.sums())["alignment"]


def separate_backward(
    model: nn.Module, batches: list[MicroBatch], layers: list[str], count: int = K
) -> np.ndarray:
    """The slow way: a forward and a backward pass for each domain's mean loss."""
    weights = [model.get_parameter(f"{layer}.weight") for layer in layers]
    gradients = torch.zeros(count, sum(weight.numel() for weight in weights))
    for k in range(count):
        counted = sum(float((batch.counted_BL & (batch.domain_BL == k)).sum()) for batch in batches)
        for batch in batches:
            loss = (token_losses(model, batch) * (batch.domain_BL == k)).sum() / max(counted, 1.0)
            gradients[k] += torch.cat(
                [part.reshape(-1) for part in torch.autograd.grad(loss, weights)]
            )
    return (gradients.double() @ gradients.double().T).numpy()


def error(gram: Measured, expected: np.ndarray) -> float:
    """The largest |Ĝ_ij − G_ij| / (‖g_i‖‖g_j‖) over what is present."""
    norms = np.sqrt(np.diag(expected))
    relative = np.abs(gram.values - expected) / np.maximum(np.outer(norms, norms), 1e-30)
    return float(relative[gram.present].max())


def attach(model: nn.Module, count: int = K, **options: Any) -> AlignmentMeter:
    meter = GradientAlignment(**options).attach(Context(model, torch.device("cpu")))
    meter.begin_interval(domains(count))
    return meter

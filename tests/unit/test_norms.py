"""Weight and gradient norms against NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cuvee.core.errors import ConfigError
from cuvee.core.signals import Measured
from cuvee.probes.base import Context, Place
from cuvee.probes.norms import WeightNorms
from cuvee.testing.probes import GradientNorm

torch.set_num_threads(1)


def a_model(kind: str = "llama") -> PreTrainedModel:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=31, **sizes))


def contexts(model: torch.nn.Module) -> list[Context]:
    return [Context(model, torch.device("cpu"), place=Place(rank, 2)) for rank in range(2)]


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_weight_norms_and_their_changes_by_layer(kind: str) -> None:
    model = a_model(kind)
    layers = model.base_model.layers
    meters = [WeightNorms().attach(context) for context in contexts(model)]

    def measure() -> list[Mapping[str, Measured]]:
        total = meters[0].sums() + meters[1].sums()
        return [meter.read(total) for meter in meters]

    def norms() -> np.ndarray:
        squares = (
            [(w.detach().double() ** 2).sum().item() for w in layer.parameters()]
            for layer in layers
        )
        return np.array([np.sqrt(sum(square)) for square in squares])

    first = norms()
    for read in measure():
        np.testing.assert_allclose(read["weight_norms"].values, first, rtol=1e-6)
        assert not read["weight_norm_changes"].present.any()
    model.base_model.layers[1].mlp.requires_grad_(False)
    for weight in layers[1].parameters():
        weight.data *= 1.5
    state = meters[0].state_dict()
    meters[1].load_state_dict(state)
    for read in measure():
        np.testing.assert_allclose(
            read["weight_norm_changes"].values, [0, first[1] * 0.5, 0], rtol=1e-5, atol=1e-6
        )


def test_gradient_norm_is_the_mean_over_steps() -> None:
    model = a_model()
    meters = [GradientNorm().attach(context) for context in contexts(model)]
    for meter in meters:
        meter.begin_interval(())
    assert not meters[0].read(meters[0].sums() + meters[1].sums())["gradient_norm"].present
    for scale in (1.0, 3.0):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, scale)
        for meter in meters:
            meter.before_update()
    measured = meters[1].read(meters[0].sums() + meters[1].sums())["gradient_norm"]
    assert measured.shape == ()
    assert float(measured.values) == pytest.approx(
        2.0 * np.sqrt(sum(w.numel() for w in model.parameters())), rel=1e-5
    )


def test_a_model_without_layers_is_named() -> None:
    with pytest.raises(ConfigError, match="Linear has no list of layers"):
        WeightNorms().attach(Context(torch.nn.Linear(2, 2), torch.device("cpu")))

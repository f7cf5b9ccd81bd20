"""Parameter counts as published for Pythia (Biderman et al., arXiv 2304.01373, table 1)."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from cuvee.training.model import model_config, size_of


@pytest.mark.parametrize(
    ("name", "total", "non_embedding"),
    [
        ("pythia-70m", 70_426_624, 18_915_328),
        ("pythia-160m", 162_322_944, 85_056_000),
        ("pythia-410m", 405_334_016, 302_311_424),
        ("pythia-1b", 1_011_781_632, 805_736_448),
    ],
)
def test_pythia_shapes_are_the_published_ones(name: str, total: int, non_embedding: int) -> None:
    with torch.device("meta"):
        size = size_of(AutoModelForCausalLM.from_config(model_config(name, vocab_size=50304)), 2048)
    assert (size.parameters, size.non_embedding) == (total, non_embedding)


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [
        ("llama-0.1m", 4096, 0.15),
        ("llama-1m", 4096, 1.0),
        ("llama-5m", 4096, 5.0),
        ("llama-50m", 50304, 51),
        ("llama-410m", 50304, 411),
        ("llama-1b", 50304, 1028),
        ("pythia-0.1m", 4096, 0.16),
        ("pythia-1m", 4096, 1.1),
    ],
)
def test_presets_are_as_large_as_their_names_say(
    name: str, vocab_size: int, millions: float
) -> None:
    with torch.device("meta"):
        size = size_of(
            AutoModelForCausalLM.from_config(model_config(name, vocab_size=vocab_size)), 256
        )
    assert size.parameters / 1e6 == pytest.approx(millions, rel=0.05)

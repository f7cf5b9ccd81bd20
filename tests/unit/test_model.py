"""Presets and configurations: counts, refusals, and weights that are a function of the seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cuvee.core.errors import ConfigError
from cuvee.training.model import PRESETS, build_model, model_config, size_of
from vocabulary import Words


@pytest.mark.parametrize("name", ["llama-0.1m", "llama-1m", "pythia-0.1m", "pythia-1m"])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    a, b, other = (build_model(name, Words(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], other[key]) for key in a)
    assert torch.equal(torch.get_rng_state(), untouched)


def test_a_model_has_the_corpus_vocabulary_and_end_of_text() -> None:
    model = build_model(
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, Words(301, 7)
    )
    assert model.config.vocab_size == 301
    assert model.config.eos_token_id == 7
    assert model.get_input_embeddings().weight.shape == (301, 16)


@pytest.mark.parametrize("name", ["llama-0.1m", "llama-410m", "pythia-70m"])
def test_parameters_and_flops_are_those_of_a_count_by_hand(name: str) -> None:
    fields, vocab, length = PRESETS[name], 1000, 64
    with torch.device("meta"):
        size = size_of(
            AutoModelForCausalLM.from_config(model_config(name, vocab_size=vocab)), length
        )
    d, layers, inner = (
        fields["hidden_size"],
        fields["num_hidden_layers"],
        fields["intermediate_size"],
    )
    if fields["model_type"] == "llama":
        blocks = layers * (4 * d * d + 3 * d * inner + 2 * d) + d
    else:
        blocks = layers * (4 * (d * d + d) + 2 * d * inner + inner + d + 4 * d) + 2 * d
    assert size.non_embedding == blocks
    assert size.parameters == blocks + vocab * d * (1 if fields["tie_word_embeddings"] else 2)
    assert size.flops_per_token == 6 * (blocks + vocab * d) + 12 * layers * d * length


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("llama-01m", "did you mean 'llama-0.1m'"),
        ("no/such/folder", "no model 'no/such/folder'"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"hidden_size": 8}, "model_type 'None'"),
        ({"model_type": "llama", "hiden_size": 8}, "did you mean 'hidden_size'"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "30"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama", "vocab_size": 299}, "smaller than the corpus's vocabulary of 300"),
    ],
)
def test_a_wrong_spec_is_named(spec: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_model(spec, Words())


def test_a_folder_is_continued_from_as_it_is(tmp_path: Path) -> None:
    model = build_model("llama-0.1m", Words(), seed=5)
    model.save_pretrained(tmp_path)
    again = build_model(str(tmp_path), Words(), seed=6)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert again.training
    assert next(again.parameters()).dtype == torch.float32


def test_a_folder_that_does_not_fit_the_corpus_is_refused(tmp_path: Path) -> None:
    build_model("llama-0.1m", Words()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="300 embeddings but the corpus has 400 tokens"):
        build_model(tmp_path, Words(400))
    Words(299).tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        build_model(tmp_path, Words())


def test_neither_pickles_nor_remote_code_are_read(tmp_path: Path) -> None:
    build_model("llama-0.1m", Words()).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(
        f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n"
    )
    fields = json.loads(config.read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config.write_text(json.dumps({**fields, "auto_map": code}))
    with pytest.raises(ConfigError, match="code of its own"):
        build_model(tmp_path, Words())
    config.write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        build_model(tmp_path, Words())
    assert not ran.exists()


def test_a_damaged_folder_is_a_named_error(tmp_path: Path) -> None:
    build_model("llama-0.1m", Words()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_model(tmp_path, Words())
    build_model("llama-0.1m", Words()).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_model(tmp_path, Words())

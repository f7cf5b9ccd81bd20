"""Builds causal language models from presets, Hugging Face configurations or folders."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tokenizers
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cuvee.core.errors import ConfigError, CorpusError
from cuvee.data.corpus.base_folder import find_base
from cuvee.data.corpus.tokenizer import parse_tokenizer, read_tokenizer
from cuvee.training.base_model import load_base


def _small_init(hidden: int) -> float:
    """√(2 / (5·hidden)), the initialization of Pythia (Nguyen & Salazar, arXiv 1910.05895).

    For a width of 1,024 it is close to the customary 0.02. For a width of 32 it is five times as
    large, and such a model learns markedly faster with it.
    """
    return math.sqrt(2 / (5 * hidden))


def _llama(
    hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "tie_word_embeddings": tied,
        "initializer_range": _small_init(hidden),
    }


def _pythia(hidden: int, layers: int, heads: int, *, tied: bool = False) -> dict[str, Any]:
    """GPT-NeoX as in Pythia (Biderman et al., arXiv 2304.01373).

    Residuals are parallel, and rotary embeddings cover a quarter of each head.
    """
    return {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": tied,
        "initializer_range": _small_init(hidden),
    }


# A preset's name gives its parameters with the intended vocabulary: about 4,096 tokens up to 5m,
# about 50,000 from 50m on. Small models tie input and output embeddings, which would otherwise be
# most of the model.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "llama-0.1m": _llama(32, 2, 2, 64, tied=True),
    "llama-1m": _llama(128, 3, 4, 256, tied=True),
    "llama-5m": _llama(256, 5, 4, 688, tied=True),
    "llama-50m": _llama(512, 8, 8, 1376, tied=True),
    "llama-410m": _llama(1024, 24, 16, 2816, tied=False),
    "llama-1b": _llama(2048, 16, 16, 5632, tied=False),
    "pythia-0.1m": _pythia(32, 2, 2, tied=True),
    "pythia-1m": _pythia(128, 3, 4, tied=True),
    "pythia-70m": _pythia(512, 6, 8),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16),
    "pythia-1b": _pythia(2048, 16, 8),
}

ModelSpec = str | Path | Mapping[str, Any]
"""A preset's name, a Hugging Face folder, or the fields of a configuration with `model_type`."""

# Arguments that configurations accept although they have no attribute of that name.
_ROPE_ARGUMENTS = {"rope_theta", "rotary_pct", "partial_rotary_factor"}


class Vocabulary(Protocol):
    """What building a model needs from a corpus."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int: ...

    def tokenizer(self) -> tokenizers.Tokenizer: ...


@dataclass(frozen=True)
class Size:
    """The size of a model."""

    parameters: int
    """All parameters; tied weights count once."""
    non_embedding: int
    """Parameters without input embeddings and output head."""
    flops_per_token: float
    """Operations of training on one token, forward and backward."""


def size_of(model: PreTrainedModel, sequence_length: int) -> Size:
    """Count parameters and FLOPs.

    A token costs 6·N + 12·layers·hidden·length FLOPs (Chowdhery et al., arXiv 2204.02311, appendix
    B). N counts the parameters that take part in products: all except the input embeddings, and
    including the output head even if it is tied.
    """
    total = sum(weight.numel() for weight in model.parameters())
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    non_embedding = total - embedding.numel() - (0 if head is embedding else head.numel())
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return Size(total, non_embedding, 6.0 * (non_embedding + head.numel()) + attention)


def model_config(
    spec: str | Mapping[str, Any], *, vocab_size: int, end_of_text: int | None = None
) -> PretrainedConfig:
    """Return the configuration of a preset or of a mapping with a `model_type`.

    Raises `ConfigError` for an unknown preset, model type or field.
    """
    if isinstance(spec, str):
        if spec not in PRESETS:
            raise ConfigError(f"no model {spec!r}{_nearest(spec, PRESETS)}; {_remedy(spec)}")
        spec = PRESETS[spec]
    fields = {
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        **spec,
    }
    kind = str(fields.pop("model_type", None))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"model_type {kind!r} is not a causal language model{_nearest(kind, CONFIG_MAPPING)}"
        )
    if fields["vocab_size"] < vocab_size:
        raise ConfigError(
            f"vocab_size {fields['vocab_size']} is smaller than the corpus's vocabulary of "
            f"{vocab_size}"
        )
    known = CONFIG_MAPPING[kind]()
    for name in fields:
        if not hasattr(known, name) and name not in _ROPE_ARGUMENTS:
            raise ConfigError(f"{kind} has no field {name!r}{_nearest(name, known.to_dict())}")
    try:
        config: PretrainedConfig = AutoConfig.for_model(kind, **fields)
    except Exception as error:  # each configuration class checks its fields in its own way
        raise ConfigError(f"this {kind} configuration is not valid: {error}") from error
    return config


def _remedy(spec: str) -> str:
    """What to do about a model that is neither a preset nor a folder."""
    presets = f"the presets, which are untrained, are {', '.join(PRESETS)}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return (
            "if it is a model of the Hugging Face Hub, download it, "
            f"`hf download {spec} --local-dir FOLDER`, and give model=FOLDER; {presets}"
        )
    return f"give the folder of a Hugging Face model; {presets}"


def check_model(spec: ModelSpec, corpus: Vocabulary) -> None:
    """Raise `ConfigError` for a model that `build_model` refuses, as far as weights do not matter.

    Neither builds a model nor reads weights.
    """
    if _is_folder(spec):
        find_base(Path(str(spec)))
    else:
        assert not isinstance(spec, Path)
        model_config(spec, vocab_size=corpus.vocab_size, end_of_text=corpus.end_of_text)


def _is_folder(spec: ModelSpec) -> bool:
    return isinstance(spec, Path) or (
        isinstance(spec, str) and spec not in PRESETS and Path(spec).is_dir()
    )


def build_model(spec: ModelSpec, corpus: Vocabulary, *, seed: int = 0) -> PreTrainedModel:
    """Return a model for the vocabulary of `corpus`: float32, on the CPU, in training mode.

    The weights of a new model depend only on `seed`. The weights of a folder are read from
    safetensors, and no code in the folder is executed. Raises `ConfigError` for a spec that is not
    valid or does not fit the corpus.
    """
    if _is_folder(spec):
        return _from_folder(Path(str(spec)), corpus)
    assert not isinstance(spec, Path)
    config = model_config(spec, vocab_size=corpus.vocab_size, end_of_text=corpus.end_of_text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:  # each model class checks its configuration in its own way
            raise ConfigError(
                f"no {config.model_type} model can be built from this configuration: {error}"
            ) from error
    return model.train()


def _from_folder(folder: Path, corpus: Vocabulary) -> PreTrainedModel:
    model = load_base(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < corpus.vocab_size:
        raise ConfigError(
            f"{folder} has {rows} embeddings but the corpus has {corpus.vocab_size} tokens: build "
            f"the corpus with --tokenizer {folder / 'tokenizer.json'}"
        )
    own = folder / "tokenizer.json"
    if own.is_file() and _vocabulary(own) != corpus.tokenizer().get_vocab():
        raise ConfigError(
            f"{folder} was trained with another tokenizer than the corpus: rebuild the corpus with "
            f"--tokenizer {own}"
        )
    return model.train()


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        return parse_tokenizer(read_tokenizer(path), str(path)).get_vocab()
    except CorpusError as error:
        raise ConfigError(str(error)) from error


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

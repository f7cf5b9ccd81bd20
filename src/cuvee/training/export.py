"""Writes a trained model as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cuvee.core.files import write_folder
from cuvee.data.corpus.base_folder import TOKENIZERS
from cuvee.training.base_model import no_progress_bars


def export_model(
    model: PreTrainedModel, tokenizer: Tokenizer | None, end_of_text: int, folder: Path
) -> None:
    """Write safetensors, configuration and tokenizer to `folder`, replacing its content.

    If writing fails, the previous content remains. A model that continued from a folder keeps that
    folder's tokenizer files, chat template, generation settings and number format. A new model
    gets the tokenizer of the corpus, if there is one.
    """
    carried: dict[str, bytes] = getattr(model, "carried_files", {})

    def fill(temporary: Path) -> None:
        _save_weights(model, temporary)
        has_vocabulary = not TOKENIZERS.isdisjoint(carried)
        if tokenizer is not None and not (has_vocabulary and "tokenizer_config.json" in carried):
            end = tokenizer.id_to_token(end_of_text)
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, eos_token=end, bos_token=end
            ).save_pretrained(temporary)
        for name, content in carried.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)

    write_folder(folder, fill)


def _save_weights(model: PreTrainedModel, folder: Path) -> None:
    dtype = getattr(model, "carried_dtype", torch.float32)
    tensors = _cast(model.state_dict(), dtype)
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        dtype = torch.float32  # the trained weights exceed the range of the half-precision format
        tensors = _cast(model.state_dict(), dtype)
    with no_progress_bars():
        model.save_pretrained(folder, state_dict=tensors)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _cast(tensors: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Convert floating-point tensors to `dtype`. Tied weights stay tied and are written once."""
    done: dict[tuple[int, torch.Size], Any] = {}
    return {
        name: done.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }

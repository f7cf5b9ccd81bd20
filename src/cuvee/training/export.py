"""Writes a trained model as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cuvee.core.files import write_folder
from cuvee.training.model import no_progress_bars


def export_model(
    model: PreTrainedModel, tokenizer: Tokenizer | None, end_of_text: int, folder: Path
) -> None:
    """Safetensors, configuration and, if there is one, the tokenizer; whole or not at all, replacing what was there."""

    def fill(temporary: Path) -> None:
        with no_progress_bars():
            model.save_pretrained(temporary)
        if tokenizer is not None:
            end = tokenizer.id_to_token(end_of_text)
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, eos_token=end, bos_token=end
            ).save_pretrained(temporary)

    write_folder(folder, fill)

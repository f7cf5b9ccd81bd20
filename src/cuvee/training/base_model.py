"""Loads a pre-trained causal language model to continue from. Only safetensors files are read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from cuvee.core.errors import ConfigError
from cuvee.data.corpus.base_folder import CONFIG, BaseFolder, find_base

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_FLOATS = {"F16", "BF16", "F32", "F64"}


def load_base(folder: Path) -> PreTrainedModel:
    """Return the model in `folder` in float32, with every parameter finite and read from its files.

    The model has two extra attributes for the export: `carried_files`, the files to copy, and
    `carried_dtype`, the number format of the weights. Raises `ConfigError` that names the first
    tensor that is missing, of another shape, not floating-point or not finite.
    """
    base = find_base(folder)
    with tempfile.TemporaryDirectory(prefix="cuvee-base-") as clean:
        _link(base, Path(clean))
        try:
            with no_progress_bars():
                model, loaded = AutoModelForCausalLM.from_pretrained(
                    clean,
                    trust_remote_code=False,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:  # files of unknown origin can fail in any way
            reason = str(error).replace(clean, str(folder))
            raise ConfigError(
                f"{folder} cannot be loaded as a causal language model: {reason}"
            ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"{folder} lacks the tensors {_some(missing)}: it is incomplete; download it again"
        )
    _check_types(base, set(loaded["unexpected_keys"]))
    _check_finite(folder, model)
    model.name_or_path = str(folder)
    model.carried_files = base.carried()
    model.carried_dtype = _dtype_of(base)
    return model


def _dtype_of(base: BaseFolder) -> torch.dtype:
    """The number format in the configuration, or float32 if it names none or an unknown one."""
    named = str(base.config.get("dtype", base.config.get("torch_dtype"))).removeprefix("torch.")
    return _DTYPES.get(named, torch.float32)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep Transformers from printing progress bars and reports inside other terminal output."""
    shown = logging.is_progress_bar_enabled()
    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _link(base: BaseFolder, clean: Path) -> None:
    """Fill `clean` with the checked files only, so that the library can read no others."""
    (clean / CONFIG).write_text(json.dumps(base.config))
    for file in base.files[1:]:
        os.symlink(file.absolute(), clean / file.name)


def _check_types(base: BaseFolder, unused: set[str]) -> None:
    for path in base.weights:
        try:
            with safe_open(path, framework="numpy") as file:
                types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise ConfigError(f"{path} cannot be loaded as safetensors: {error}") from error
        for name, kind in types.items():
            if kind not in _FLOATS and name not in unused:
                raise ConfigError(
                    f"{path} has {name} as {kind}: weights must be floating-point; save the model "
                    "without quantization"
                )


def _check_finite(folder: Path, model: PreTrainedModel) -> None:
    tensors: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"{folder}: the tensor {name} contains NaN or infinity: the file is damaged or the "
                "model diverged"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

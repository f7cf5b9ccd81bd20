"""Loads a pre-trained causal language model to continue from. Only safetensors files are read."""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from cuvee.core.errors import ConfigError
from cuvee.data.corpus.base_folder import CONFIG, BaseFolder, find_base

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_FLOATS = {"F16", "BF16", "F32", "F64"}
_COUNT = re.compile(r"(layers?|experts|blocks)$")  # keys of config.json that count modules
_FEW = 512


class _Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    type: str
    shape: tuple[int, ...]


def load_base(folder: Path) -> PreTrainedModel:
    """Return the model in `folder` in float32, with every parameter finite and read from its files.

    The model has two extra attributes for the export: `carried_files`, the files to copy, and
    `carried_dtype`, the number format of the weights. Raises `ConfigError` that names the first
    tensor that is missing, of another shape, not floating-point or not finite.
    """
    base = find_base(folder)
    tensors = _tensors_in(base)
    _check_counts(base, len(tensors))
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
            reason = _mismatch(clean, tensors) or str(error).replace(clean, str(folder))
            raise ConfigError(
                f"{folder} cannot be loaded as a causal language model: {reason}"
            ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"{folder} lacks the tensors {_some(missing)}: it is incomplete; download it again"
        )
    unused = set(loaded["unexpected_keys"])
    _check_types(tensors, unused)
    _check_finite(folder, model)
    if unused:
        warnings.warn(
            f"{folder} has {len(unused)} tensors that this model does not use "
            f"({_some(sorted(unused))}): check the numbers of layers in {CONFIG}",
            stacklevel=2,
        )
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
    if base.index:
        index = {"metadata": {}, "weight_map": dict(base.file_of)}
        (clean / base.index.name).write_text(json.dumps(index))
    for file in base.weights:
        os.symlink(file.absolute(), clean / file.name)


def _tensors_in(base: BaseFolder) -> dict[str, _Stored]:
    """Return what the files say of each tensor.

    Raises `ConfigError` if a file is damaged, if two files have one tensor, or if a tensor is not
    in the file that the index names.
    """
    found: dict[str, _Stored] = {}
    for path in base.weights:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    if name in found:
                        raise ConfigError(
                            f"{path} and {found[name].file.name} both have the tensor {name}: "
                            "remove one of the two, or save the model again"
                        )
                    found[name] = _Stored(path, part.get_dtype(), tuple(part.get_shape()))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{path} cannot be loaded as safetensors: {error}") from error
    for name, where in base.file_of.items():
        if name not in found or found[name].file.name != where:
            raise ConfigError(
                f"{base.index} says that {where} has the tensor {name[:200]}, which it lacks: "
                "download the model again"
            )
    return found


def _check_counts(base: BaseFolder, tensors: int) -> None:
    """Raise `ConfigError` for more layers than tensors: building them would take hours."""
    stack: list[Any] = [base.config]
    while stack:
        node = stack.pop()
        for key, value in node.items() if isinstance(node, dict) else ():
            if isinstance(value, int) and _COUNT.search(key) and value > max(tensors, _FEW):
                raise ConfigError(
                    f"{base.path / CONFIG} has {key} {value}, but the weights are {tensors} tensors: "
                    "restore the files of one model"
                )
            stack.append(value)
        stack += node if isinstance(node, list) else []


def _mismatch(clean: str, tensors: Mapping[str, _Stored]) -> str:
    """Return which tensors have another shape than the configuration asks for, or ""."""
    try:
        with torch.device("meta"), no_progress_bars():
            config = AutoConfig.from_pretrained(clean, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    except Exception:  # what was wrong with the configuration is known already
        return ""
    wrong = [
        f"{name} is {_shape(tensors[name].shape)}, not {_shape(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    return f"{CONFIG} and weights differ: {_some(wrong)}; restore the files" if wrong else ""


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "a scalar"


def _check_types(tensors: Mapping[str, _Stored], unused: set[str]) -> None:
    for name, stored in tensors.items():
        if stored.type not in _FLOATS and name not in unused:
            raise ConfigError(
                f"{stored.file} has {name} as {stored.type}: weights must be floating-point; save "
                "the model without quantization"
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

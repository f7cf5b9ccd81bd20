"""The files of a pre-trained causal language model that cuvee reads.

Everything else in the folder is ignored or refused. The files are:

    config.json                       without keys that name code, other files or quantized weights
    model.safetensors                 or, if it is missing, model.safetensors.index.json and
    NAME.safetensors                  the files that the index names, in the same folder
    tokenizer and generation files    copied to the exported model
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.core import files
from cuvee.core.errors import ConfigError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZERS = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
    }
)
"""Files that hold the vocabulary of a tokenizer."""
CARRIED = (
    *sorted(TOKENIZERS),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
)
TEMPLATES = "additional_chat_templates"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.jinja")
_MOST_TEMPLATES = 100
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_JSON_BYTES = 64 << 20
_REFUSED = {
    "auto_map": "asks to run code of its own",
    "transformers_weights": "names another file of weights",
    "quantization_config": "has quantized weights",
}
_DROPPED = re.compile(r".*(_implementation|_implementation_internal)")
"""Keys that select the implementation of attention. They are removed: some values name code to
download, and none changes the result of the model."""


@dataclass(frozen=True)
class BaseFolder:
    """A checked model folder.

    `config` is the content of config.json. `weights` are all safetensors files of the model.
    """

    path: Path
    config: Mapping[str, Any]
    index: Path | None
    weights: tuple[Path, ...]
    file_of: Mapping[str, str] = field(default_factory=dict)
    """The file of each tensor that the index names."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that determine what the model computes, in a fixed order."""
        index = (self.index,) if self.index else ()
        return (self.path / CONFIG, *index, *self.weights)

    def carried(self) -> dict[str, bytes]:
        """Return the tokenizer, generation and licence files by name. Raises `ConfigError`."""
        found = [name for name in CARRIED if (self.path / name).is_file()]
        templates = sorted(
            path
            for path in (self.path / TEMPLATES).glob("*.jinja")
            if _TEMPLATE_NAME.fullmatch(path.name) and path.is_file()
        )
        if len(templates) > _MOST_TEMPLATES:
            raise ConfigError(
                f"{self.path / TEMPLATES} has {len(templates)} files: at most {_MOST_TEMPLATES} "
                "are read; remove those that are not needed"
            )
        found += [f"{TEMPLATES}/{path.name}" for path in templates]
        return {name: read_bounded(self.path / name) for name in found}


def find_base(folder: Path) -> BaseFolder:
    """Check the folder of a model without reading its weights.

    Raises `ConfigError` if config.json or the safetensors files are missing, if the index names
    anything but safetensors files in the folder, or if the model needs code, adapters or quantized
    weights.
    """
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} is no Hugging Face model folder: it needs config.json and *.safetensors"
        )
    check_foreign(folder)
    config = _without_dropped(read_json(folder / CONFIG))
    if (folder / WEIGHTS).is_file():
        return BaseFolder(folder, config, None, (folder / WEIGHTS,))
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}: save the model as safetensors"
        )
    file_of = _indexed(folder)
    weights = tuple(folder / name for name in sorted(set(file_of.values())))
    for file in weights:
        if not file.is_file():
            raise ConfigError(f"{file} is missing, though {INDEX} names it: restore it")
    return BaseFolder(folder, config, folder / INDEX, weights, file_of)


def check_foreign(folder: Path) -> None:
    """Raise `ConfigError` if a model folder needs code, other weight files or an adapter."""
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{folder} holds an adapter (adapter_config.json), which names another base model: "
            "merge it into the weights"
        )
    for name in (CONFIG, "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            _check_keys(folder / name, read_json(folder / name))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most 64 MiB. Raises `ConfigError`."""
    try:
        content = files.read_json(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be loaded: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be loaded: it is not plain JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} cannot be loaded: it holds no JSON object")
    return content


def read_bounded(path: Path) -> bytes:
    """Return the content of a file of at most 64 MiB. Raises `ConfigError`."""
    try:
        with open(path, "rb") as file:
            content = file.read(_JSON_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be loaded: {error.strerror}") from error
    if len(content) > _JSON_BYTES:
        raise ConfigError(
            f"{path} is larger than {_JSON_BYTES >> 20} MiB: it is not what its name says"
        )
    return content


def _indexed(folder: Path) -> dict[str, str]:
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"{folder / INDEX} has no weight_map: save the model again")
    for name in table.values():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise ConfigError(
                f"{folder / INDEX} names {ascii(name)[:80]}: only *.safetensors files in the same "
                "folder are read"
            )
    return table


def _check_keys(path: Path, node: Any) -> None:
    """Raise `ConfigError` for a refused key at any depth.

    A composite model has configurations inside its configuration.
    """
    stack = [node]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            for key, reason in _REFUSED.items():
                if value.get(key) is not None:
                    raise ConfigError(
                        f"{path.parent} {reason} ({key} in {path.name}), which cuvee never does "
                        "or reads"
                    )
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def _without_dropped(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_dropped(value)
            for key, value in node.items()
            if not _DROPPED.fullmatch(key)
        }
    return [_without_dropped(value) for value in node] if isinstance(node, list) else node

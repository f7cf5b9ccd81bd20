"""A foreign model on disk: a folder, or a name on the Hugging Face hub at one commit. Never code, never a pickle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.errors import CorpusError
from cuvee.core.files import sha256_of

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class ModelFolder:
    """`path` holds config.json, model.safetensors and tokenizer.json; `digest` is a sha256 over them; `spec` was asked for."""

    spec: str
    path: Path
    digest: str

    def to_json(self) -> dict[str, Any]:
        name = self.path.resolve().name if Path(self.spec).is_dir() else self.spec
        return {"model": name, "sha256": self.digest}

    def config(self) -> dict[str, Any]:
        """What is in config.json."""
        return _read_json(self.path / "config.json")


def find_model(spec: str, others: Sequence[str] = ()) -> ModelFolder:
    """The model that `spec` names: a folder, or NAME@COMMIT on the hub, fetched unless it was before.

    `others` are files it may have besides the usual ones. Raises `CorpusError` for a name without a full commit hash, for
    weights that are no safetensors, and for a model that asks to run code of its own.
    """
    files = ("config.json", WEIGHTS, TOKENIZER, *others)
    path = Path(spec)
    if not path.is_dir():
        name, _, commit = spec.partition("@")
        if not _NAME.fullmatch(name):
            raise CorpusError(
                f"there is no folder {spec}: give one, or NAME@COMMIT as on the Hugging Face hub"
            )
        if not _COMMIT.fullmatch(commit):
            raise CorpusError(
                f"{spec} does not say which state of the model is meant: add the full commit hash of 40 digits that the hub "
                f"shows under its files and versions, {name}@…"
            )
        path = _fetch(name, commit, files)
    if not (path / WEIGHTS).is_file():
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
        why = (
            f"only {pickles[0]}, a pickle, which cuvee never opens: save it as safetensors"
            if pickles
            else "nothing"
        )
        raise CorpusError(f"{spec} has no {WEIGHTS}, {why}")
    for file in (path / "config.json", path / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in _read_json(file):
            raise CorpusError(
                f"{spec} asks to run code of its own (auto_map in {file.name}), which cuvee never does"
            )
    sha = hashlib.sha256()
    for file in (path / name for name in files):
        if file.is_file():
            sha.update(f"{file.relative_to(path)} {sha256_of(file)}\n".encode())
    return ModelFolder(spec, path, sha.hexdigest())


def _fetch(name: str, commit: str, files: Sequence[str]) -> Path:
    """The folder with those of `files` that the model has: from the cache, else from the hub."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = None
    for file in files:
        known = huggingface_hub.try_to_load_from_cache(name, file, revision=commit)
        try:
            if known is None:
                known = huggingface_hub.hf_hub_download(name, file, revision=commit)
        except LocalEntryNotFoundError as error:
            if file in ("config.json", WEIGHTS):
                raise CorpusError(
                    f"{file} of {name}@{commit} is not on this machine and the hub cannot be reached: {error}"
                ) from error
        except EntryNotFoundError:
            pass  # it has no such file
        except Exception as error:  # the hub's answers, the network, the disk
            raise CorpusError(f"cannot fetch {file} of {name}@{commit}: {error}") from error
        if isinstance(known, str):
            folder = Path(known).parents[file.count("/")]
    assert folder is not None
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CorpusError(f"{path} holds no JSON object")
    return content

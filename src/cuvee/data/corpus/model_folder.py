"""Find a pre-trained model: a local folder, or a Hugging Face repository at one commit.

Models are never unpickled, and code that comes with a model is never run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.core.errors import ConfigError, CorpusError
from cuvee.core.files import read_json, sha256_of
from cuvee.data.corpus.base_folder import check_foreign

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    `path` holds config.json, model.safetensors and tokenizer.json. `digest` is a sha256 over them.
    `spec` is the name or path that the user gave.
    """

    spec: str
    path: Path
    digest: str

    def to_json(self) -> dict[str, Any]:
        name = self.path.resolve().name if Path(self.spec).is_dir() else self.spec
        return {"model": name, "sha256": self.digest}

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return _read_json(self.path / "config.json")


def find_model(spec: str, others: Sequence[str] = ()) -> ModelFolder:
    """Return the model that `spec` names: a folder, or NAME@COMMIT on the Hugging Face hub.

    A model on the hub is downloaded unless it is already cached. `others` names optional files to
    fetch besides the usual three. Raises `CorpusError` if the full commit hash is missing, if the
    weights are not safetensors, or if the model requires its own code.
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
                f"{spec} names no commit: add the full commit hash of 40 digits that the hub "
                f'shows under "Files and versions", {name}@…'
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
    try:
        check_foreign(path)
    except ConfigError as error:
        raise CorpusError(str(error)) from error
    sha = hashlib.sha256()
    for file in (path / name for name in files):
        if file.is_file():
            sha.update(f"{file.relative_to(path)} {sha256_of(file)}\n".encode())
    return ModelFolder(spec, path, sha.hexdigest())


def check_weights(model: ModelFolder) -> None:
    """Read all weights. Raises `CorpusError` if one is not floating-point or not finite.

    Tables of positions (0, 1, 2, …), which older versions of transformers saved, may be integers.
    """
    import torch
    from safetensors import safe_open

    try:
        with safe_open(model.path / WEIGHTS, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith("position_ids")]  # noqa: SIM118
            for name in names:
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise CorpusError(
                        f"{model.spec} has {name} as {tensor.dtype}: weights must be "
                        "floating-point; save the model without quantization"
                    )
                if not bool(torch.isfinite(tensor).all()):
                    raise CorpusError(
                        f"{model.spec}: the tensor {name} contains NaN or infinity: the file is "
                        "damaged or the model diverged"
                    )
    except CorpusError:
        raise
    except Exception as error:  # untrusted files can fail in any way
        raise CorpusError(f"{model.spec}: {WEIGHTS} cannot be read: {error}") from error


def _fetch(name: str, commit: str, files: Sequence[str]) -> Path:
    """Download the files that the model has, unless cached, and return their folder."""
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
                    f"{file} of {name}@{commit} is not cached and the hub cannot be reached: "
                    f"{error}"
                ) from error
        except EntryNotFoundError:
            pass  # this file is optional, or its absence is reported later
        except Exception as error:  # HTTP errors, the network, the disk
            raise CorpusError(f"cannot fetch {file} of {name}@{commit}: {error}") from error
        if isinstance(known, str):
            folder = Path(known).parents[file.count("/")]
    assert folder is not None
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CorpusError(f"{path} holds no JSON object")
    return content

"""Write nested dictionaries of arrays and JSON values to a folder, with hashes.

    folder/state.safetensors   every numpy leaf, under its path: "optimizer/exp_avg/3"
    folder/state.json          the same tree with {"$array": path} in place of the arrays
    folder/hashes.json         sha256 of every other file in the folder

Nothing is ever read from a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.errors import CheckpointError
from cuvee.core.files import sha256_of, write_folder
from cuvee.core.protocols import State
from cuvee.core.renamed import upgrade

_FORMAT = 2
"""The current format. Format 1 had other names for some keys (see `core.renamed`)."""
_DOCUMENT = "$document"  # no path of an array begins with a dollar sign
_MOST_HASHES = 1 << 24  # characters of hashes.json


def save_state(
    path: Path, state: State, stem: str = "state", extra: Callable[[Path], None] | None = None
) -> None:
    """Write `state` to the folder `path` atomically.

    `extra` may write more files into the folder; they are hashed as well.
    """
    from safetensors.numpy import save_file

    tree, arrays = detached(state)

    def fill(folder: Path) -> None:
        save_file(arrays, folder / f"{stem}.safetensors")
        (folder / f"{stem}.json").write_text(
            json.dumps({"format": _FORMAT, "state": tree}, allow_nan=False)
        )
        if extra:
            extra(folder)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        hashes = {str(file.relative_to(folder)): sha256_of(file) for file in files}
        (folder / "hashes.json").write_text(json.dumps(hashes))

    write_folder(path, fill)


def load_state(path: Path, stem: str = "state") -> dict[str, Any]:
    """Read and verify a folder that `save_state` wrote.

    Raises `CheckpointError` if a file is missing or was altered.
    """
    from safetensors.numpy import load_file

    hashed = verify_folder(path)
    for name in (f"{stem}.json", f"{stem}.safetensors"):
        if name not in hashed:
            raise CheckpointError(f"{path} lists no hash for {name}; use an earlier copy")
    try:
        document = json.loads((path / f"{stem}.json").read_text())
        arrays = load_file(path / f"{stem}.safetensors")
        found = document.get("format")
        tree = upgrade(document.get("state")) if found == 1 else document.get("state")
        state = _attach(tree, arrays, path) if found in (1, _FORMAT) else {}
    except CheckpointError:
        raise
    except Exception as error:  # the hashes match, so the folder was written by another program
        raise CheckpointError(
            f"{path} does not hold a cuvee state ({type(error).__name__}: {error}); "
            "use an earlier copy"
        ) from error
    if found not in (1, _FORMAT):
        newer = isinstance(found, int) and found > _FORMAT
        raise CheckpointError(
            f"{path} has state format {ascii(found)[:40]}; this version of cuvee reads "
            f"formats 1 to {_FORMAT}: " + ("upgrade cuvee" if newer else "use an earlier copy")
        )
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}, not a state; use an earlier copy"
        )
    return state


def to_bytes(state: State) -> bytes:
    """Return `state` as the bytes of one safetensors file.

    Use it in programs that write their own checkpoints.
    """
    from safetensors.numpy import save

    tree, arrays = detached(state)
    document = json.dumps({"format": _FORMAT, "state": tree}, allow_nan=False).encode()
    return save({**arrays, _DOCUMENT: np.frombuffer(document, dtype=np.uint8)})


def from_bytes(data: bytes, source: str = "the state") -> dict[str, Any]:
    """Read what `to_bytes` returned. Raises `CheckpointError`, naming `source`."""
    from safetensors.numpy import load

    try:
        arrays = load(data)
        document = json.loads(arrays.pop(_DOCUMENT).tobytes())
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r} instead of {_FORMAT}")
        state = _attach(document["state"], arrays, Path(source))
    except Exception as error:
        raise CheckpointError(
            f"{source} does not hold a cuvee state ({type(error).__name__}: {error}); "
            "use an earlier copy"
        ) from error
    return dict(state)


def verify_folder(path: Path) -> set[str]:
    """Check every file against its recorded hash and return the file names.

    Raises `CheckpointError` naming the first file that is missing or altered.
    """
    try:
        with open(path / "hashes.json", encoding="utf-8") as listing:
            hashes = json.loads(listing.read(_MOST_HASHES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not complete (hashes.json: {error}); use an earlier copy"
        ) from error
    if not isinstance(hashes, dict):
        raise CheckpointError(f"{path}/hashes.json is not a table of hashes; use an earlier copy")
    for name, expected in hashes.items():
        file = path / name
        try:
            outside = ".." in Path(name).parts or Path(name).is_absolute()
            if outside or not file.is_file():
                raise CheckpointError(f"{file} is missing; use an earlier copy")
            found = sha256_of(file)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}); use an earlier copy"
            ) from error
        if found != expected:
            raise CheckpointError(
                f"{file} was altered or cut short after it was written; use an earlier copy"
            )
    return set(hashes)


def digest(state: State) -> str:
    """Return the sha256 of everything in `state`, bit for bit."""
    sha = hashlib.sha256()

    def feed(node: Any) -> None:
        if isinstance(node, Mapping):
            for key in sorted(node):
                sha.update(key.encode() + b"\0")
                feed(node[key])
        elif isinstance(node, np.ndarray):
            sha.update(f"{node.dtype}{node.shape}".encode() + np.ascontiguousarray(node).tobytes())
        else:
            sha.update(repr(node).encode() + b"\0")

    feed(state)
    return sha.hexdigest()


def detached(state: State) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """Return `state` as a JSON tree that refers to arrays by path, and the arrays by path.

    Asserts that it contains nothing else.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    return _detach(state, "", arrays), arrays


def _detach(node: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(node, np.ndarray):
        arrays[path] = np.ascontiguousarray(node).reshape(node.shape)  # keeps 0-d arrays 0-d
        return {"$array": path}
    if isinstance(node, dict):
        assert all(isinstance(key, str) and not key.startswith("$") for key in node), (
            f"bad key at {path}"
        )
        return {
            key: _detach(value, f"{path}/{key}" if path else key, arrays)
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return [_detach(value, f"{path}/{i}", arrays) for i, value in enumerate(node)]
    if isinstance(node, np.generic):
        return node.item()
    assert node is None or isinstance(node, (bool, int, float, str)), (
        f"{path} is a {type(node).__name__}"
    )
    return node


def _attach(node: Any, arrays: dict[str, np.ndarray[Any, Any]], path: Path) -> Any:
    if isinstance(node, dict):
        if "$array" in node:
            if node["$array"] not in arrays:
                raise CheckpointError(f"{path} lacks the array {node['$array']!r}")
            return arrays[node["$array"]]
        return {key: _attach(value, arrays, path) for key, value in node.items()}
    if isinstance(node, list):
        return [_attach(value, arrays, path) for value in node]
    return node

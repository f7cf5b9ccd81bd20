"""States and policies from another program, with correct hashes: each is refused with a
`CuveeError`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cuvee.core.errors import CheckpointError, CuveeError
from cuvee.core.mixture import Mixture
from cuvee.core.registry import POLICIES
from cuvee.core.state import load_state, verify_folder
from cuvee.policies.files import load_policy, read_provenance, save_policy
from cuvee.policies.fixed import Fixed

DOCUMENTS: dict[str, str] = {
    "deep": '{"format": 1, "state": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "not too deep": '{"format": 1, "state": ' + '{"a":' * 200 + "1" + "}" * 200 + "}",
    "no object": "[1]",
    "nothing": "",
    "no state": '{"format": 1}',
    "a list": '{"format": 1, "state": [1]}',
    "format as text": '{"format": "1", "state": {}}',
    "format as list": '{"format": [1], "state": {}}',
    "array by list": '{"format": 1, "state": {"a": {"$array": [1]}}}',
    "array by null": '{"format": 1, "state": {"a": {"$array": null}}}',
    "array unknown": '{"format": 1, "state": {"a": {"$array": "b"}}}',
    "huge number": '{"format": 1, "state": {"a": ' + "9" * 10_000 + "}}",
    "surrogates": '{"format": "\\ud800", "state": {}}',
}


def craft(folder: Path, document: str, stem: str = "state", names: Any = None) -> Path:
    folder.mkdir(parents=True)
    (folder / f"{stem}.json").write_text(document)
    save_file({"x": np.zeros(2)}, folder / f"{stem}.safetensors")
    files = [folder / f"{stem}.json", folder / f"{stem}.safetensors"]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (folder / "hashes.json").write_text(json.dumps(hashes if names is None else names))
    return folder


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_state_with_right_hashes_and_wrong_content_is_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    folder = craft(tmp_path / "state", DOCUMENTS[kind])
    if kind == "not too deep":  # fine in itself
        assert isinstance(load_state(folder), dict)
        return
    with pytest.raises(CheckpointError, match="state"):
        load_state(folder)


@pytest.mark.parametrize(
    "names",
    [
        [],
        1,
        {"../x": "a"},
        {"/etc/passwd": "a"},
        {"a\0b": "a"},
        {"": "a"},
        {"x" * 5000: "a"},
        {"state.json": 1},
    ],
)
def test_a_table_of_hashes_that_names_other_files_is_refused_by_name(
    tmp_path: Path, names: Any
) -> None:
    with pytest.raises(CheckpointError, match=r"earlier copy|lists no hash"):
        load_state(craft(tmp_path / "state", '{"format": 1, "state": {}}', names=names))
    (tmp_path / "state" / "hashes.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not complete"):
        verify_folder(tmp_path / "state")


JUNK: list[Any] = [None, 1, "x", [1], {"a": 1}, {"mixture": [1]}, {"names": [1], "weights": "x"}]


@pytest.mark.parametrize("kind", [*POLICIES.names(), "no such", None, [1], {"a": 1}])
def test_a_policy_with_right_hashes_and_wrong_content_is_refused_by_name(
    tmp_path: Path, kind: Any
) -> None:
    for i, junk in enumerate(JUNK):
        for j, (settings, state) in enumerate(((junk, {}), ({}, junk), (junk, junk))):
            inner = {"kind": kind, "settings": settings, "state": state, "provenance": junk}
            document = json.dumps({"format": 1, "state": inner})
            folder = craft(tmp_path / f"{i}-{j}", document, stem="policy")
            assert isinstance(read_provenance(folder), dict)
            try:
                load_policy(folder)
            except CuveeError:
                continue


def test_a_whole_policy_is_still_read(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", Fixed(Mixture.of({"a": 0.25, "b": 0.75})), {"run": "r"})
    assert read_provenance(tmp_path / "p") == {"run": "r"}
    load_policy(tmp_path / "p")

"""What a run or a search needs at its end is checked before anything is paid for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.data.corpus.corpus import Corpus
from cuvee.policies.files import read_provenance


@runtime_checkable
class NeedsMeasurements(Protocol):
    """A method whose `commit` needs validation losses."""

    def check(self, domains: Sequence[Domain], validated: frozenset[str]) -> None:
        """Raise `CuveeError` if `commit` could not do with final validation losses of the `validated` domains alone."""
        ...


def validated_domains(corpus: Corpus, validation_tokens: int) -> frozenset[str]:
    """The domains of which a proxy run measures a final validation loss: a loss needs two tokens."""
    if not validation_tokens:
        return frozenset()
    entries = corpus.manifest.domains
    return frozenset(entry.name for entry in entries if entry.valid and entry.valid.tokens >= 2)


def check_method(method: object, corpus: Corpus, validation_tokens: int) -> None:
    """Raises what `commit` would raise for want of validation losses."""
    if isinstance(method, NeedsMeasurements):
        method.check(corpus.domains, validated_domains(corpus, validation_tokens))


def check_writable(folder: Path) -> None:
    """Raises `ConfigError` unless files can be written in `folder` or where it will be made. Leaves nothing behind."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        if not place.is_dir():
            raise NotADirectoryError(20, "it is not a folder")
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"cannot write to {place}, where out={folder} is to be: {error.strerror}; choose another with out=FOLDER"
        ) from error


def check_same_search(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if `folder` holds a policy that another search wrote, which would be overwritten."""
    if not (folder / "policy.json").is_file():
        return
    known = read_provenance(folder)
    differ = [key for key, value in provenance.items() if key in known and known[key] != value]
    if differ:
        raise ConfigError(
            f"{folder} holds the policy of another search, with another {', '.join(differ)}: give this one a name of its own, "
            "as in name=second, or remove that folder"
        )

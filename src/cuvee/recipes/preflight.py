"""Checks before training: what a run or a search needs at its end must be available."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.protocols import Method, Policy
from cuvee.core.registry import METHODS
from cuvee.data.corpus.corpus import Corpus
from cuvee.policies.files import read_provenance
from cuvee.training.settings import TrainerSettings


@runtime_checkable
class NeedsMeasurements(Protocol):
    """A method whose `commit` needs validation losses."""

    def check(self, domains: Sequence[Domain], validated: frozenset[str]) -> None:
        """Raise `CuveeError` if losses of the `validated` domains are too few for `commit`."""
        ...


@runtime_checkable
class NeedsText(Protocol):
    """A probe that measures on validation text."""

    def check(self, valid_tokens: Mapping[str, int], row_tokens: int) -> object:
        """Raise `CuveeError` if the domains have too little text for rows of so many tokens."""
        ...


def check_probes(policy: Policy, corpus: Corpus, trainer: str, row_tokens: int) -> None:
    """Raise the error that attaching the policy's probes to the `lm` trainer would raise later."""
    probes = [probe for probe in policy.probes if isinstance(probe, NeedsText)]
    if trainer != "lm" or not probes:  # another trainer may measure without text
        return
    entries = corpus.manifest.domains
    tokens = {entry.name: entry.valid.tokens if entry.valid else 0 for entry in entries}
    for probe in probes:
        probe.check(tokens, row_tokens)


def check_search(method: Method, corpus: Corpus, trainer: str, settings: TrainerSettings) -> None:
    """Raise what proxies, `commit` or the target run would raise later for lack of text."""
    check_method(method, corpus, settings.validation_tokens)
    proposed = method.propose(corpus, ())
    for policy in proposed or [method.commit(corpus, ())]:
        check_probes(policy, corpus, trainer, settings.sequence_length)


def validated_domains(corpus: Corpus, validation_tokens: int) -> frozenset[str]:
    """Return the domains whose final validation loss is measured; a loss needs two tokens."""
    if not validation_tokens:
        return frozenset()
    entries = corpus.manifest.domains
    return frozenset(entry.name for entry in entries if entry.valid and entry.valid.tokens >= 2)


def check_method(method: object, corpus: Corpus, validation_tokens: int) -> None:
    """Raise the error that `commit` would raise later because validation losses are missing."""
    if isinstance(method, NeedsMeasurements):
        method.check(corpus.domains, validated_domains(corpus, validation_tokens))


def check_writable(folder: Path, option: str = "out=FOLDER") -> None:
    """Raise `ConfigError` if files cannot be written in `folder`, or where it will be created.

    `option` is what the user changes to have another folder. The test file is removed again.
    """
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
            f"cannot write to {place}, where {folder} is to be: {error.strerror}; choose another "
            f"folder with {option}"
        ) from error


def check_same_search(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the search would overwrite another search's policy in `folder`.

    A search may grow: the options that the method's `grows` names may differ.
    """
    if not (folder / "policy.json").is_file():
        return
    known = read_provenance(folder)
    differ = [key for key in provenance if key in known and known[key] != provenance[key]]
    for key in {"train", "guard"} & {*differ}:
        at = differ.index(key)
        differ[at : at + 1] = _other_entries(key, known[key], provenance[key])
    if "method" in differ:
        at = differ.index("method")
        differ[at : at + 1] = _other_options(known["method"], provenance["method"])
    if differ:
        raise ConfigError(
            f"{folder} has the policy of another search, with another {', '.join(differ)}: give "
            "this search another name, as in name=second, learn into another folder with "
            "`cuvee learn --output FOLDER`, or remove that folder"
        )


def _other_entries(key: str, known: object, asked: Mapping[str, Any]) -> list[str]:
    """Return the entries in which two sections differ, without those only one version knows."""
    if not isinstance(known, Mapping):
        return [key]
    both = sorted(known.keys() & asked.keys())
    return [f"{key}.{name}" for name in both if known[name] != asked[name]]


def _other_options(known: object, asked: Mapping[str, Any]) -> list[str]:
    """Return the options in which two methods differ, without those in which a search may grow."""
    if not isinstance(known, Mapping) or known.get("name") != asked["name"]:
        return ["method"]
    grows = getattr(METHODS.get(asked["name"]), "grows", ())
    options = sorted({*known, *asked} - {*grows})
    return [f"method.{name}" for name in options if known.get(name) != asked.get(name)]

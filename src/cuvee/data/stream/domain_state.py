"""The domains of a stream: where their tokens come from and what the stream stores about each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from cuvee.core.domain import Domain, Split
from cuvee.core.epochs import allowed, check_epochs
from cuvee.core.errors import CorpusError, FingerprintMismatch
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.permutation import MOST_THINGS
from cuvee.data.stream.row_counts import UNLIMITED
from cuvee.data.stream.windows import Windows

_ROUNDING = 1e-9  # makes 0.1 epochs of 30 rows exactly 3 rows


class Pools(Protocol):
    """The part of a corpus that a stream needs. Equal fingerprints mean equal pools."""

    @property
    def domains(self) -> tuple[Domain, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    def pool(self, name: str, split: Split = "train") -> TokenPool: ...


@dataclass(frozen=True)
class StreamDomain:
    """A domain of a stream."""

    domain: Domain
    """The domain under its current name in the stream."""
    fingerprint: str
    """The fingerprint of its corpus."""
    name: str
    """Its name in that corpus, which a rename in the stream does not change."""
    windows: Windows
    cap: float | None
    """The epoch cap: the number of passes over the domain; None for no limit."""
    folder: str | None = None
    """Where to open its corpus again, if it was added from one on disk."""

    @classmethod
    def open(
        cls,
        corpus: Pools,
        name: str,
        domain: Domain | None,
        split: Split,
        length: int,
        cap: float | None,
    ) -> StreamDomain:
        """Open `domain` of `corpus`, called `name` there, as windows of `length` tokens.

        Raises `CorpusError` if the corpus has no such domain, and `ConfigError` if the cap is not
        positive.
        """
        check_epochs(f"the epoch cap of {name}", np.inf if cap is None else cap)
        if domain is None:
            raise CorpusError(
                f"no domain {name!r} in the corpus: "
                f"it has {', '.join(d.name for d in corpus.domains)}"
            )
        windows = Windows(corpus.pool(name, split), length)
        if len(windows) > MOST_THINGS:
            raise CorpusError(
                f"{name} has {len(windows)} windows of {length} tokens, more than 2^32: "
                "use longer sequences"
            )
        return cls(domain, corpus.fingerprint, name, windows, None if cap == float("inf") else cap)

    @property
    def key(self) -> str:
        """The key of its shuffles. It excludes the current name, so a rename keeps the order."""
        return f"{self.fingerprint}/{self.name}"

    @property
    def rows(self) -> int:
        """The number of rows that the domain may give in total."""
        rows = allowed(np.inf if self.cap is None else self.cap, len(self.windows))
        return int(rows + _ROUNDING) if np.isfinite(rows) else UNLIMITED

    def renamed(self, name: str) -> StreamDomain:
        """Return the same domain under another name in the stream."""
        return replace(self, domain=replace(self.domain, name=name))

    def added_from(self, corpus: Pools) -> StreamDomain:
        """Return the same domain with the folder of its corpus, if that is on disk."""
        folder = str(corpus.folder.absolute()) if isinstance(corpus, Corpus) else None
        return replace(self, folder=folder)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.domain.name,
            "source": self.name,
            "fingerprint": self.fingerprint,
            "cap": self.cap,
            **({"folder": self.folder} if self.folder else {}),
        }

    @classmethod
    def from_json(
        cls,
        rows: Sequence[Mapping[str, Any]],
        corpora: Mapping[str, Pools],
        split: Split,
        length: int,
    ) -> list[StreamDomain]:
        """Open saved domains. Raises `FingerprintMismatch` without their corpora."""
        known = {
            fingerprint: {domain.name: domain for domain in corpus.domains}
            for fingerprint, corpus in corpora.items()
        }
        found = []
        for row in rows:
            corpus = corpora.get(row["fingerprint"])
            if corpus is None:
                raise FingerprintMismatch(
                    f"domain {row['name']} was added from corpus {row['fingerprint']}, but only "
                    f"{', '.join(corpora)} is open: "
                    "pass that corpus to load_state_dict(state, corpora=[...])"
                )
            domain = known[row["fingerprint"]].get(row["source"])
            opened = cls.open(corpus, row["source"], domain, split, length, row["cap"])
            found.append(replace(opened.renamed(row["name"]), folder=row.get("folder")))
        return found


def open_again(rows: Iterable[Mapping[str, Any]], corpora: Mapping[str, Pools]) -> dict[str, Pools]:
    """Return `corpora` and those that saved domains were added from, by fingerprint.

    Raises `CorpusError` for a folder that holds no corpus, and `FingerprintMismatch` for one that
    holds another.
    """
    found = dict(corpora)
    for row in rows:
        if row["fingerprint"] in found or "folder" not in row:
            continue
        corpus = Corpus.open(row["folder"])
        if corpus.fingerprint != row["fingerprint"]:
            raise FingerprintMismatch(
                f"domain {row['name']} was added from corpus {row['fingerprint']}, but "
                f"{row['folder']} now holds {corpus.fingerprint}: put the corpus back"
            )
        found[corpus.fingerprint] = corpus
    return found

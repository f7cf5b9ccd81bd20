"""Where a stream's domains come from: any object with named pools, and what a stream remembers of each domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from cuvee.core.domain import Domain, Split
from cuvee.core.epochs import allowed, check_epochs
from cuvee.core.errors import CorpusError, FingerprintMismatch
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.permutation import MOST_THINGS
from cuvee.data.stream.row_counts import UNLIMITED
from cuvee.data.stream.windows import Windows

_ROUNDING = 1e-9  # so that 0.1 epochs of 30 rows are 3 rows


class Pools(Protocol):
    """The part of a corpus that a stream needs. Equal fingerprints promise equal pools."""

    @property
    def domains(self) -> tuple[Domain, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    def pool(self, name: str, split: Split = "train") -> TokenPool: ...


@dataclass(frozen=True)
class StreamDomain:
    """A domain of a stream."""

    domain: Domain
    """As the stream calls it now."""
    fingerprint: str
    """Of the corpus that it is from."""
    name: str
    """What that corpus calls it, whatever it was renamed to."""
    windows: Windows
    cap: float | None
    """How many passes may be made over it; None for any number."""

    @classmethod
    def open(
        cls, corpus: Pools, name: str, split: Split, length: int, cap: float | None
    ) -> StreamDomain:
        """Raises `CorpusError` if the corpus has no such domain, `ConfigError` for a cap that is not positive."""
        check_epochs(f"the epoch cap of {name}", np.inf if cap is None else cap)
        domain = next((domain for domain in corpus.domains if domain.name == name), None)
        if domain is None:
            raise CorpusError(
                f"no domain {name!r} in the corpus: it has {', '.join(d.name for d in corpus.domains)}"
            )
        windows = Windows(corpus.pool(name, split), length)
        if len(windows) > MOST_THINGS:
            raise CorpusError(
                f"{name} has {len(windows)} windows of {length} tokens, more than 2^32: use longer sequences"
            )
        return cls(domain, corpus.fingerprint, name, windows, None if cap == float("inf") else cap)

    @property
    def key(self) -> str:
        """What its shuffles are keyed by: not its present name, so that a rename changes nothing."""
        return f"{self.fingerprint}/{self.name}"

    @property
    def rows(self) -> int:
        """How many rows it may ever give."""
        rows = allowed(np.inf if self.cap is None else self.cap, len(self.windows))
        return int(rows + _ROUNDING) if np.isfinite(rows) else UNLIMITED

    def renamed(self, name: str) -> StreamDomain:
        return replace(self, domain=replace(self.domain, name=name))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.domain.name,
            "source": self.name,
            "fingerprint": self.fingerprint,
            "cap": self.cap,
        }

    @classmethod
    def from_json(
        cls, row: Mapping[str, Any], corpora: Mapping[str, Pools], split: Split, length: int
    ) -> StreamDomain:
        corpus = corpora.get(row["fingerprint"])
        if corpus is None:
            raise FingerprintMismatch(
                f"domain {row['name']} was added from corpus {row['fingerprint']}, but only {', '.join(corpora)} is open: "
                "pass that corpus to load_state_dict(state, corpora=[...])"
            )
        return cls.open(corpus, row["source"], split, length, row["cap"]).renamed(row["name"])

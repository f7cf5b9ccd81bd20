"""The ways to label a document, and the conversion of any label to a domain name.

This module has the ways that need only the document. `topics.py` and `classifier.py` have the
others.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cuvee.core.domain import Role
from cuvee.core.errors import CorpusError
from cuvee.data.corpus.names import is_domain_name
from cuvee.data.ingest.documents import Document, shown
from cuvee.data.ingest.reading import Bad

MOST_LABELS = 2048
SAMPLE_CHARS = 8192
"""The number of leading characters of a document that determine its topic."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Item(NamedTuple):
    """A document to label.

    `document.domain` is its current domain, `role` the role of that domain, and `value` its value
    in the label column.
    """

    document: Document
    role: Role
    value: Any


Labeller = Callable[[Sequence[Item]], Sequence[str | Bad]]
"""Return for each item its label as spelled in the source, or the reason why it has none.

A label must not depend on the other items of the call."""


@dataclass(frozen=True)
class Way(ABC):
    """A way to find labels. Subclasses are frozen dataclasses with the options as fields."""

    column: ClassVar[str | None] = None
    """The column to read besides the text, or None."""
    parallel: ClassVar[bool] = True
    """Whether several processes label. False for a model that uses all cores by itself."""
    step_blocks: ClassVar[int] = 32
    """Blocks of about half a megabyte between two durable steps: the work that a crash loses."""
    sample: ClassVar[int] = 0
    """The number of documents to fit on; 0 if there is no fit."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return everything that determines the labels."""

    def check(self, domains: Sequence[str], targets: Sequence[str]) -> None:  # noqa: B027
        """Raise `CorpusError` if documents of these domains and targets cannot be labelled."""

    def fit(self, texts: Sequence[str], work: Path) -> None:  # noqa: B027
        """Fit to a sample of texts and save the result in the folder `work` atomically."""

    @abstractmethod
    def labeller(self, work: Path) -> Labeller:
        """Return the function that labels documents, after `fit`."""

    def words(self, work: Path) -> dict[str, list[str]]:
        """Return by label the words that distinguish it from other labels, if the way has any."""
        return {}


@dataclass(frozen=True)
class ByFolder(Way):
    """Keep the domain that a document has already."""

    def to_json(self) -> dict[str, Any]:
        return {"way": "folder"}

    def labeller(self, work: Path) -> Labeller:
        return lambda items: [item.document.domain for item in items]


@dataclass(frozen=True)
class ByRole(Way):
    """Two domains: source and target."""

    def to_json(self) -> dict[str, Any]:
        return {"way": "role"}

    def check(self, domains: Sequence[str], targets: Sequence[str]) -> None:
        if not targets:
            raise CorpusError(
                "no domain is a target, so all documents have one role: name a target with "
                "--target, or in a table.json"
            )

    def labeller(self, work: Path) -> Labeller:
        return lambda items: [item.role for item in items]


@dataclass(frozen=True)
class ByColumn(Way):
    """The value of a column or JSON key, which must be text or an integer."""

    key: str

    @property
    def column(self) -> str:  # type: ignore[override]
        return self.key

    def to_json(self) -> dict[str, Any]:
        return {"way": "column", "column": self.key}

    def labeller(self, work: Path) -> Labeller:
        def label(item: Item) -> str | Bad:
            if isinstance(item.value, str):
                return item.value
            if isinstance(item.value, int) and not isinstance(item.value, bool):
                return str(item.value)
            return Bad(
                f"no label under {self.key!r}"
                + ("" if item.value is None else f" but {shown(item.value)}")
            )

        return lambda items: [label(item) for item in items]


@dataclass(frozen=True)
class ByMap(Way):
    """A new name for each domain. Several domains may get the same name."""

    table: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, mapping: Mapping[str, Any], place: str) -> ByMap:
        """Return the way for a mapping from old to new names.

        Raises `CorpusError`, naming `place`, if a value is not a valid domain name.
        """
        for old, new in mapping.items():
            if not isinstance(old, str) or not isinstance(new, str) or not is_domain_name(new):
                raise CorpusError(
                    f"{place} maps {old!r} to {new!r}: expected lines like `statistics: science`, "
                    "with names of 1 to 64 "
                    "letters, digits, dots, underscores or hyphens"
                )
        return cls(tuple(sorted(mapping.items())))

    def to_json(self) -> dict[str, Any]:
        return {"way": "map", "map": dict(self.table)}

    def check(self, domains: Sequence[str], targets: Sequence[str]) -> None:
        known = dict(self.table)
        for domain in domains:
            if domain not in known:
                near = get_close_matches(domain, known, n=1)
                hint = f"is {near[0]!r} meant for it?" if near else "every domain needs a line"
                raise CorpusError(f"the map has no line for the domain {domain!r}: {hint}")

    def labeller(self, work: Path) -> Labeller:
        known = dict(self.table)

        def label(item: Item) -> str:
            if item.document.domain not in known:
                self.check([item.document.domain], [])
            return known[item.document.domain]

        return lambda items: [label(item) for item in items]


@dataclass(frozen=True)
class ByRandom(Way):
    """A random label per document, from a hash of its text and the seed.

    Equal texts get equal labels. This is a baseline: the labels carry no information.
    """

    topics: int
    seed: int

    def __post_init__(self) -> None:
        check_topics(self.topics)

    def to_json(self) -> dict[str, Any]:
        return {"way": "random", "topics": self.topics, "seed": self.seed}

    def labeller(self, work: Path) -> Labeller:
        digits = len(str(self.topics - 1))

        def label(item: Item) -> str:
            drawn = hashlib.blake2b(
                f"{self.seed}/{item.document.rank}".encode(), digest_size=8
            ).digest()
            return f"random-{int.from_bytes(drawn, 'big') % self.topics:0{digits}}"

        return lambda items: [label(item) for item in items]


def check_topics(topics: int) -> None:
    """Raise `CorpusError` if the number of topics is out of range."""
    if not 2 <= topics <= MOST_LABELS:
        raise CorpusError(f"{topics} topics were requested: give 2 to {MOST_LABELS}")


def domain_name(label: str) -> str:
    """Return the domain name closest to `label`: "Arts & Crafts" becomes "Arts-Crafts".

    A label that is a valid name stays as it is. The result is "" if no character of the label is
    allowed in a name. A file of that name is not hidden.
    """
    if is_domain_name(label) and not label.startswith("."):
        return label
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return _NOT_IN_NAMES.sub("-", plain).strip("-").lstrip(".-")

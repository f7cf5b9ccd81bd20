"""The ways in which a document gets its label, and how any text becomes the name of a domain.

Those that need nothing but the document are here; `topics.py` finds clusters, `classifier.py` asks a model.
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
from cuvee.core.mixture import NAME_PATTERN
from cuvee.data.ingest.documents import Document, shown
from cuvee.data.ingest.reading import Bad

MOST_LABELS = 2048
SAMPLE_CHARS = 8192
"""How much of a document is looked at to find its topic."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_PART = re.compile(r"-of-(\d+)$")  # what `raw.py` takes for a part of a file


class Item(NamedTuple):
    """A document to label: its domain until now is `document.domain`, `role` that domain's, `value` what the column holds."""

    document: Document
    role: Role
    value: Any


Labeller = Callable[[Sequence[Item]], Sequence[str | Bad]]
"""The label of each item as it is spelled at its origin, or why it has none. The same whatever else it is asked with."""


@dataclass(frozen=True)
class Way(ABC):
    """How labels are found."""

    column: ClassVar[str | None] = None
    """The column that is read beside the text."""
    parallel: ClassVar[bool] = True
    """Whether several processes should label; a model with threads of its own has the machine to itself."""
    step_blocks: ClassVar[int] = 32
    """Blocks of about half a megabyte from one durable step to the next: what a kill costs."""
    sample: ClassVar[int] = 0
    """How many documents it is fitted on."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What decides the labels."""

    def check(self, domains: Sequence[str], targets: Sequence[str]) -> None:  # noqa: B027 (most have nothing to check)
        """Raises `CorpusError` if it cannot label documents of these domains, some of which are targets."""

    def fit(self, texts: Sequence[str], work: Path) -> None:  # noqa: B027
        """Learns from a sample and keeps what it learned in the folder `work`, whole or not at all."""

    @abstractmethod
    def labeller(self, work: Path) -> Labeller:
        """What labels documents, once fitted."""

    def words(self, work: Path) -> dict[str, list[str]]:
        """By label the words that tell it from others, where it has such."""
        return {}


@dataclass(frozen=True)
class ByFolder(Way):
    """The domain that a document has already."""

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
                "no domain is a target, so there are no two roles: name one with --target, or in a table.json"
            )

    def labeller(self, work: Path) -> Labeller:
        return lambda items: [item.role for item in items]


@dataclass(frozen=True)
class ByColumn(Way):
    """The value of a key of each JSON row, or of a column: text or a whole number."""

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
    """Another name for each domain: several may get the same."""

    table: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, mapping: Mapping[str, Any], place: str) -> ByMap:
        """Raises `CorpusError`, naming `place`, unless it maps names to names."""
        for old, new in mapping.items():
            if (
                not isinstance(old, str)
                or not isinstance(new, str)
                or not NAME_PATTERN.fullmatch(new)
            ):
                raise CorpusError(
                    f"{place} maps {old!r} to {new!r}: expected lines like `statistics: science`, with names of 1 to 64 "
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
                raise CorpusError(f"the map says nothing of the domain {domain!r}: {hint}")

    def labeller(self, work: Path) -> Labeller:
        known = dict(self.table)

        def label(item: Item) -> str:
            if item.document.domain not in known:
                self.check([item.document.domain], [])
            return known[item.document.domain]

        return lambda items: [label(item) for item in items]


@dataclass(frozen=True)
class ByRandom(Way):
    """One of so many labels by a hash of the text and the seed: equal texts get equal labels, and labels mean nothing."""

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
    if not 2 <= topics <= MOST_LABELS:
        raise CorpusError(f"{topics} topics were asked for: give 2 to {MOST_LABELS}")


def domain_name(label: str) -> str:
    """The name of a domain closest to `label`, "" if nothing of it can be in one: "Arts & Crafts" becomes "Arts-Crafts".

    Such a name survives as the name of a file: it is not hidden, and not taken for part of another.
    """
    name = label
    if not NAME_PATTERN.fullmatch(label) or label.startswith("."):
        plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
        name = _NOT_IN_NAMES.sub("-", plain).strip("-").lstrip(".-")
    return _PART.sub(r"_of_\1", name)

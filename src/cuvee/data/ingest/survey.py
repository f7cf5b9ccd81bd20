"""The survey: a first pass that counts text, finds bad rows and samples every domain.

A domain's sample consists of its documents with the lowest hashes, up to its share of 32 MiB. It
does not depend on the order of files or the number of workers. It holds no document twice and no
validation or test text.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cuvee.core.domain import Split
from cuvee.core.errors import CorpusError
from cuvee.core.files import read_json, write_atomic
from cuvee.data.ingest.build_folder import damaged
from cuvee.data.ingest.documents import Rules, read_documents
from cuvee.data.ingest.overlap import Overlap, rank_of
from cuvee.data.ingest.quality import domain_mtld
from cuvee.data.ingest.reading import Bad, Block, read_blocks
from cuvee.data.ingest.sources.raw import TextSource
from cuvee.data.ingest.worker_pool import WorkerPool

SAMPLE_BYTES = 32 << 20
MAX_DOMAINS = 4096
_SAMPLE_CHARS = 64 << 10
_EVERY_RANK = 2**64


@dataclass(frozen=True)
class BadRow:
    """A row that was left out, with its file, line number and reason."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Survey:
    """The result of the first pass.

    `names` are the domains with training text in alphabetical order; `mtld` is their lexical
    diversity.
    """

    names: list[str]
    mtld: dict[str, float]
    bad_rows: list[BadRow]

    def save(self, path: Path) -> None:
        """Write the survey to `path` atomically."""
        write_atomic(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Survey:
        """Read a survey. Raises `CorpusError` if the file is damaged."""
        try:
            content = read_json(path)
            return cls(
                content["names"], content["mtld"], [BadRow(**row) for row in content["bad_rows"]]
            )
        except (ValueError, TypeError, KeyError) as error:
            raise damaged(path) from error


@dataclass
class _BlockCount:
    """The counts of one block: its domains, bad rows and candidate texts for the sample."""

    share: float
    trained: set[str] = field(default_factory=set)
    held_out: set[str] = field(default_factory=set)
    bad_rows: list[BadRow] = field(default_factory=list)
    candidates: list[tuple[str, int, str]] = field(default_factory=list)
    split: Split | None = None
    source: int = 0
    ranks: list[int] = field(default_factory=list)
    """Of all documents, by `overlap.rank_of`."""


class Sample:
    """The documents of lowest rank in each domain, up to its share of `budget` characters.

    The share shrinks when new domains appear. This only removes the highest ranks, so the final
    sample does not depend on the order in which domains appear.
    """

    def __init__(self, budget: int = SAMPLE_BYTES) -> None:
        self._budget = budget
        self._heaps: dict[str, list[tuple[int, str]]] = {}
        self._held: dict[str, int] = {}
        self._ranks: dict[str, set[int]] = {}

    def add(self, domain: str, rank: int, text: str) -> None:
        """Offer a document; a document with the same rank is added only once."""
        if domain not in self._heaps:
            self._heaps[domain] = []
            self._held[domain] = 0
            self._ranks[domain] = set()
            for name in self._heaps:
                self._trim(name)
        if rank in self._ranks[domain]:  # a duplicate document
            return
        heapq.heappush(self._heaps[domain], (-rank, text))
        self._ranks[domain].add(rank)
        self._held[domain] += len(text)
        self._trim(domain)

    def _trim(self, domain: str) -> None:
        heap = self._heaps[domain]
        while heap and self._held[domain] - len(heap[0][1]) >= self._budget // len(self._heaps):
            rank, text = heapq.heappop(heap)
            self._ranks[domain].remove(-rank)
            self._held[domain] -= len(text)

    def limits(self) -> dict[str, int]:
        """Return by domain the rank from which documents can no longer enter the sample."""
        share = self._budget // max(len(self._heaps), 1)
        return {
            name: -heap[0][0] for name, heap in self._heaps.items() if self._held[name] >= share
        }

    def texts(self, domain: str) -> list[str]:
        """Return a domain's texts in order of rank, which is a random order."""
        return [text for _, text in sorted(self._heaps.get(domain, []), reverse=True)]


def take_survey(
    sources: Sequence[TextSource],
    rules: Rules,
    pool: WorkerPool,
    max_bad_rows: int,
    quarantine: Path,
    progress: Callable[[float], None],
) -> tuple[Survey, Sample]:
    """Read all sources once, write the bad rows to `quarantine`, and return survey and sample.

    Raises `CorpusError` if there are more than `max_bad_rows`, or if a domain has no training text.
    """
    sample = Sample()
    trained: set[str] = set()
    held_out: set[str] = set()
    bad_rows: list[BadRow] = []

    overlap = Overlap()

    def calls() -> Iterator[tuple[Block, Rules, Mapping[str, int], int]]:
        for block in read_blocks(sources, rules.text_column, rules.domain_column):
            yield block, rules, sample.limits(), overlap.below

    for count in pool.map(_count_block, calls()):
        trained |= count.trained
        held_out |= count.held_out
        bad_rows += count.bad_rows
        overlap.add(count.split, count.ranks, count.source)
        if len(bad_rows) > max_bad_rows:
            write_quarantine(quarantine, bad_rows)
            raise too_many(bad_rows, max_bad_rows, quarantine)
        if len(trained | held_out) > MAX_DOMAINS:
            raise CorpusError(
                f"more than {MAX_DOMAINS} domains: is {rules.domain_column!r} the column with "
                "the domain?"
            )
        for candidate in count.candidates:
            sample.add(*candidate)
        progress(count.share)
    write_quarantine(quarantine, bad_rows)
    names = sorted(trained)
    _check_names(sources, rules, names, held_out, bad_rows, quarantine)
    # A copy of a text file is one document of many, and those may be equal.
    overlap.warn({i: one.place for i, one in enumerate(sources) if one.format != "txt"})
    scores = {name: domain_mtld(sample.texts(name)) for name in names}
    return Survey(
        names, {name: score for name, score in scores.items() if score is not None}, bad_rows
    ), sample


def _count_block(block: Block, rules: Rules, limits: Mapping[str, int], kept: int) -> _BlockCount:
    count = _BlockCount(block.share, split=block.split, source=block.position[0])
    for line, document in read_documents(block, rules):
        if isinstance(document, Bad):
            count.bad_rows.append(BadRow(block.place, line, document.reason))
            continue
        rank = rank_of(document.text)
        if rank < kept:
            count.ranks.append(rank)
        if document.split != "train":
            count.held_out.add(document.domain)
        else:
            count.trained.add(document.domain)
            if document.rank < limits.get(document.domain, _EVERY_RANK):
                count.candidates.append(
                    (document.domain, document.rank, document.text[:_SAMPLE_CHARS])
                )
    return count


def too_many(bad_rows: Sequence[BadRow], limit: int, quarantine: Path) -> CorpusError:
    """Return the error for more than `limit` bad rows; `quarantine` is the file that lists them."""
    return CorpusError(
        f"more than {limit} bad rows; {most_frequent(bad_rows)}. "
        f"All are listed in {quarantine}: fix the sources, or allow more with --max-bad-rows"
    )


def most_frequent(bad_rows: Sequence[BadRow]) -> str:
    """Return the most frequent reason, how often it occurs, and the first place."""
    reason, times = Counter(row.reason for row in bad_rows).most_common(1)[0]
    first = next(row for row in bad_rows if row.reason == reason)
    return f"{times} of {len(bad_rows)}: {reason}, first {first.file} line {first.line}"


def _check_names(
    sources: Sequence[TextSource],
    rules: Rules,
    names: Sequence[str],
    held_out: set[str],
    bad_rows: Sequence[BadRow],
    quarantine: Path,
) -> None:
    expected = held_out | (
        {source.domain for source in sources} if rules.domain_column is None else set()
    )
    missing = sorted(expected - set(names))
    if bad_rows and (missing or not names):
        lost = f"no training text in {', '.join(missing)}" if missing else "no documents"
        raise CorpusError(
            f"{lost}: {len(bad_rows)} rows are bad; {most_frequent(bad_rows)}. All are listed in {quarantine}"
        )
    if missing:
        raise CorpusError(
            f"no training text in {', '.join(missing)}: add some, lower the share kept for "
            "validation and test, or leave the domain out"
        )
    if not names:
        raise CorpusError("the sources hold no documents: give at least one with text")


def write_quarantine(path: Path, bad_rows: Sequence[BadRow]) -> None:
    """Write `bad_rows` to `path`, one JSON object per line; remove the file if there are none."""
    if bad_rows:
        write_atomic(path, "".join(json.dumps(asdict(row)) + "\n" for row in bad_rows))
    else:
        path.unlink(missing_ok=True)

"""Write labelled documents: blocks are appended to the files of their labels in crash-safe steps.

A step labels some blocks, writes the result durably and then records it in `progress.json`. On
restart, files are truncated to the recorded sizes and labelling resumes at the next block. The
result is the same, byte for byte.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cuvee.core.domain import SPLITS, Role
from cuvee.core.errors import CorpusError
from cuvee.core.files import fsync_dir, read_json, write_atomic
from cuvee.data.corpus.names import is_domain_name
from cuvee.data.ingest.build_folder import damaged
from cuvee.data.ingest.columns.bounds import MAX_ROW_BYTES
from cuvee.data.ingest.documents import Document, Rules, read_documents, shown
from cuvee.data.ingest.reading import Bad, Block, Row, read_blocks
from cuvee.data.ingest.sources.raw import TextSource
from cuvee.data.ingest.survey import BadRow
from cuvee.data.ingest.tokenize import SYNC_THREADS, append
from cuvee.data.ingest.worker_pool import WorkerPool
from cuvee.data.label.labelers import Item, Labeller, Way, domain_name

HISTORY = "cuvee_domains"
"""The key under which a document lists its domains, oldest first; the last is its label."""
EXAMPLES = 3
_EXAMPLE_CHARS = 160


@dataclass(frozen=True)
class Roles:
    """The roles of current domains: from `targets` if given, else `table`, else "source"."""

    table: tuple[tuple[str, Role], ...]
    targets: tuple[str, ...]

    def of(self, domain: str) -> Role:
        """Return the role of one domain."""
        if self.targets:
            return "target" if domain in self.targets else "source"
        return next((role for name, role in self.table if name == domain), "source")


@dataclass(frozen=True)
class LabelTask:
    """The settings that a worker needs to label a block.

    `by_role` means that each label is split by the role of its documents.
    """

    way: Way
    rules: Rules
    roles: Roles
    by_role: bool
    work: Path
    stamp: str


@dataclass
class Labelled:
    """The results of labelling, of one block or of all blocks so far.

    `counts` holds [documents, bytes of text] by split, previous domain and label. `spelled` holds
    the original spelling of each label. `examples` holds the documents of lowest hash by label, as
    (hash, previous domain, beginning).
    """

    counts: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    examples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    bad_rows: list[BadRow] = field(default_factory=list)

    def add(self, document: Document, label: str, spelled: str) -> None:
        """Count one document and offer it as an example."""
        self.count(document.split, document.domain, label, 1, document.bytes)
        self.spell(label, spelled)
        if document.split == "train":
            printable = "".join(
                c if c.isprintable() else " " for c in document.text[: 4 * _EXAMPLE_CHARS]
            )
            beginning = " ".join(printable.split())[:_EXAMPLE_CHARS]
            self.offer(label, [(document.rank, document.domain, beginning)])

    def merge(self, other: Labelled) -> None:
        """Add the results of another block."""
        for split, by_domain in other.counts.items():
            for domain, by_label in by_domain.items():
                for label, (documents, size) in by_label.items():
                    self.count(split, domain, label, documents, size)
        for label, spelled in other.spelled.items():
            self.spell(label, spelled)
        for label, examples in other.examples.items():
            self.offer(label, examples)
        self.bad_rows += other.bad_rows

    def count(self, split: str, domain: str, label: str, documents: int, size: int) -> None:
        """Add documents and bytes to a cell of `counts`."""
        cell = self.counts.setdefault(split, {}).setdefault(domain, {}).setdefault(label, [0, 0])
        cell[0] += documents
        cell[1] += size

    def spell(self, label: str, spelled: str) -> None:
        """Record the spelling of a label. Raises `CorpusError` if it has two spellings."""
        if self.spelled.setdefault(label, spelled) != spelled:
            raise CorpusError(
                f"the labels {shown(self.spelled[label])} and {shown(spelled)} would both be the "
                f"domain {label}: "
                "rename one of them"
            )

    def offer(self, label: str, examples: Sequence[tuple[int, str, str]]) -> None:
        """Keep the `EXAMPLES` examples of lowest hash."""
        merged = {tuple(example) for example in (*self.examples.get(label, ()), *examples)}
        self.examples[label] = sorted(merged)[:EXAMPLES]


@dataclass
class LabelProgress:
    """The state of a labelling that is saved after each step.

    The files contain everything up to block `position`; `sizes` holds their bytes. `done` is True
    at the end.
    """

    position: tuple[int, int] = (-1, 0)
    done: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    found: Labelled = field(default_factory=Labelled)

    @classmethod
    def load(cls, path: Path) -> LabelProgress:
        """Read the saved progress, else start. Raises `CorpusError` if the file is damaged."""
        if not path.exists():
            return cls()
        try:
            content = read_json(path)
            found = content["found"]
            found["bad_rows"] = [BadRow(**row) for row in found["bad_rows"]]
            found["examples"] = {
                label: [tuple(row) for row in rows] for label, rows in found["examples"].items()
            }
            return cls(
                tuple(content["position"]), content["done"], content["sizes"], Labelled(**found)
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(path) from error


def label_documents(
    sources: Sequence[TextSource],
    task: LabelTask,
    pool: WorkerPool,
    folder: Path,
    check: Callable[[Labelled], None],
    progress: Callable[[float], None],
) -> Labelled:
    """Write `folder/SPLIT/LABEL.jsonl.gz` for each split.

    Resumes an interrupted call. `check` is called with the results after each block and may raise.
    Raises `CorpusError`.
    """
    kept = task.work / "progress.json"
    state = LabelProgress.load(kept)
    if state.done:
        return state.found
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
    column = task.way.column or task.rules.domain_column
    pending: dict[str, list[bytes]] = {}

    def calls() -> Iterator[tuple[Block, LabelTask]]:
        for block in read_blocks(sources, task.rules.text_column, column, after=state.position):
            yield block, task

    blocks = 0
    for position, share, found, lines in pool.map(_label_block, calls()):
        for key, part in lines.items():
            pending.setdefault(key, []).append(part)
        state.found.merge(found)
        check(state.found)
        blocks += 1
        if blocks == task.way.step_blocks:
            state.position = position
            _step(state, pending, folder, kept)
            blocks = 0
        progress(share)
    state.done = True
    _step(state, pending, folder, kept)
    return state.found


def _label_block(
    block: Block, task: LabelTask
) -> tuple[tuple[int, int], float, Labelled, dict[str, bytes]]:
    found = Labelled()
    items: list[Item] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, document in read_documents(block, task.rules):
        if isinstance(document, Bad):
            found.bad_rows.append(BadRow(block.place, line, document.reason))
        else:
            fields, value = _fields(block.rows[line - block.first], document, task)
            items.append(Item(document, task.roles.of(document.domain), value))
            rows.append((line, fields))
    labels = _labeller(task.way, task.work, task.stamp)(items) if items else ()
    lines: dict[str, list[bytes]] = {}
    for item, (line, fields), spelled in zip(items, rows, labels, strict=True):
        name = _name(spelled, item.role if task.by_role else None)
        row = name if isinstance(name, Bad) else _row(fields, item.document.domain, name)
        if isinstance(row, Bad):
            found.bad_rows.append(BadRow(block.place, line, row.reason))
        else:
            assert isinstance(name, str)
            assert isinstance(spelled, str)
            found.add(item.document, name, spelled)
            lines.setdefault(f"{item.document.split}/{name}", []).append(row)
    found.bad_rows.sort(key=lambda row: row.line)
    return (
        block.position,
        block.share,
        found,
        {key: b"".join(parts) for key, parts in lines.items()},
    )


def _fields(row: Row, document: Document, task: LabelTask) -> tuple[dict[str, Any], Any]:
    """Return the fields of a JSON row, else only its text, and the label column's value."""
    if isinstance(row, bytes):
        fields = json.loads(row)
        return fields, fields.get(task.way.column)
    assert not isinstance(row, Bad)
    return {task.rules.text_column: document.text}, row.domain


def _name(spelled: str | Bad, role: Role | None) -> str | Bad:
    if isinstance(spelled, Bad):
        return spelled
    name = domain_name(spelled)
    whole = f"{name}.{role}" if role else name
    if not name or not is_domain_name(whole):
        return Bad(
            f"the label {shown(spelled)} cannot name a domain: use 1 to 64 letters, digits, dots, "
            "underscores or hyphens"
        )
    return whole


def _row(fields: dict[str, Any], domain: str, label: str) -> bytes | Bad:
    before = fields.get(HISTORY)
    history = list(before) if isinstance(before, list) else []
    if not history or history[-1] != domain:
        history.append(domain)
    fields = fields | {HISTORY: [*history, label]}
    try:
        line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair in a field other than the text
        line = json.dumps(fields).encode() + b"\n"
    except RecursionError:
        return Bad("nested too deeply")
    return (
        line
        if len(line) <= MAX_ROW_BYTES
        else Bad(f"longer than {MAX_ROW_BYTES >> 20} MiB with its label")
    )


@lru_cache(maxsize=1)
def _labeller(way: Way, work: Path, stamp: str) -> Labeller:
    """Load the labeller once per process.

    `stamp` keeps a reused folder `work` from returning the labeller of an earlier labelling.
    """
    return way.labeller(work)


def _step(state: LabelProgress, pending: dict[str, list[bytes]], folder: Path, kept: Path) -> None:
    """Write `pending` durably as one gzip member per file, then record it in `progress.json`."""

    def write(key: str) -> tuple[str, int]:
        member = gzip.compress(b"".join(pending[key]), compresslevel=6, mtime=0)
        append(folder / f"{key}.jsonl.gz", state.sizes.get(key, 0), member)
        return key, len(member)

    with ThreadPoolExecutor(SYNC_THREADS) as threads:
        for key, size in threads.map(write, sorted(pending)):
            state.sizes[key] = state.sizes.get(key, 0) + size
    for split in SPLITS:
        fsync_dir(folder / split)
    pending.clear()
    write_atomic(kept, json.dumps(asdict(state)))

"""Labelling: read raw text and write the same documents, in other domains, to a new folder.

    sample      of training documents, for a way that has to be fitted       topics.py
    labelling   each row is read, labelled and appended to a label's file    labelers.py, writing.py
    report      sizes, confusion, agreement, examples: labels.json           report.py

`build` reads the folder like any folder of raw text. The folder appears only when it is complete.
Until then, all files are in a hidden folder beside it, from which an interrupted labelling resumes.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cuvee.core.domain import Role
from cuvee.core.errors import CorpusError
from cuvee.core.files import fsync_dir, fsync_tree, write_atomic
from cuvee.data.corpus.manifest import digest
from cuvee.data.ingest.build import Progress, cores, identify
from cuvee.data.ingest.build_folder import open_build_folder
from cuvee.data.ingest.documents import Rules, check_shares, read_documents
from cuvee.data.ingest.reading import Bad, Block, read_blocks
from cuvee.data.ingest.sources.places import is_url
from cuvee.data.ingest.sources.raw import TextSource, choose_roles, find_sources
from cuvee.data.ingest.survey import BadRow, too_many, write_quarantine
from cuvee.data.ingest.worker_pool import WorkerPool
from cuvee.data.label.labelers import MOST_LABELS, SAMPLE_CHARS, ByRole, Way
from cuvee.data.label.report import REPORT, Labels, make_report, read_labels
from cuvee.data.label.writing import Labelled, LabelTask, Roles, label_documents

LEFT_OUT = "left_out"
# Part of what identifies labels. Increase it when the same text would give other bytes.
_VERSION = 2


@dataclass(frozen=True)
class LabelSettings:
    """How documents are read.

    - `text_column`: the column with the text.
    - `domain_column`: the column with a document's current domain. By default the file name gives
      it.
    - `targets`: the target domains among the current ones. By default the tables beside the sources
      mark them.
    - `by_role`: split each label into LABEL.source and LABEL.target.
    - `valid_share`, `test_share`: the shares of documents for validation and for the test of final
      models, the same documents that `build` chooses. They are ignored for sources that have
      `train/` and `valid/` folders.
    - `max_bad_rows`: the number of unusable rows above which labelling stops.
    """

    text_column: str = "text"
    domain_column: str | None = None
    targets: tuple[str, ...] = ()
    by_role: bool = False
    valid_share: float = 0.05
    test_share: float = 0.05
    max_bad_rows: int = 100

    def __post_init__(self) -> None:
        check_shares(self.valid_share, self.test_share)
        if self.max_bad_rows < 0:
            raise CorpusError(f"max_bad_rows is {self.max_bad_rows}: it must not be negative")


def label(
    sources: Sequence[Path | str] | Mapping[str, Any],
    folder: Path | str,
    way: Way,
    settings: LabelSettings | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Labels:
    """Write the documents of `sources` to `folder`, each in the domain that `way` finds for it.

    Resumes an interrupted call. `folder` gets train/LABEL.jsonl.gz, valid/LABEL.jsonl.gz, a
    table.json with roles, and the report labels.json. If it already holds the labels of the same
    sources, way and settings, nothing is done. Raises `CorpusError`.
    """
    settings = settings or LabelSettings()
    folder = Path(os.path.abspath(folder))  # "." and ".." have no usable name
    report = progress or (lambda stage, share: None)
    workers = workers if workers is not None else cores()
    if workers < 1:
        raise CorpusError(f"workers is {workers}: at least 1 is needed")
    found, table = find_sources(sources)
    if not isinstance(sources, Mapping):
        _keep_apart(folder, [Path(source) for source in sources if not is_url(source)])
    _refuse_early(found, table, way, settings)
    entries = identify(found, report)
    content = asdict(settings)
    del content["max_bad_rows"]  # it does not change the labels
    stamp = digest(
        {
            "version": _VERSION,
            "way": way.to_json(),
            "settings": content,
            "roles": dict(table),
            "sources": [
                [s.domain, s.split, e.model_dump()] for s, e in zip(found, entries, strict=True)
            ],
        }
    )
    hidden = folder.with_name(f".{folder.resolve().name}.labelling")
    if not _is_labelled(folder, stamp):
        try:
            with (
                open_build_folder(hidden, stamp) as work,
                WorkerPool(workers if way.parallel else 1) as pool,
            ):
                rules = Rules(
                    settings.text_column,
                    settings.domain_column,
                    settings.valid_share,
                    settings.test_share,
                )
                roles = Roles(tuple(sorted(table.items())), settings.targets)
                task = LabelTask(way, rules, roles, settings.by_role, work, stamp)
                _Labelling(found, settings, task, pool, report).run(work / "out", folder)
        except OSError as error:
            raise CorpusError(
                f"cannot write {folder}: {error.strerror or error}; fix that and run the same "
                "command again to resume"
            ) from error
    shutil.rmtree(hidden, ignore_errors=True)
    return read_labels(folder)


@dataclass(frozen=True)
class _Labelling:
    """A labelling in progress."""

    sources: Sequence[TextSource]
    settings: LabelSettings
    task: LabelTask
    pool: WorkerPool
    report: Progress

    def run(self, out: Path, folder: Path) -> None:
        """Fill the folder `out` and rename it to `folder`."""
        way = self.task.way
        work = self.task.work
        if way.sample and not (work / "fitted").exists():
            texts = draw_sample(
                self.sources,
                self.task.rules,
                way.sample,
                self.pool,
                self._stage("reading a sample"),
            )
            self.report("finding topics", 0.0)
            way.fit(texts, work)
            write_atomic(work / "fitted", "")
            self.report("finding topics", 1.0)
        found = label_documents(
            self.sources, self.task, self.pool, out, self._check, self._stage("labelling")
        )
        domains = sorted({domain for by_domain in found.counts.values() for domain in by_domain})
        if not found.counts.get("train"):
            reason = f"; {_place(found.bad_rows[0])}" if found.bad_rows else ""
            raise CorpusError(f"no training document got a label{reason}")
        choose_roles(domains, {}, self.settings.targets)
        made = make_report(
            found,
            way.words(work),
            {domain: self.task.roles.of(domain) for domain in domains},
            by=way.to_json(),
            by_role=self.settings.by_role,
            text_column=self.settings.text_column,
            labelled_from=self.task.stamp,
        )
        for name in made.left_out:
            for split in ("valid", "test"):
                path, place = out / split / f"{name}.jsonl.gz", out / LEFT_OUT / split
                if path.exists():  # else there is none, or it is already moved
                    place.mkdir(parents=True, exist_ok=True)
                    os.replace(path, place / path.name)
        write_quarantine(out / "quarantine.jsonl", found.bad_rows)
        table = [
            {"domain": row.name, "role": row.role, "documents": row.train.documents}
            for row in made.labels
        ]
        write_atomic(out / "table.json", json.dumps(table, indent=1) + "\n")
        made.write(out)
        fsync_tree(out)
        os.rename(out, folder)
        fsync_dir(folder.absolute().parent)

    def _check(self, found: Labelled) -> None:
        limit = self.settings.max_bad_rows
        if len(found.bad_rows) > limit:
            quarantine = self.task.work.parent / "quarantine.jsonl"
            write_quarantine(quarantine, found.bad_rows)
            raise too_many(found.bad_rows, limit, quarantine)
        if len(found.spelled) > MOST_LABELS:
            raise CorpusError(
                f"more than {MOST_LABELS} labels"
                + (
                    f": is {self.task.way.column!r} the column with the label?"
                    if self.task.way.column
                    else ""
                )
            )

    def _stage(self, name: str) -> Any:
        return lambda share: self.report(name, share)


def draw_sample(
    sources: Sequence[TextSource], rules: Rules, size: int, pool: WorkerPool, progress: Any
) -> list[str]:
    """Return the beginnings of the `size` training documents of lowest hash, without duplicates.

    The sample does not depend on the order of files.
    """
    lowest: list[tuple[int, str]] = []  # a heap with the highest hash on top
    held: set[int] = set()

    def calls() -> Iterator[tuple[Block, Rules, int]]:
        for block in read_blocks(sources, rules.text_column, rules.domain_column):
            yield block, rules, -lowest[0][0] if len(lowest) == size else 1 << 64

    for share, drawn in pool.map(_draw, calls()):
        for rank, text in drawn:
            if rank not in held:
                held.add(rank)
                heapq.heappush(lowest, (-rank, text))
                if len(lowest) > size:
                    held.remove(-heapq.heappop(lowest)[0])
        progress(share)
    return [text for _, text in sorted(lowest, reverse=True)]


def _draw(block: Block, rules: Rules, below: int) -> tuple[float, list[tuple[int, str]]]:
    return block.share, [
        (document.rank, document.text[:SAMPLE_CHARS])
        for _, document in read_documents(block, rules)
        if not isinstance(document, Bad) and document.split == "train" and document.rank < below
    ]


def _is_labelled(folder: Path, stamp: str) -> bool:
    if (folder / REPORT).exists():
        if read_labels(folder).labelled_from != stamp:
            raise CorpusError(
                f"{folder} already holds labels of other sources or settings: choose another "
                "folder, or remove this one"
            )
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CorpusError(
            f"{folder} already holds something else: choose an empty folder for the labels"
        )
    return False


def _refuse_early(
    sources: Sequence[TextSource], table: Mapping[str, Role], way: Way, settings: LabelSettings
) -> None:
    """Raise `CorpusError` for mistakes that can be found before anything is read."""
    if way.column is not None and settings.domain_column is not None:
        raise CorpusError(
            f"labels are in the column {way.column!r}, so domains cannot be read from the column "
            f"{settings.domain_column!r}: "
            "file and folder names give the current domains"
        )
    names: list[str] = []
    targets = list(settings.targets) or [name for name, role in table.items() if role == "target"]
    if settings.domain_column is None:
        names = sorted({source.domain for source in sources})
        roles = choose_roles(names, table, settings.targets)
        targets = [name for name in names if roles[name] == "target"]
    if settings.by_role:
        ByRole().check(names, targets)
    way.check(names, targets)


def _keep_apart(folder: Path, places: Sequence[Path]) -> None:
    for place in places:
        if folder.resolve().is_relative_to(place.resolve()) or place.resolve().is_relative_to(
            folder.resolve()
        ):
            raise CorpusError(
                f"one of {folder} and the source {place} contains the other: choose a folder "
                "beside it"
            )


def _place(row: BadRow) -> str:
    return f"{row.file} line {row.line}: {row.reason}"

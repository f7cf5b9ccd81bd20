"""Build a corpus: text → survey → tokenizer → shards → manifest.

    survey      reads every row once: counts, bad rows, a sample of each domain     survey.py
    tokenizer   trained on the sample, or given                                     tokenizer.py
    encoding    reads every row again and appends its token ids to a shard          tokenize.py
    manifest    writes indices and hashes, and manifest.json last                   manifest.py

The bytes of the result do not depend on the number of workers or of interruptions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.domain import Role
from cuvee.core.errors import CorpusError
from cuvee.core.files import fsync_dir, sha256_of, write_atomic
from cuvee.data.corpus.bos import find_bos
from cuvee.data.corpus.corpus import TOKENIZER, Corpus
from cuvee.data.corpus.manifest import (
    DomainEntry,
    Manifest,
    ShardEntry,
    SourceEntry,
    TokenizerEntry,
    digest,
    write_manifest,
)
from cuvee.data.corpus.names import check_all_used, checked_renames
from cuvee.data.corpus.shards import bin_path, idx_path, token_dtype, write_index
from cuvee.data.corpus.tokenizer import (
    SMALLEST_VOCAB,
    Vocabulary,
    find_vocabulary,
    parse_tokenizer,
    read_tokenizer,
    single_threaded,
    train_tokenizer,
)
from cuvee.data.ingest.build_folder import is_built, open_build_folder
from cuvee.data.ingest.documents import Rules, check_shares
from cuvee.data.ingest.sources.raw import TextSource, choose_roles, find_sources
from cuvee.data.ingest.survey import Survey, take_survey
from cuvee.data.ingest.tokenize import SYNC_THREADS, EncodeTask, Written, encode, lengths_path
from cuvee.data.ingest.worker_pool import WorkerPool

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done, from 0 to 1."""

_MOST_ENTRIES = 1_000
# Part of what identifies a corpus. Increase it when the same text would give other bytes.
_BUILD_VERSION = 1


@dataclass(frozen=True)
class BuildSettings:
    """How text becomes a corpus.

    - `text_column`: the column with the text. `text_columns` names others by domain, as files and
      folders give it.
    - `domain_column`: the column with each row's domain. By default the file name gives the domain.
    - `targets`: the target domains. By default the tables beside the sources mark them.
    - `tokenizer`: a tokenizer.json. By default a byte-level BPE of `vocab_size` is trained.
    - `end_of_text`: the token that ends a document. Required if the tokenizer has no well-known
      one.
    - `bos`: whether a start token begins every document. By default the tokenizer decides
      (`corpus/bos.py`); a trained one has none.
    - `valid_share`, `test_share`: the shares of documents kept for validation and for the test of
      final models, chosen by a hash of their content. They are ignored for sources that have
      `train/` and `valid/` folders.
    - `rename`: new names by the names that files, folders or the column give.
    - `max_bad_rows`: the number of unusable rows above which the build stops.
    """

    text_column: str = "text"
    text_columns: Mapping[str, str] = field(default_factory=dict)
    domain_column: str | None = None
    targets: tuple[str, ...] = ()
    tokenizer: Path | None = None
    vocab_size: int = 4096
    end_of_text: str | None = None
    bos: bool | None = None
    valid_share: float = 0.05
    test_share: float = 0.05
    max_bad_rows: int = 100
    rename: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shares(self.valid_share, self.test_share)
        if self.tokenizer is None and not SMALLEST_VOCAB <= self.vocab_size <= 1 << 24:
            raise CorpusError(
                f"vocab_size is {self.vocab_size}: it must be at least {SMALLEST_VOCAB} (all bytes "
                f"and the end-of-text token) and at most {1 << 24}"
            )
        if self.bos and self.tokenizer is None:
            raise CorpusError("bos: a trained tokenizer has no start token; give a tokenizer.json")
        if self.max_bad_rows < 0:
            raise CorpusError(f"max_bad_rows is {self.max_bad_rows}: it must not be negative")


def build(
    sources: Sequence[Path | str] | Mapping[str, Any],
    folder: Path | str,
    settings: BuildSettings | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Build the corpus of `sources` in `folder`, or resume an interrupted build.

    `sources` are files and folders (see `sources/raw.py`), or a mapping from domain names to Hugging Face
    map-style data sets. `workers` processes tokenize, by default one per core; with 1, everything
    runs in this process. If the corpus of the same sources and settings exists already, it is
    opened. Raises `CorpusError`.

    Example:

        corpus = build(["data/web.jsonl", "data/code.jsonl"], "corpus")
    """
    settings = settings or BuildSettings()
    folder = Path(folder)
    report = progress or (lambda stage, share: None)
    workers = workers if workers is not None else cores()
    if workers < 1:
        raise CorpusError(f"workers is {workers}: at least 1 is needed")
    found, table = find_sources(
        sources,
        checked_renames(settings.rename),
        named_by_rows=settings.domain_column is not None,
    )
    if settings.domain_column is None:  # report unknown targets before hours of reading
        choose_roles(sorted({source.domain for source in found}), table, settings.targets)
    columns = settings.text_columns
    check_all_used(columns, {source.domain for source in found}, "with a text column of its own")
    found = [replace(one, text_column=columns.get(one.domain, "")) for one in found]
    bos = _bos(settings)
    entries = identify(found, report)
    built_from = _built_from(found, entries, settings, table, bos)
    if not is_built(folder, built_from):
        try:
            with (
                open_build_folder(folder, built_from) as work,
                single_threaded(),
                WorkerPool(workers) as pool,
            ):
                building = _Building(found, settings, bos, folder, work, pool, report)
                survey, vocabulary = building.survey()
                roles = choose_roles(survey.names, table, settings.targets)
                written = building.encode(vocabulary, survey.names)
                write_manifest(
                    folder,
                    Manifest(
                        dtype=token_dtype(vocabulary.size).name,
                        tokenizer=building.keep_tokenizer(vocabulary),
                        domains=_domains(
                            survey, roles, building.finish_shards(written, vocabulary)
                        ),
                        sources=_summary(found, entries),
                        bad_rows=len(survey.bad_rows),
                        built_from=built_from,
                    ),
                )
                shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise CorpusError(
                f"cannot build {folder}: {error.strerror or error}; fix that and run the same "
                "command again to resume"
            ) from error
    return Corpus.open(folder)


@dataclass(frozen=True)
class _Building:
    """A build in progress. The corpus grows in `folder`; unfinished work is kept in `work`."""

    sources: Sequence[TextSource]
    settings: BuildSettings
    bos: int | None
    folder: Path
    work: Path
    pool: WorkerPool
    report: Progress

    @property
    def rules(self) -> Rules:
        settings = self.settings
        return Rules(
            settings.text_column,
            settings.domain_column,
            settings.valid_share,
            settings.test_share,
            checked_renames(settings.rename),
        )

    def survey(self) -> tuple[Survey, Vocabulary]:
        """Return the survey and the vocabulary; keep survey and tokenizer in `work`."""
        place = self.settings.tokenizer
        text = ""
        if place is not None:  # reject a bad tokenizer before hours of reading
            text = read_tokenizer(place)
            find_vocabulary(
                parse_tokenizer(text, str(place)), self.settings.end_of_text, str(place)
            )
        if not (self.work / "survey.json").exists():
            survey, sample = take_survey(
                self.sources,
                self.rules,
                self.pool,
                self.settings.max_bad_rows,
                self.folder / "quarantine.jsonl",
                lambda share: self.report("reading", share),
            )
            choose_roles(survey.names, {}, self.settings.targets)
            _check_renamed(self.settings.rename, survey.names)
            if place is None:
                self.report("training the tokenizer", 0.0)
                texts = (text for name in survey.names for text in sample.texts(name))
                text = train_tokenizer(texts, self.settings.vocab_size)
                self.report("training the tokenizer", 1.0)
            write_atomic(self.work / TOKENIZER, text)
            survey.save(self.work / "survey.json")
        tokenizer = parse_tokenizer(
            read_tokenizer(self.work / TOKENIZER), str(self.work / TOKENIZER)
        )
        vocabulary = find_vocabulary(tokenizer, self.settings.end_of_text, str(place))
        return Survey.load(self.work / "survey.json"), vocabulary

    def encode(self, vocabulary: Vocabulary, names: Sequence[str]) -> dict[str, Written]:
        """Write all token ids and return the counts of each shard. Raises `CorpusError`."""
        tokenizer = self.work / TOKENIZER
        task = EncodeTask(
            self.rules,
            tokenizer,
            sha256_of(tokenizer),
            vocabulary.end_of_text,
            token_dtype(vocabulary.size).str,
            self.bos,
        )
        written = encode(
            self.sources,
            task,
            self.pool,
            self.folder,
            self.work,
            lambda share: self.report("tokenizing", share),
        )
        if {f"train/{name}" for name in names} != {
            key for key in written if key.startswith("train/")
        }:
            raise CorpusError(
                f"the sources changed while they were read: remove {self.folder} and build again"
            )
        return written

    def finish_shards(
        self, written: Mapping[str, Written], vocabulary: Vocabulary
    ) -> dict[str, ShardEntry]:
        """Write the index of each shard, hash all files and return the manifest entries."""

        def index(key: str) -> None:
            lengths_D = np.fromfile(lengths_path(self.work, key), np.int32, written[key].documents)
            write_index(self.folder / key, lengths_D, token_dtype(vocabulary.size))

        with ThreadPoolExecutor(SYNC_THREADS) as threads:
            list(threads.map(index, written))
        paths = [
            path
            for key in written
            for path in (bin_path(self.folder / key), idx_path(self.folder / key))
        ]
        hashes = []
        for sha in self.pool.map(sha256_of, ((path,) for path in paths)):
            hashes.append(sha)
            self.report("hashing the shards", len(hashes) / len(paths))
        return {
            key: ShardEntry(
                path=key,
                documents=shard.documents,
                tokens=shard.tokens,
                text_bytes=shard.text_bytes,
                bin_bytes=bin_path(self.folder / key).stat().st_size,
                idx_bytes=idx_path(self.folder / key).stat().st_size,
                bin_sha256=hashes[2 * i],
                idx_sha256=hashes[2 * i + 1],
            )
            for i, (key, shard) in enumerate(written.items())
        }

    def keep_tokenizer(self, vocabulary: Vocabulary) -> TokenizerEntry:
        """Copy the tokenizer into the corpus folder and return its manifest entry."""
        kept = self.folder / TOKENIZER
        write_atomic(kept, (self.work / TOKENIZER).read_bytes())
        fsync_dir(self.folder)
        return TokenizerEntry(
            sha256=sha256_of(kept),
            vocab_size=vocabulary.size,
            end_of_text=vocabulary.end_of_text,
            bos=self.bos,
        )


def identify(sources: Sequence[TextSource], report: Progress) -> list[SourceEntry]:
    """Return an entry with the digest of each source. Raises `CorpusError`."""
    entries = []
    for i, source in enumerate(sources):
        report("hashing the sources", i / len(sources))
        try:
            entries.append(
                SourceEntry(label=source.label, size=source.size, digest=source.digest())
            )
        except OSError as error:
            raise CorpusError(f"{source.place} cannot be read: {error.strerror}") from error
    report("hashing the sources", 1.0)
    _check_twice(sources, entries)
    return entries


def _check_twice(sources: Sequence[TextSource], entries: Sequence[SourceEntry]) -> None:
    """Raise `CorpusError` for a file that is given twice, or beside a copy of it.

    A copy of a text file is no mistake: it is one document of many, and those may be equal.
    """
    seen: dict[str, str] = {}
    for source, entry in zip(sources, entries, strict=True):
        key = entry.digest
        if source.format == "txt" and source.path is not None:
            key = str(source.path.resolve())
        if entry.size and key in seen:
            raise CorpusError(
                f"{source.place} has the same content as {seen[key]}: give each file once"
            )
        seen[key] = source.place


def _summary(
    sources: Sequence[TextSource], entries: Sequence[SourceEntry]
) -> tuple[SourceEntry, ...]:
    """Return the entries, or one entry per domain and split if there are more than 1,000.

    The manifest is read each time a corpus is opened, so it must stay small.
    """
    if len(entries) <= _MOST_ENTRIES:
        return tuple(entries)
    groups: dict[str, list[SourceEntry]] = {}
    for source, entry in zip(sources, entries, strict=True):
        groups.setdefault(f"{source.split or 'all'}/{source.domain}", []).append(entry)
    return tuple(
        SourceEntry(
            label=f"{key}, {len(group)} files",
            size=sum(entry.size for entry in group),
            digest=digest([entry.digest for entry in group]),
        )
        for key, group in groups.items()
    )


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bos(settings: BuildSettings) -> int | None:
    """Return the id of the token that begins every document. Raises `CorpusError`."""
    place = settings.tokenizer
    if place is None or settings.bos is False:
        return None
    return find_bos(parse_tokenizer(read_tokenizer(place), str(place)), place, settings.bos)


def _built_from(
    sources: Sequence[TextSource],
    entries: Sequence[SourceEntry],
    settings: BuildSettings,
    table: Mapping[str, Role],
    bos: int | None,
) -> str:
    content = asdict(settings)
    del content["bos"]
    if bos is not None:
        content["bos"] = bos
    del content["max_bad_rows"]  # it does not change the content of the corpus
    for option in ("rename", "text_columns"):
        if not content[option]:  # as corpora without them have always been identified
            del content[option]
    if settings.tokenizer is not None:
        del content["vocab_size"]
        content["tokenizer"] = read_tokenizer(settings.tokenizer)
    return digest(
        {
            "version": _BUILD_VERSION,
            "settings": content,
            "roles": dict(table),
            "sources": [
                [s.domain, s.split, e.model_dump()] for s, e in zip(sources, entries, strict=True)
            ],
        }
    )


def _check_renamed(rename: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise `CorpusError` if no row has one of the old names."""
    for old, new in rename.items():
        if new not in names:
            raise CorpusError(
                f"no domain {old!r} to rename to {new}; the domains are {', '.join(names)}"
            )


def _domains(
    survey: Survey, roles: Mapping[str, Role], shards: Mapping[str, ShardEntry]
) -> tuple[DomainEntry, ...]:
    return tuple(
        DomainEntry(
            name=name,
            role=roles[name],
            scores={"mtld": survey.mtld[name]} if name in survey.mtld else {},
            train=shards[f"train/{name}"],
            valid=shards.get(f"valid/{name}"),
            test=shards.get(f"test/{name}"),
        )
        for name in survey.names
    )

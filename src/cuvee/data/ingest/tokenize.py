"""Encoding: the second pass writes token ids to `.bin` files in steps that survive a crash.

A step appends the ids of about 16 MiB of text, syncs the files and then replaces `progress.json`.
That file records the length of every file and the next block to read. On restart, files are
truncated to the recorded lengths and reading resumes at that block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.domain import SPLITS
from cuvee.core.files import fsync_dir, read_json, write_atomic
from cuvee.data.corpus.tokenizer import load_encoder
from cuvee.data.ingest.build_folder import damaged
from cuvee.data.ingest.documents import Rules, read_documents
from cuvee.data.ingest.reading import Bad, Block, read_blocks
from cuvee.data.ingest.sources.raw import TextSource
from cuvee.data.ingest.worker_pool import WorkerPool

STEP_BLOCKS = 32
SYNC_THREADS = 16  # concurrent fsyncs take little longer than one


@dataclass(frozen=True)
class EncodeTask:
    """The settings that a worker needs to encode a block."""

    rules: Rules
    tokenizer: Path
    tokenizer_sha256: str
    end_of_text: int
    dtype: str
    bos: int | None


@dataclass
class Written:
    """What a shard contains so far."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


@dataclass
class _Encoded:
    """The documents of one block that go to one shard."""

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int32]
    text_bytes: int


@dataclass
class _Progress:
    """The state of an encoding that is saved after each step.

    `shards` maps keys such as "train/law" to their counts. They include everything up to block
    `position`. `done` is True at the end.
    """

    position: tuple[int, int] = (-1, 0)
    done: bool = False
    shards: dict[str, Written] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> _Progress:
        """Read the saved progress, else start. Raises `CorpusError` if the file is damaged."""
        if not path.exists():
            return cls()
        try:
            content = read_json(path)
            shards = {key: Written(**written) for key, written in content["shards"].items()}
            return cls(tuple(content["position"]), content["done"], shards)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(path) from error


def lengths_path(work: Path, key: str) -> Path:
    """Return the file that collects the document lengths of a shard until its index is written."""
    return work / "lengths" / f"{key}.i32"


def encode(
    sources: Sequence[TextSource],
    task: EncodeTask,
    pool: WorkerPool,
    folder: Path,
    work: Path,
    progress: Callable[[float], None],
) -> dict[str, Written]:
    """Write `folder/SPLIT/*.bin` for each split and, in `work`, their document lengths.

    Resumes an interrupted call. Returns the counts of each shard by key. Raises `CorpusError` if
    the files were changed since that call.
    """
    state = _Progress.load(work / "progress.json")
    if state.done:
        return state.shards
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
        lengths_path(work, f"{split}/x").parent.mkdir(parents=True, exist_ok=True)
    pending: dict[str, list[_Encoded]] = {}

    def calls() -> Iterator[tuple[Block, EncodeTask]]:
        rules = task.rules
        for block in read_blocks(
            sources, rules.text_column, rules.domain_column, after=state.position
        ):
            yield block, task

    blocks = 0
    for position, share, encoded in pool.map(_encode_block, calls()):
        for key, part in encoded.items():
            pending.setdefault(key, []).append(part)
        blocks += 1
        if blocks >= _step_blocks(len(pending)):
            _step(state, pending, position, folder, work)
            blocks = 0
        progress(share)
    state.done = True
    _step(state, pending, state.position, folder, work)
    return state.shards


def _step_blocks(shards: int) -> int:
    """Return the blocks per step: more if many shards need an fsync, bounded by memory."""
    return max(STEP_BLOCKS, min(shards // 8, 8 * STEP_BLOCKS))


def _encode_block(
    block: Block, task: EncodeTask
) -> tuple[tuple[int, int], float, dict[str, _Encoded]]:
    documents = [
        document
        for _, document in read_documents(block, task.rules)
        if not isinstance(document, Bad)
    ]
    encoder = load_encoder(
        task.tokenizer, task.tokenizer_sha256, task.end_of_text, task.dtype, task.bos
    )
    ids = encoder.encode([document.text for document in documents])
    by_key: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        by_key.setdefault(f"{document.split}/{document.domain}", []).append(i)
    encoded = {
        key: _Encoded(
            tokens=np.concatenate([ids[i] for i in members]),
            lengths=np.array([len(ids[i]) for i in members], dtype=np.int32),
            text_bytes=sum(documents[i].bytes for i in members),
        )
        for key, members in by_key.items()
    }
    return block.position, block.share, encoded


def _step(
    state: _Progress,
    pending: dict[str, list[_Encoded]],
    position: tuple[int, int],
    folder: Path,
    work: Path,
) -> None:
    """Append `pending` to the shards durably, then record it in `progress.json`."""
    appended = []
    for key, parts in pending.items():
        shard = state.shards.setdefault(key, Written())
        tokens = np.concatenate([part.tokens for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        appended.append((folder / f"{key}.bin", shard.tokens * tokens.itemsize, tokens))
        appended.append((lengths_path(work, key), shard.documents * lengths.itemsize, lengths))
        shard.documents += len(lengths)
        shard.tokens += len(tokens)
        shard.text_bytes += sum(part.text_bytes for part in parts)
    with ThreadPoolExecutor(SYNC_THREADS) as threads:
        list(threads.map(append, *zip(*appended, strict=True)) if appended else ())
    for split in SPLITS:
        fsync_dir(folder / split)
        fsync_dir(lengths_path(work, f"{split}/x").parent)
    pending.clear()
    state.position = position
    write_atomic(work / "progress.json", json.dumps(asdict(state)))


def append(path: Path, offset: int, data: npt.NDArray[Any] | bytes) -> None:
    """Truncate the file at `offset` and write `data` there durably.

    Truncation removes what an interrupted step left behind. Raises `CorpusError` if the file is
    shorter than `offset`.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size < offset:
            raise damaged(path)
        file.truncate(offset)
        file.seek(offset)
        file.write(data if isinstance(data, bytes) else data.tobytes())
        file.flush()
        os.fsync(file.fileno())

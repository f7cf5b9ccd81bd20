"""What decoding a columnar file may cost: the memory of a batch and the size of a row."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAX_ROW_BYTES: Final = 16 << 20  # of a document
DECODE_BYTES: Final = 192 << 20  # what decoding one batch may allocate
_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 512


def rows_at_once(rows: int, size: int) -> int:
    """Return how many of `rows` rows with `size` bytes in all to decode together."""
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(rows, 1) // max(size, 1)))


def too_large(part: str) -> str:
    """Return the reason to give for a `MemoryError`, and the remedy."""
    return (
        f"a part of it needs more than {DECODE_BYTES >> 20} MiB in memory: it is damaged, or its "
        f"rows are too large; write it again with smaller {part}, or as JSON lines"
    )


@contextmanager
def bounded(most: int = DECODE_BYTES) -> Iterator[None]:
    """Limits what this process may allocate while the block runs to `most` bytes more than it has.

    An allocation beyond that raises `MemoryError`.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the counts of decoded bytes remain
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = used + most
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    if soft != resource.RLIM_INFINITY:
        allowed = min(allowed, soft)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

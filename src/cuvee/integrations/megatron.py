"""`LaneBatches`: the rows of `LaneRows` in the order in which Megatron-LM reads samples."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from cuvee.core.errors import ConfigError


class LaneBatches(Sampler[list[int]]):
    """A batch sampler for one data-parallel rank of Megatron, over a `LaneRows`.

    A global batch of `batch_size` rows is read as micro-batches of `micro_batch_size` rows on each
    of `ranks` data-parallel ranks, as Megatron-LM's own samplers read it. `rank` is the
    data-parallel coordinate, so tensor, pipeline and context-parallel peers read the same rows.
    `consumed` is Megatron's `consumed_train_samples`, whole global batches. Raises `ConfigError`.
    """

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        ranks: int,
        consumed: int = 0,
    ) -> None:
        together = micro_batch_size * ranks
        if batch_size % together:
            raise ConfigError(
                f"a global batch of {batch_size} rows cannot be split into micro-batches of "
                f"{micro_batch_size} rows on {ranks} ranks"
            )
        if consumed % batch_size:
            raise ConfigError(
                f"{consumed} consumed samples are no whole batches of {batch_size}: resume from a "
                "checkpoint with the same global batch size"
            )
        self._starts = range(consumed + rank * micro_batch_size, rows, together)
        self._size = micro_batch_size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield list(range(start, start + self._size))

"""`LaneBatches` and `gpt_batch`: rows of `LaneRows` in the order and form that Megatron-LM reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Sampler

from cuvee.core.errors import ConfigError
from cuvee.integrations.lane_rows import IGNORED, collate


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


def gpt_batch(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join rows to the micro-batch of Megatron's GPT: tensors (B, L).

    `labels` are shifted, so label j is token j + 1. `loss_mask` is 0 where nothing counts. Use it
    as the `collate_fn` of a loader over `LaneRows`. The entries `cuvee_…` are those of `collate`.
    """
    batch = collate(rows)
    tokens_BL = batch.pop("input_ids")
    labels_BL = functional.pad(batch.pop("labels"), (0, 1), value=IGNORED)[:, 1:]
    counted_BL = labels_BL != IGNORED
    return {
        **batch,
        "tokens": tokens_BL,
        "labels": labels_BL.masked_fill(~counted_BL, 0),
        "loss_mask": counted_BL.float(),
        "position_ids": torch.arange(tokens_BL.shape[1]).repeat(len(tokens_BL), 1),
    }

"""The rows that Megatron's data-parallel ranks read are those of the stream, also after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.lane_rows import LaneRows, collate
from cuvee.integrations.megatron import LaneBatches
from stdlib_corpus import stdlib_corpus

B, STEPS = 8, 3


@pytest.mark.parametrize("consumed", [0, B])
def test_ranks_together_read_the_global_batches(tmp_path: Path, consumed: int) -> None:
    corpus = stdlib_corpus(tmp_path)
    natural = Mixture.natural(corpus.domains)
    stream = MixtureStream(corpus, natural, batch_size=B, sequence_length=16, seed=0)
    rows = LaneRows(stream, STEPS)
    order = {"batch_size": B, "micro_batch_size": 2, "ranks": 2, "consumed": consumed}
    read = []
    for rank in range(2):
        batches = LaneBatches(len(rows), rank=rank, **order)
        assert len(batches) == (STEPS * B - consumed) // 4
        loader = DataLoader(rows, batch_sampler=batches, collate_fn=collate)
        read.append([batch["input_ids"] for batch in loader])
    micro = [torch.cat(pair) for pair in zip(*read, strict=True)]
    expected = np.concatenate([next(stream).tokens_BL for _ in range(STEPS)])[consumed:]
    np.testing.assert_array_equal(torch.cat(micro).numpy(), expected)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split"):
        LaneBatches(24, batch_size=8, micro_batch_size=3, rank=0, ranks=2)
    with pytest.raises(ConfigError, match="no whole batches of 8"):
        LaneBatches(24, batch_size=8, micro_batch_size=2, rank=0, ranks=2, consumed=4)

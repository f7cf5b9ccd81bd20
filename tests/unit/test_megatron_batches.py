"""The rows that Megatron's data-parallel ranks read are those of the stream, also after a restart."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.lane_rows import LaneRows, collate
from cuvee.integrations.megatron import LaneBatches, gpt_batch
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


def test_a_micro_batch_has_the_form_of_megatrons_gpt(tmp_path: Path) -> None:
    corpus = stdlib_corpus(tmp_path)
    natural = Mixture.natural(corpus.domains)
    stream = MixtureStream(corpus, natural, batch_size=B, sequence_length=16, seed=0)
    rows = LaneRows(
        stream, STEPS, labels=lambda tokens_BL: tokens_BL.masked_fill(tokens_BL % 2 == 0, -100)
    )
    batch = gpt_batch([rows[n] for n in range(2)])
    tokens_BL, mask_BL = batch["tokens"], batch["loss_mask"]
    assert torch.equal(mask_BL[:, :-1] > 0, tokens_BL[:, 1:] % 2 == 1)
    assert not mask_BL[:, -1].any()
    assert torch.equal(batch["labels"][mask_BL > 0], tokens_BL[:, 1:][mask_BL[:, :-1] > 0])
    assert batch["position_ids"].tolist() == [list(range(16))] * 2


def test_the_example_reads_the_same_rows_on_every_rank_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Megatron-LM's `get_args` and `mpu` as stand-ins."""
    corpus = stdlib_corpus(tmp_path)
    mixture = {"algorithms": 0.5, "mail": 0.3, "network": 0.2}
    monkeypatch.setenv("CORPUS", str(corpus.folder))
    monkeypatch.setenv("MIXTURE", json.dumps(mixture))
    example = Path(__file__).parents[2] / "examples" / "megatron" / "cuvee_data.py"
    assert len(example.read_text().splitlines()) <= 40

    def read(rank: int, consumed: int) -> list[torch.Tensor]:
        args = SimpleNamespace(
            global_batch_size=B,
            micro_batch_size=2,
            seq_length=16,
            seed=0,
            train_iters=STEPS,
            consumed_train_samples=consumed,
        )
        mpu = SimpleNamespace(
            get_data_parallel_rank=lambda: rank, get_data_parallel_world_size=lambda: 2
        )
        for name, members in (
            ("megatron", {}),
            ("megatron.core", {"mpu": mpu}),
            ("megatron.training", {"get_args": lambda: args}),
        ):
            module = ModuleType(name)
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
        provider = runpy.run_path(str(example))["train_valid_test_datasets_provider"]
        train, valid, test = provider((STEPS * B, 0, 0))
        assert (valid, test) == (None, None)
        assert next(iter([train])) is iter(train), "Megatron-LM calls next on an external loader"
        return [batch["tokens"] for batch in train]

    stream = MixtureStream(corpus, Mixture.of(mixture), batch_size=B, sequence_length=16, seed=0)
    expected = np.concatenate([next(stream).tokens_BL for _ in range(STEPS)])
    for consumed in (0, B):
        micro = [torch.cat(pair) for pair in zip(read(0, consumed), read(1, consumed), strict=True)]
        np.testing.assert_array_equal(torch.cat(micro).numpy(), expected[consumed:])

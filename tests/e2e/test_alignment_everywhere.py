"""GradientAlignment over two ranks, and in compiled models."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from alignment_reference import (
    DOWN,
    attach,
    domains,
    error,
    measured,
    mixed_rows,
    model_of,
    rows_of_one_domain,
    separate_backward,
    token_losses,
    train_step,
)
from cuvee.core.errors import TrainingError
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.base import Context, MicroBatch, Place

pytestmark = pytest.mark.training
RANKS = 2
CASES = [(kind, sketch) for kind in ("llama", "gpt_neox") for sketch in (None, 1500)]


def share(batch: MicroBatch, rank: int) -> MicroBatch:
    """The rows of this rank.

    The loss is divided by the tokens of all ranks and multiplied by RANKS, because DDP averages
    over ranks.
    """
    rows = slice(rank, None, RANKS)
    return replace(
        batch,
        tokens_BL=batch.tokens_BL[rows],
        domain_BL=batch.domain_BL[rows],
        counted_BL=batch.counted_BL[rows],
        denominator=batch.bound() / RANKS,
    )


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    for kind, sketch in CASES:
        model = model_of(kind)
        probe = GradientAlignment(sketch=sketch, stride=1)
        meter = probe.attach(Context(model, torch.device("cpu"), place=Place(rank, RANKS)))
        meter.begin_interval(domains())
        wrapped = DistributedDataParallel(model)
        for step in range(2):
            train_step(
                wrapped,
                [share(rows_of_one_domain(step), rank), share(mixed_rows(step), rank)],
                meter,
                step,
            )
        sums = meter.sums()
        distributed.all_reduce(sums)
        np.save(Path(folder) / f"{kind}-{sketch}-{rank}.npy", meter.read(sums)["alignment"].values)
        del wrapped  # before the process group that DDP's reducer holds on to
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    spawn(run_rank, (str(tmp_path),), nprocs=RANKS)
    for kind, sketch in CASES:
        first, second = (np.load(tmp_path / f"{kind}-{sketch}-{rank}.npy") for rank in range(RANKS))
        assert (first == second).all()
        model = model_of(kind)
        batches = [[rows_of_one_domain(step), mixed_rows(step)] for step in range(2)]
        alone = attach(model, sketch=sketch, stride=1)
        for step in range(2):
            train_step(model, batches[step], alone, step)
        gram = measured(alone)
        assert error(gram, first) < 1e-5
        if sketch is None:
            assert (
                error(gram, separate_backward(model, batches[0] + batches[1], [DOWN[kind]])) < 1e-5
            )


@pytest.fixture
def compiled_anew() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiled_anew")
def test_compiled_model() -> None:
    model = model_of()
    meter = attach(model)
    compiled = torch.compile(model, backend="aot_eager")
    batch = rows_of_one_domain(1)
    train_step(compiled, [batch], meter)
    assert error(measured(meter), separate_backward(model, [batch], [DOWN["llama"]])) < 1e-5


@pytest.mark.usefixtures("compiled_anew")
# torch's default, which taps change
@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # type: ignore[untyped-decorator]
def test_a_model_that_was_compiled_and_run_before_is_refused() -> None:
    model = model_of()
    compiled = torch.compile(model, backend="aot_eager")
    token_losses(compiled, rows_of_one_domain(1))
    meter = attach(model)
    with pytest.raises(TrainingError, match="compiled and run before the probe was attached"):
        train_step(compiled, [rows_of_one_domain(1)], meter)

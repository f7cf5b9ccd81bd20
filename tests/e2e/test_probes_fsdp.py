"""Loss by domain and alignment under FSDP on two ranks equal what one rank measures alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

from alignment_reference import (
    LENGTH,
    VOCAB,
    domains,
    error,
    mixed_rows,
    model_of,
    rows_of_one_domain,
    train_step,
)
from cuvee.core.protocols import Probe
from cuvee.core.signals import Measured
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.base import Context, MicroBatch, Place
from cuvee.probes.meters import Meters
from cuvee.probes.norms import WeightNorms
from cuvee.probes.target_gain import TargetGain
from cuvee.testing.probes import GradientNorm

pytestmark = pytest.mark.training
RANKS = 2
KINDS = ("llama", "gpt_neox")
TEXT = {"d0": np.random.default_rng(0).integers(VOCAB, size=40 * LENGTH).astype(np.uint16)}
PROBES: list[Probe] = [
    GradientAlignment(stride=1),
    WeightNorms(),
    GradientNorm(),
    TargetGain(rows=4, every=1, share=1.0),
    TargetGain(rows=4, every=1, share=1.0, precondition=False, name="raw_gain"),
]


def meters_on(context: Context) -> Meters:
    context = replace(context, valid_tokens=lambda: TEXT, row_tokens=LENGTH)
    meters = Meters(PROBES, context)
    meters.begin_interval(domains())
    return meters


def measure(meters: Meters) -> dict[str, Measured]:
    sums = meters.sums()
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    measured = meters.read(sums)
    return {"loss": measured.loss, **measured.probes}


def share(batch: MicroBatch, rank: int) -> MicroBatch:
    """Rank's rows. FSDP takes the mean of the gradients, hence the denominator."""
    rows = slice(rank, None, RANKS)
    parts = {name: getattr(batch, name)[rows] for name in ("tokens_BL", "domain_BL", "counted_BL")}
    return replace(batch, **parts, denominator=batch.bound() / RANKS)


def train(model: torch.nn.Module, meters: Meters, part: Callable[[MicroBatch], MicroBatch]) -> None:
    """Two steps of two micro-batches."""
    for step in range(2):
        model.zero_grad()
        batches = [part(rows_of_one_domain(2 * step)), part(mixed_rows(2 * step + 1))]
        train_step(model, batches, meters, step)


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    for kind in KINDS:
        model = model_of(kind)
        context = Context(model, torch.device("cpu"), place=Place(rank, RANKS))
        meters = meters_on(context)
        for layer in next(
            module for module in model.modules() if isinstance(module, torch.nn.ModuleList)
        ):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        train(model, meters, lambda batch: share(batch, rank))
        for name, measured in measure(meters).items():
            np.save(Path(folder) / f"{kind}-{name}-{rank}.npy", measured.values)
    (Path(folder) / f"refreshes-{rank}.json").write_text(json.dumps(refreshes(rank)))
    distributed.barrier()
    distributed.destroy_process_group()


def refreshes(rank: int) -> list[int]:
    """Steps at which a rank of DDP reads target rows, if rank 0 has more rows than rank 1."""
    model = model_of()
    context = Context(model, torch.device("cpu"), place=Place(rank, RANKS))
    context = replace(context, valid_tokens=lambda: TEXT, row_tokens=LENGTH)
    meter = TargetGain(rows=4, every=1, share=0.5).attach(context)
    meter.begin_interval(domains())
    found = []
    for step in range(9):
        before, batch = meter._refreshes, rows_of_one_domain(step)
        parts = {
            name: getattr(batch, name)[: 8 if rank == 0 else 2]
            for name in ("tokens_BL", "domain_BL", "counted_BL")
        }
        train_step(model, [replace(batch, **parts)], meter, step)
        if meter._refreshes > before:
            found.append(step)
    return found


def test_sharded_weights_change_nothing_that_is_measured(tmp_path: Path) -> None:
    spawn(run_rank, (str(tmp_path),), nprocs=RANKS)
    for kind in KINDS:
        model = model_of(kind)
        alone = meters_on(Context(model, torch.device("cpu")))
        train(model, alone, lambda batch: batch)
        expected = measure(alone)
        for rank in range(RANKS):
            loss_K = np.load(tmp_path / f"{kind}-loss-{rank}.npy")
            assert loss_K == pytest.approx(expected["loss"].values, rel=1e-5)
            for norm in ("weight_norms", "gradient_norm"):
                found = np.load(tmp_path / f"{kind}-{norm}-{rank}.npy")
                np.testing.assert_allclose(found, expected[norm].values, rtol=1e-5)
            # Adam's divisor is near zero for some weights, which magnifies differences of rounding.
            for gain, atol in (
                ("raw_gain", 1e-5),
                ("raw_gain_square", 1e-5),
                ("target_gain", 1e-3),
            ):
                found = np.load(tmp_path / f"{kind}-{gain}-{rank}.npy")
                np.testing.assert_allclose(found, expected[gain].values, rtol=1e-4, atol=atol)
            assert (
                error(expected["alignment"], np.load(tmp_path / f"{kind}-alignment-{rank}.npy"))
                < 1e-5
            )
    assert json.loads((tmp_path / "refreshes-0.json").read_text()) == [0, 4, 8]
    assert json.loads((tmp_path / "refreshes-1.json").read_text()) == [0, 4, 8]

"""A plain loop in two processes under DDP and under FSDP2: the same trajectory, and that of one process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Method, Probe
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller
from cuvee.integrations.rows import Rows
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.odm import ODM
from cuvee.policies.fixed import Fixed
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.norms import WeightNorms
from cuvee.probes.target_gain import TargetGain
from cuvee.training.distributed import Ranks
from cuvee.training.model import build_model
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEPS, INTERVAL = 8, 3
POLICIES = ("odm", "fixed", "ac_odm")


def wrapped(model: nn.Module, kind: str) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def train(corpus: Corpus, kind: str, policy: str, ranks: Ranks) -> Trajectory:
    """The loop of docs/integrations.md. Wrappers average gradients over ranks."""
    natural = Mixture.natural(corpus.domains)
    stream = MixtureStream(
        corpus,
        natural,
        batch_size=6,
        sequence_length=32,
        seed=0,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    bare = build_model(SMALL, corpus, seed=1)
    model = wrapped(bare, kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probes: list[Probe] = [
        GradientAlignment(stride=1),
        WeightNorms(),
        TargetGain(every=2, share=1.0, precondition=False),
    ]
    learned: dict[str, Method] = {"odm": ODM(), "ac_odm": ACODM()}
    steering = (
        learned[policy].commit(corpus, ()) if policy in learned else Fixed(natural, probes=probes)
    )
    controller = Controller(steering, stream, bare, interval=INTERVAL, steps=STEPS, ranks=ranks)
    controller.begin()
    while not controller.done:
        rows = Rows.of(next(stream))
        with controller.step(rows) as step:
            logits_BLV = model(rows.tokens_BL).logits[:, :-1].float()
            loss_BL = cross_entropy(logits_BLV.mT, rows.tokens_BL[:, 1:], reduction="none")
            counted_BL = rows.counted_BL[:, :-1]
            count = counted_BL.sum().double()
            ranks.sum(count, "the count of tokens")
            share = float(count) / ranks.size
            step.losses(loss_BL, denominator=share)
            ((loss_BL * counted_BL).sum() / share).backward()
            step.before_update()
            optimizer.step()
            optimizer.zero_grad()
    controller.close()
    return controller.trajectory


def run_rank(rank: int, folder: str, corpus: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    ranks = Ranks.adopt()
    for kind in ("ddp", "fsdp2"):
        for policy in POLICIES:
            trajectory = train(Corpus.open(corpus), kind, policy, ranks)
            path = Path(folder) / f"{kind}-{policy}-{rank}.json"
            path.write_text(json.dumps(trajectory.to_json()))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    corpus = stdlib_corpus(folder / "text")
    spawn(run_rank, (str(folder), str(corpus.folder)), nprocs=2)
    return folder


def read(folder: Path, kind: str, policy: str, rank: int = 0) -> Trajectory:
    return Trajectory.from_json(json.loads((folder / f"{kind}-{policy}-{rank}.json").read_text()))


def assert_close(found: Trajectory, expected: Trajectory) -> None:
    assert [signals.step for signals in found.signals] == [0, 3, 6, STEPS]
    np.testing.assert_allclose(found.weights_TK(), expected.weights_TK(), rtol=1e-5)
    for a, b in zip(found.signals, expected.signals, strict=True):
        np.testing.assert_array_equal(a.tokens_K, b.tokens_K)
        np.testing.assert_allclose(a.loss.values, b.loss.values, rtol=1e-5)
        for name, measured in b.probes.items():
            # A change of norms is a difference, so its rounding error is that of the norms.
            of = "weight_norms" if name == "weight_norm_changes" else name
            scale = max(float(np.abs(b.probes[of].values).max()), 1e-12)
            np.testing.assert_allclose(a.probes[name].values, measured.values, atol=1e-5 * scale)


@pytest.mark.parametrize("policy", ["odm", "fixed"])
def test_fsdp2_equals_ddp(folder: Path, policy: str) -> None:
    assert_close(read(folder, "fsdp2", policy), read(folder, "ddp", policy))


def test_ac_odm_decides_alike_under_fsdp2_and_ddp(folder: Path) -> None:
    """Its probe divides by running gradient norms, some near zero, so rounding shows more."""
    found, expected = (read(folder, kind, "ac_odm") for kind in ("fsdp2", "ddp"))
    np.testing.assert_allclose(found.weights_TK(), expected.weights_TK(), atol=1e-3)
    assert all(signals.probes["target_gain"].present.any() for signals in found.signals[1:])
    assert read(folder, "fsdp2", "ac_odm", rank=1) == found


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_equal_one(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    alone = train(Corpus.open(folder / "text" / "corpus"), "none", "odm", Ranks())
    assert_close(read(folder, kind, "odm"), alone)
    assert read(folder, kind, "odm", rank=1) == read(folder, kind, "odm")

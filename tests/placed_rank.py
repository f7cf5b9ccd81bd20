"""Four ranks, two data ranks of two pipeline stages, for `test_places.py`: `placed_rank.py OUT`.

Rank = 2 · stage + data rank, as Megatron orders them. One process imports torch and forks the ranks.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.integrations.controller import Controller
from cuvee.integrations.step import Step
from cuvee.probes.base import Place
from cuvee.probes.norms import WeightNorms
from cuvee.training.distributed import Ranks

WORDS, WIDTH, LAYERS, ROWS, LENGTH, STEPS, INTERVAL = 31, 8, (2, 1), 4, 8, 8, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + torch.tanh(self.inner(x_BLD))


class Model(nn.Module):
    """The whole model, or one of its two stages."""

    def __init__(self, stage: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed: nn.Module = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(sum(LAYERS)))
        self.head: nn.Module = nn.Linear(WIDTH, WORDS)
        if stage == 0:
            self.layers, self.head = self.layers[: LAYERS[0]], nn.Identity()
        if stage == 1:
            self.layers, self.embed = self.layers[LAYERS[0] :], nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x_BLD = self.embed(x)
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        out: Tensor = self.head(x_BLD)
        return out


class ByLoss:
    """Shares in proportion to the losses."""

    probes = (WeightNorms(),)

    def mixture(self, so_far: Trajectory) -> Mixture:
        loss = so_far.last.loss
        return Mixture.normalise(so_far.names, np.where(loss.present, loss.values**4, 1.0))

    def learn(self, so_far: Trajectory) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


class Host:
    """A training loop over pipeline stages, or over the whole model."""

    def __init__(self, place: Place, **options: Any) -> None:
        self.place = place
        self.model = Model(place.stage if place.stages > 1 else None)
        self.stream = stream_of(place)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.3)
        self.controller = Controller(
            ByLoss(),
            self.stream,
            self.model,
            interval=INTERVAL,
            steps=STEPS,
            place=place,
            **options,
        )

    def train(self, until: int = STEPS) -> None:
        self.controller.begin()
        while self.controller.step_number < until:
            self.train_step(next(self.stream))

    def train_step(self, batch: Batch) -> None:
        self.sgd.zero_grad()
        with self.controller.step(batch) as step:
            self.passes(step, torch.from_numpy(batch.tokens_BL))
            for weight in self.model.parameters() if dist.is_initialized() else ():
                dist.all_reduce(weight.grad, group=DATA_GROUPS[self.place.stage])
            step.before_update()
        self.sgd.step()

    def passes(self, step: Step, tokens_BL: Tensor) -> None:
        peer = dist.get_rank() ^ 2 if dist.is_initialized() else 0
        hidden_BLD = torch.zeros(*tokens_BL.shape, WIDTH)
        if self.place.stages > 1 and self.place.stage == 0:
            out_BLD = self.model(tokens_BL)
            dist.send(out_BLD.detach(), peer)
            dist.recv(hidden_BLD, peer)
            out_BLD.backward(hidden_BLD)
            return
        if self.place.stages > 1:
            dist.recv(hidden_BLD, peer)
            hidden_BLD.requires_grad_()
        logits = self.model(hidden_BLD if self.place.stages > 1 else tokens_BL)[:, :-1]
        loss_BL = nn.functional.cross_entropy(logits.mT, tokens_BL[:, 1:], reduction="none")
        step.losses(loss_BL, denominator=ROWS * (LENGTH - 1))
        (loss_BL.sum() / (ROWS * (LENGTH - 1))).backward()  # type: ignore[no-untyped-call]
        if self.place.stages > 1:
            assert hidden_BLD.grad is not None
            dist.send(hidden_BLD.grad, peer)

    def save(self) -> tuple[Any, bytes]:
        return copy.deepcopy(self.model.state_dict()), self.controller.state()

    def load(self, saved: tuple[Any, bytes]) -> None:
        self.model.load_state_dict(saved[0])
        self.controller.restore(saved[1])


DATA_GROUPS: list[Any] = []


def stream_of(place: Place) -> MixtureStream:
    generator = np.random.default_rng(1)
    pools = {
        name: TokenPool(name, generator.integers(1, high, 400), np.array([0]))
        for name, high in (("a", 4), ("b", 12), ("c", WORDS))
    }
    return MixtureStream(
        MemoryCorpus(pools),
        Mixture.uniform(("a", "b", "c")),
        batch_size=ROWS,
        sequence_length=LENGTH,
        seed=0,
        rank=place.data_rank,
        world_size=place.data_ranks,
    )


def failure(what: Callable[[], object]) -> dict[str, Any]:
    """The error of `what`, and whether the host's own group still works."""
    try:
        what()
    except (ConfigError, TrainingError) as error:
        number = torch.ones(())
        dist.all_reduce(number)
        return {"error": f"{type(error).__name__}: {error}", "sum": float(number)}
    return {}


def whole_and_resumed(place: Place) -> dict[str, Any]:
    host = Host(place, ranks=Ranks.adopt())
    host.train(until=INTERVAL + 1)
    saved = host.save()
    host.train()
    again = Host(place, ranks=Ranks.adopt())
    again.load(saved)
    again.train()
    return {
        "whole": host.controller.trajectory.to_json(),
        "resumed": again.controller.trajectory.to_json(),
        "weights": host.controller._context.flops_per_token / 6,
    }


def other_rows(place: Place) -> None:
    """Rank 1 reads the rows of data rank 0, as if it had counted stages first."""
    host = Host(place, ranks=Ranks.adopt())
    host.controller.begin()
    reader = copy.copy(host.stream)
    if dist.get_rank() == 1:
        reader.rank = 0
        reader._reset()
    before = [weight.detach().clone() for weight in host.model.parameters()]
    try:
        host.train_step(next(reader))
    finally:
        assert all(map(torch.equal, before, host.model.parameters()))


def diverged(place: Place) -> None:
    host = Host(place, ranks=Ranks.adopt())
    host.controller.begin()
    if dist.get_rank() == 3:
        host.controller._updates = [host.stream.set_mixture(Mixture.of({"a": 1.0}), 0)]
    host.controller.begin_step()


def same_place(place: Place) -> None:
    Host(replace(place, data_rank=0), ranks=Ranks.adopt()).controller.begin()


def sharded_losses(place: Place) -> None:
    """Ranks that count no losses ignore them."""
    host = Host(place, ranks=Ranks.adopt())
    host.controller.begin()
    step = host.controller.begin_step()
    step.forward(next(host.stream))
    mesh = init_device_mesh("cpu", (4,))
    step.losses(distribute_tensor(torch.zeros(4, LENGTH), mesh, [Shard(0)]))
    raise TrainingError("not refused")


def run_rank(rank: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=4)
    DATA_GROUPS.extend(dist.new_group(ranks) for ranks in ([0, 1], [2, 3]))
    place = Place(data_rank=rank % 2, data_ranks=2, stage=rank // 2, stage_layers=LAYERS)
    found: dict[str, Any] = whole_and_resumed(place)
    for fault in (other_rows, diverged, same_place, sharded_losses):
        found[fault.__name__] = failure(lambda fault=fault: fault(place))  # type: ignore[misc]
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    processes = [
        get_context("fork").Process(target=run_rank, args=(rank, Path(sys.argv[1])))
        for rank in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))

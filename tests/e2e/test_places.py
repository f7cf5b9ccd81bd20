"""A grid of two data ranks by two pipeline stages measures and decides what one process does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.trajectory import Trajectory
from cuvee.data.stream.row_counts import MixtureUpdate
from cuvee.integrations.rows import Rows
from cuvee.integrations.step import Step
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.base import Context, Place
from cuvee.probes.meters import Meters
from cuvee.probes.norms import WeightNorms
from placed_rank import LAYERS, LENGTH, Host, Model, stream_of

PROGRAM = str(Path(__file__).parents[1] / "placed_rank.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, PROGRAM, str(out)], check=True, env=environment)
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(4)]


def test_all_ranks_record_the_trajectory_of_one_process(ranks: list[dict[str, Any]]) -> None:
    alone = Host(Place())
    alone.train()
    expected = alone.controller.trajectory
    assert len({mixture.digest() for mixture in expected.mixtures}) == 3
    for rank in ranks:
        assert rank["whole"] == ranks[0]["whole"]
        assert rank["weights"] == sum(weight.numel() for weight in Model().parameters())
    found = Trajectory.from_json(ranks[0]["whole"])
    for own, other in zip(found.signals, expected.signals, strict=True):
        assert own.step == other.step
        np.testing.assert_array_equal(own.tokens_K, other.tokens_K)
        np.testing.assert_allclose(own.loss.values, other.loss.values, rtol=1e-5)
        for name in ("weight_norms", "weight_norm_changes"):
            assert own.probes[name].shape == (sum(LAYERS),)
            a, b = own.probes[name].values, other.probes[name].values
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.weights_TK(), expected.weights_TK(), rtol=1e-4)


def test_stopped_inside_an_interval_they_end_the_same(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["resumed"] == rank["whole"] for rank in ranks)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("other_rows", "rank 3 and rank 1 have data rank 1, but read different rows in step 0"),
        ("diverged", "ranks disagree: rank 3 is at step 0"),
        ("same_place", "rank 1 of 4 has the place .* but rank 0 is there too"),
    ],
)
def test_a_rank_at_fault_is_named_everywhere_and_the_hosts_group_lives(
    ranks: list[dict[str, Any]], fault: str, said: str
) -> None:
    for rank in ranks:
        assert re.search(said, rank[fault]["error"])
        assert rank[fault]["sum"] == 4.0


def test_sharded_losses_are_refused_where_losses_count(ranks: list[dict[str, Any]]) -> None:
    errors = [rank["sharded_losses"]["error"] for rank in ranks]
    assert [("losses is a DTensor" in error) for error in errors] == [False, False, True, True]


def test_context_ranks_add_up_to_whole_rows() -> None:
    """Each of two ranks holds the chunks r and 3 − r of four, as Megatron splits rows."""
    positions = [torch.tensor([0, 1, 6, 7]), torch.tensor([2, 3, 4, 5])]
    loss_BL = torch.rand(4, LENGTH)
    rows = Rows.of(next(stream_of(Place())))

    def sums(place: Place, rows: Rows, loss_BL: torch.Tensor) -> torch.Tensor:
        stream = stream_of(Place())
        meters = Meters((), Context(Model(), torch.device("cpu"), place))
        meters.begin_interval(stream.domains)
        update = MixtureUpdate(rows.version, 0, "mixture", stream.mixture, rows.log_digest)
        step = Step(meters, 0, update)
        step.forward(rows)
        step.losses(loss_BL)
        return meters.sums()

    whole = sums(Place(), rows, loss_BL)
    places = [Place(context_rank=rank, context_ranks=2) for rank in range(2)]
    parts = [
        sums(place, rows.at(held), loss_BL[:, held])
        for place, held in zip(places, positions, strict=True)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    assert rows.at(positions[1]).digest() == rows.digest()
    with pytest.raises(TrainingError, match="shift labels before you split them"):
        sums(places[0], rows.at(positions[0]), loss_BL[:, :3])
    with pytest.raises(TrainingError, match=r"pass rows.at\(positions\)"):
        sums(places[0], rows, loss_BL)
    with pytest.raises(TrainingError, match=r"shape \(4, 4\), but .* need \(4, 8\) or \(4, 7\)"):
        sums(Place(), rows, loss_BL[:, :4])


def test_tensor_ranks_report_each_weight_once() -> None:
    """Megatron marks the weights of which each rank holds a part."""
    linear = torch.nn.Linear(4, 4)
    parts = [torch.nn.Linear(4, 2) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.weight.data = linear.weight.data[2 * rank : 2 * rank + 2]
        part.bias = linear.bias
        part.weight.tensor_model_parallel = True  # type: ignore[attr-defined]
    whole, *halves = (torch.nn.ModuleList([each]) for each in (linear, *parts))
    places = [Place(tensor_rank=rank, tensor_ranks=2) for rank in range(2)]
    meters = [
        WeightNorms().attach(Context(half, torch.device("cpu"), place))
        for half, place in zip(halves, places, strict=True)
    ]
    alone = WeightNorms().attach(Context(whole, torch.device("cpu")))
    torch.testing.assert_close(meters[0].sums() + meters[1].sums(), alone.sums())
    assert [place.counts_losses for place in places] == [True, False]


def test_what_cannot_be_measured_on_parts_is_named() -> None:
    place = Place(stage=1, stage_layers=(2, 3))
    context = Context(Model(1), torch.device("cpu"), place)
    with pytest.raises(
        ConfigError, match="'alignment' cannot be measured on a model that is split"
    ):
        Meters([GradientAlignment()], context)
    with pytest.raises(ConfigError, match=r"stage_layers says 3 layers in stage 1, .* has 1"):
        WeightNorms().attach(context)
    with pytest.raises(ConfigError, match="data_rank is 2: it must lie in 0 … 1"):
        Place(2, 2)

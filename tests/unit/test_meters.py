"""`Meters`: all that one training loop measures, also when the loop stops inside an interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment_reference import (
    K,
    domains,
    mixed_rows,
    model_of,
    rows_of_one_domain,
    token_losses,
    train_step,
)
from cuvee.core.errors import ConfigError, TrainingError
from cuvee.core.state import load_state, save_state
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.base import Context, Place
from cuvee.probes.meters import Measurements, Meters
from cuvee.probes.norms import WeightNorms
from cuvee.testing.probes import GradientNorm

STEPS = 5
PROBES = (GradientAlignment(stride=2), WeightNorms(), GradientNorm())


def attached(model: torch.nn.Module) -> Meters:
    meters = Meters(PROBES, Context(model, torch.device("cpu")))
    meters.begin_interval(domains())
    return meters


def play(meters: Meters, model: torch.nn.Module, first: int, last: int) -> None:
    for step in range(first, last):
        train_step(model, [rows_of_one_domain(step), mixed_rows(step)], meters, step)
        meters.add_tokens(np.arange(K))


def read(meters: Meters) -> Measurements:
    return meters.read(meters.sums())


def test_an_interval_continued_from_any_step_measures_the_same_to_the_bit(tmp_path: Path) -> None:
    for stop in range(STEPS + 1):
        model = model_of()
        whole = attached(model)
        play(whole, model, 0, STEPS)
        model.zero_grad()
        before = attached(model)
        play(before, model, 0, stop)
        save_state(tmp_path / str(stop), before.interval_state())
        before.close()
        after = attached(model)
        after.load_interval_state(load_state(tmp_path / str(stop)))
        play(after, model, stop, STEPS)
        assert read(after).loss == read(whole).loss
        assert read(after).probes.keys() == read(whole).probes.keys()
        for name, measured in read(whole).probes.items():
            assert read(after).probes[name] == measured, (stop, name)
        assert read(after).tokens_K.tolist() == (STEPS * np.arange(K)).tolist()
        assert read(after).flops == read(whole).flops > 0
        whole.close()
        after.close()


def test_a_denominator_may_be_set_after_the_forward_pass() -> None:
    model, batch = model_of(), rows_of_one_domain()
    early, late = attached(model), attached(model)
    train_step(model, [batch], early)
    open_batch = replace(batch, denominator=None)
    late.begin_step(0)
    late.before_forward(open_batch)
    loss_BL = token_losses(model, open_batch)
    late.after_forward(open_batch, loss_BL.detach())
    open_batch.denominator = batch.denominator
    (loss_BL.sum() / batch.bound()).backward()
    late.before_update()
    expected = read(early).probes["alignment"].values
    np.testing.assert_allclose(read(late).probes["alignment"].values, expected, rtol=1e-6)


def test_a_denominator_that_was_never_set_is_named_in_the_backward_pass() -> None:
    model = model_of()
    meters, batch = attached(model), replace(rows_of_one_domain(), denominator=None)
    meters.begin_step(0)
    meters.before_forward(batch)
    with pytest.raises(TrainingError, match="set `denominator` before `backward`"):
        token_losses(model, batch).sum().backward()


def test_the_sums_of_ranks_add_up_as_one_vector() -> None:
    model = model_of()
    ranks = [Meters((), Context(model, torch.device("cpu"), Place(rank, 2))) for rank in range(2)]
    for rank, meters in enumerate(ranks):
        meters.begin_interval(domains())
        meters.add_tokens(np.full(K, rank + 1))
        train_step(model, [rows_of_one_domain(rank)], meters)
    vector = ranks[0].sums() + ranks[1].sums()
    alone = Meters((), Context(model, torch.device("cpu")))
    alone.begin_interval(domains())
    train_step(model, [rows_of_one_domain(0), rows_of_one_domain(1)], alone)
    for meters in ranks:
        measured = meters.read(vector)
        np.testing.assert_allclose(measured.loss.values, read(alone).loss.values, rtol=1e-12)
        assert measured.tokens_K.tolist() == [3] * K


def test_probes_that_cannot_be_measured_are_named() -> None:
    class Tally:
        name = "tally"

    context = Context(model_of(), torch.device("cpu"))
    with pytest.raises(ConfigError, match="'tally' cannot be measured on a torch model"):
        Meters([Tally()], context)
    with pytest.raises(ConfigError, match="two probes are called 'weight_norms'"):
        Meters([WeightNorms(), WeightNorms()], context)

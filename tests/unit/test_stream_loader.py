"""The stream in torch's data loaders: any number of workers, the state of the delivered
batches, and mixtures that reach the workers."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from cuvee import StreamDataset, StreamLoader
from cuvee.core.errors import MixtureError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.data.stream.stream import MixtureStream
from cuvee.testing.stream_measures import Scenario, digest, make_corpus

CORPUS = make_corpus({"web": 6000, "code": 1500, "note": 9})
NAMES = ("web", "code", "note")
SCENARIO = Scenario(
    CORPUS,
    Mixture(NAMES, np.array([0.5, 0.4, 0.1])),
    {9: Mixture(NAMES, np.array([0.2, 0.7, 0.1])), 21: Mixture(NAMES, np.array([1.0, 0.0, 0.0]))},
    {"batch_size": 12, "sequence_length": 16, "seed": 3},
)
REFERENCE = SCENARIO.digests(SCENARIO.ranks(), 30)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of more workers than cores
        yield


def stream() -> MixtureStream:
    return SCENARIO.ranks()[0]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_order_and_the_state_of_what_was_delivered(
    workers: int,
) -> None:
    source = stream()
    loader, found, state = StreamLoader(source, num_workers=workers), [], None
    for batch in loader:
        found.append(digest([batch]))
        assert source.position == len(found)
        if len(found) in (2, 13):  # at least 6 steps ahead of what changes
            step = 9 if len(found) == 2 else 21
            loader.set_mixture(SCENARIO.changes[step], at_step=step)
        if len(found) == 15:
            state = source.state_dict()
        if len(found) == 30:
            break
    assert found == REFERENCE
    resumed = SCENARIO.ranks(1, state)[0]
    again = [
        digest([batch]) for batch in StreamLoader(resumed, num_workers=2 - workers % 2, steps=15)
    ]
    assert again == REFERENCE[15:]


def test_a_step_that_workers_may_have_drawn_cannot_be_changed() -> None:
    loader = StreamLoader(stream(), num_workers=2, prefetch=3)
    assert loader.first_open_step == 0
    for batch in loader:
        assert loader.first_open_step == batch.step + 1 + 6
        with pytest.raises(MixtureError, match="can still change is 7"):
            loader.set_mixture(SCENARIO.start, at_step=6)
        update = loader.set_mixture(SCENARIO.changes[9])
        assert update.step == 7
        break


def test_a_mixture_that_went_past_the_loader_is_noticed() -> None:
    source = stream()
    with pytest.raises(TrainingError, match="set mixtures through the loader"):  # noqa: PT012
        for batch in StreamLoader(source, num_workers=1):
            if batch.step == 1:
                source.set_mixture(SCENARIO.changes[9])


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_loader_gives_the_same_batches(workers: int) -> None:
    source = stream()
    for step, mixture in SCENARIO.changes.items():
        source.set_mixture(mixture, at_step=step)
    loader = DataLoader(StreamDataset(source, steps=30), batch_size=None, num_workers=workers)
    assert [digest([batch]) for batch in loader] == REFERENCE


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_stateful_loader_resumes_exactly(workers: int) -> None:
    def loader() -> StatefulDataLoader:
        source = stream()
        for step, mixture in SCENARIO.changes.items():
            source.set_mixture(mixture, at_step=step)
        return StatefulDataLoader(StreamDataset(source), batch_size=None, num_workers=workers)

    first, found = loader(), []
    for batch in first:
        found.append(digest([batch]))
        if len(found) == 12:
            break
    second = loader()
    second.load_state_dict(first.state_dict())
    for batch in second:
        found.append(digest([batch]))
        if len(found) == 30:
            break
    assert found == REFERENCE

"""Trainers that run together have the same numbers as alone, whatever happens to the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.errors import TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Policy, Trainer
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.loop import run
from cuvee.policies.fixed import Fixed
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.norms import WeightNorms
from cuvee.testing.probes import GradientNorm
from cuvee.testing.toy import ToyTrainer
from cuvee.training.model import build_model
from cuvee.training.settings import TrainerSettings
from cuvee.training.together import together as module
from cuvee.training.together.together import Comparison, Together, can_share, compare, together
from cuvee.training.trainer import LMTrainer
from stdlib_corpus import NAMES, stdlib_corpus

pytestmark = pytest.mark.training
torch.set_num_threads(1)

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
LLAMA = {"model_type": "llama", **SIZES, "tie_word_embeddings": True}
NEOX = {"model_type": "gpt_neox", **SIZES}
SETTINGS = TrainerSettings(
    steps=5,
    batch_size=4,
    sequence_length=32,
    interval=2,
    validate_every=0,
    validation_tokens=128,
    device="cpu",
)
MIXTURES = [Mixture.normalise(NAMES, weights_K) for weights_K in ([1, 2, 3], [3, 1, 0], [1, 1, 1])]

Make = Callable[..., LMTrainer]
Outcome = Trajectory | BaseException


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def make(corpus: Corpus) -> Make:
    def made(seed: int = 0, model: Any = LLAMA, **changes: Any) -> LMTrainer:
        settings = dataclasses.replace(SETTINGS, seed=seed, **changes)
        stream = MixtureStream(corpus, MIXTURES[2], batch_size=4, sequence_length=32, seed=seed)
        return LMTrainer(build_model(model, corpus, seed=seed), stream, corpus, settings)

    return made


class Probing(Fixed):
    """Fixed, with every probe that needs no forward pass of its own."""

    def __init__(self, mixture: Mixture, *probes: Any) -> None:
        super().__init__(mixture)
        self.probes = probes or (WeightNorms(), GradientNorm())


def play_together(
    trainers: Sequence[LMTrainer], play: Callable[[int], Trajectory]
) -> list[Outcome]:
    """What `play` of each number returned or raised, each in its own thread."""
    group = Together(trainers)

    def placed(number: int) -> Trajectory:
        with group.place(trainers[number]):
            return play(number)

    with ThreadPoolExecutor(len(trainers)) as pool:
        futures: list[Future[Trajectory]] = [
            pool.submit(placed, number) for number in range(len(trainers))
        ]
        assert not wait(futures, timeout=60).not_done
    return [future.exception() or future.result() for future in futures]


def assert_same_numbers(a: LMTrainer, b: LMTrainer, tolerance: float = 1e-4) -> None:
    state, other = a.state_dict(), b.state_dict()
    assert state["step"] == other["step"]
    assert state["stream"] == other["stream"]
    assert state["update"]["steps"] == other["update"]["steps"]
    for part in ("weights", "mean", "variance"):
        for name, array in state["update"][part].items():
            np.testing.assert_allclose(
                array, other["update"][part][name], rtol=tolerance, atol=1e-2 * tolerance
            )


def assert_same_signals(a: Outcome, b: Outcome, tolerance: float = 1e-4) -> None:
    assert isinstance(a, Trajectory)
    assert isinstance(b, Trajectory)
    assert a.mixtures == b.mixtures
    for one, other in zip(a.signals, b.signals, strict=True):
        np.testing.assert_array_equal(one.tokens_K, other.tokens_K)
        assert one.probes.keys() == other.probes.keys()
        for measured, also in [
            (one.loss, other.loss),
            *((one.probes[name], other.probes[name]) for name in one.probes),
        ]:
            np.testing.assert_array_equal(measured.present, also.present)
            np.testing.assert_allclose(measured.values, also.values, rtol=tolerance)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 1e-4),
        ({"model": NEOX, "micro_batch_size": 3}, 1e-4),
        ({"precision": "bf16"}, 2e-2),
    ],
    ids=["llama", "neox-accumulated", "bf16"],
)
def test_each_trains_as_it_does_alone(
    make: Make, changes: dict[str, Any], tolerance: float
) -> None:
    alone, placed = ([make(seed, **changes) for seed in range(3)] for _ in range(2))
    expected = [
        run(trainer, Probing(mixture)) for trainer, mixture in zip(alone, MIXTURES, strict=True)
    ]
    outcomes = play_together(placed, lambda number: run(placed[number], Probing(MIXTURES[number])))
    for number in range(3):
        assert_same_signals(outcomes[number], expected[number], tolerance)
        assert_same_numbers(placed[number], alone[number], tolerance)


def test_passes_are_really_shared(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    stacked = module._stacked

    def counted(model: Any, members: Sequence[int], *rest: Any) -> Any:
        sizes.append(len(members))
        return stacked(model, members, *rest)

    monkeypatch.setattr(module, "_stacked", counted)
    trainers = [make(seed) for seed in range(3)]
    play_together(trainers, lambda number: run(trainers[number], Fixed(MIXTURES[number])))
    assert sizes == [3] * SETTINGS.steps


class Spoiler(Fixed):
    """Ruins its trainer's weights after the first interval."""

    def __init__(self, trainer: LMTrainer) -> None:
        super().__init__(MIXTURES[0])
        self.trainer = trainer

    def learn(self, so_far: Trajectory) -> Metrics:
        with torch.no_grad():
            next(iter(self.trainer.update.weights.values())).fill_(torch.inf)
        return {}


def test_one_that_diverges_ends_alone(make: Make) -> None:
    alone, placed = ([make(seed) for seed in range(3)] for _ in range(2))
    policies = [Fixed(MIXTURES[0]), Spoiler(placed[1]), Fixed(MIXTURES[2])]
    outcomes = play_together(placed, lambda number: run(placed[number], policies[number]))
    assert isinstance(outcomes[1], TrainingError)
    assert "step 2" in str(outcomes[1])
    for number in (0, 2):
        assert_same_signals(outcomes[number], run(alone[number], policies[number]))
        assert_same_numbers(placed[number], alone[number])


class Halfway:
    """A journal that keeps the state after the first interval, or goes on from one."""

    def __init__(self, state: Any = None, so_far: Trajectory | None = None) -> None:
        self.state, self.so_far = state, so_far

    def resume(self, trainer: Trainer, policy: Policy) -> Trajectory | None:
        assert isinstance(trainer, LMTrainer)
        if self.state is not None:
            trainer.restore(self.state, policy.probes)
        return self.so_far

    def record(
        self, so_far: Trajectory, trainer: Trainer, policy: Policy, metrics: Metrics
    ) -> None:
        assert isinstance(trainer, LMTrainer)
        if len(so_far) == 1 and self.state is None:
            self.state, self.so_far = trainer.state_dict(), so_far


@pytest.mark.parametrize("begun_together", [True, False])
def test_a_run_started_one_way_resumes_the_other_way(make: Make, begun_together: bool) -> None:
    """The two that are resumed together are joined by a third that has its whole run before it."""
    trainers = [make(seed) for seed in range(2)]
    journals = [Halfway() for _ in trainers]
    policies = [Fixed(mixture) for mixture in MIXTURES]
    if begun_together:
        expected = play_together(
            trainers, lambda number: run(trainers[number], policies[number], journals[number])
        )
    else:
        expected = [run(*each) for each in zip(trainers, policies, journals, strict=False)]
    resumed = [make(seed) for seed in range(3)]
    journals.append(Halfway())
    again = [Halfway(journal.state, journal.so_far) for journal in journals]
    if begun_together:
        outcomes: Sequence[Outcome] = [
            run(resumed[number], policies[number], again[number]) for number in range(2)
        ]
    else:
        outcomes = play_together(
            resumed, lambda number: run(resumed[number], policies[number], again[number])
        )
    for number in range(2):
        assert_same_signals(outcomes[number], expected[number])
        assert_same_numbers(resumed[number], trainers[number])


def test_a_run_whose_probe_listens_to_its_modules_trains_on_its_own(make: Make) -> None:
    alone, placed = ([make(seed) for seed in range(3)] for _ in range(2))
    policies = [Fixed(MIXTURES[0]), Probing(MIXTURES[1], GradientAlignment()), Fixed(MIXTURES[2])]
    outcomes = play_together(placed, lambda number: run(placed[number], policies[number]))
    for number in range(3):
        assert_same_signals(outcomes[number], run(alone[number], policies[number]))


def test_an_error_of_the_shared_pass_is_an_error_of_each(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    trainers = [make(seed) for seed in range(2)]
    monkeypatch.setattr(module, "_stacked", out_of_memory)
    outcomes = play_together(
        trainers, lambda number: run(trainers[number], Fixed(MIXTURES[number]))
    )
    assert all(
        isinstance(outcome, TrainingError) and "micro_batch_size" in str(outcome)
        for outcome in outcomes
    )


def test_only_trainers_of_one_kind_are_put_together(make: Make) -> None:
    assert can_share([make(0), make(1)])
    assert not can_share([])
    assert not can_share([make(0)])
    assert not can_share([make(0), make(1, learning_rate=1e-2)])
    assert not can_share([make(0), make(1, model=NEOX)])
    assert not can_share(
        [make(seed, model={**LLAMA, "attention_dropout": 0.5}) for seed in range(2)]
    )
    assert not can_share([ToyTrainer(), ToyTrainer()])


def test_the_trial_changes_nothing_and_is_made_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_compared", {})
    trainers = [make(seed) for seed in range(2)]
    first = compare(trainers)
    assert first.gain > 0
    assert compare([make(seed) for seed in (5, 6)]) is first
    for seed, trainer in enumerate(trainers):
        assert not trainer.update.buffer.any()
        assert_same_numbers_before_training(trainer, make(seed))


def assert_same_numbers_before_training(a: LMTrainer, b: LMTrainer) -> None:
    weights = b.update.state_dict()["weights"]
    for name, array in a.update.state_dict()["weights"].items():
        np.testing.assert_array_equal(array, weights[name])


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (Comparison(2.0, True), True),
        (Comparison(0.9, True), False),
        (Comparison(2.0, False), False),
    ],
)
def test_the_trial_decides(
    make: Make, monkeypatch: pytest.MonkeyPatch, comparison: Comparison, expected: bool
) -> None:
    monkeypatch.setattr(module, "_timed_trial", lambda trainers: comparison)
    monkeypatch.setattr(module, "_compared", {})
    assert (together([make(0), make(1)]) is not None) == expected

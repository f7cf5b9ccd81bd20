"""`Together`: trainers in threads of one process that share batched forward and backward passes.

    group = together(trainers)        # None unless it is faster and gives the same numbers
    with group.place(trainer):        # in one thread per trainer
        run(trainer, policy, journal)

Each trainer keeps its own stream, optimizer, measurements, checkpoints and end. If a trainer fails
or ends, it leaves the group, and the others continue without it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from cuvee.core.protocols import Trainer
from cuvee.training.together.stacked import StackedModel
from cuvee.training.trainer import LMTrainer

WORTH = 1.2
"""The smallest speed-up of the passes that is worth it; the speed-up of a whole step is smaller."""

_TRIAL_SECONDS = 0.5

_compared: dict[tuple[object, ...], Comparison] = {}


@dataclass(frozen=True)
class Comparison:
    """The result of a timed trial of one forward and backward pass of all trainers."""

    gain: float
    """How many times faster the shared passes are."""
    same_bits: bool
    """Whether losses and gradients are bit-identical."""


@dataclass
class _Pass:
    tokens_BL: Tensor
    counted_BL: Tensor
    denominator: float
    result: tuple[Tensor, Tensor] | None = None
    error: Exception | None = field(default=None, repr=False)
    seconds: float = 0.0
    """This trainer's share of the time of the shared computation."""


def together(trainers: Sequence[Trainer]) -> Together | None:
    """Group the trainers, or return None if they should run separately.

    They run separately if they cannot share one program, if a timed trial shows a speed-up below
    `WORTH`, or if its results are not bit-identical: a run must give the same results whichever
    runs it shares passes with. The trial takes about a second and has no side effects. Its result
    is reused for other trainers of the same shape.
    """
    if not can_share(trainers):
        return None
    comparison = compare(trainers)
    return Together(trainers) if comparison.gain >= WORTH and comparison.same_bits else None


def can_share(trainers: Sequence[Trainer]) -> TypeGuard[Sequence[LMTrainer]]:
    """Whether these trainers can share one program.

    They must be two or more `LMTrainer`s on one device that have not started, each with a single
    rank, with one architecture, with settings equal except for the seed, and with models that can
    be stacked (`StackedModel`).
    """
    first = trainers[0] if trainers else None
    if len(trainers) < 2 or not isinstance(first, LMTrainer):
        return False
    for trainer in trainers:
        if (
            not isinstance(trainer, LMTrainer)
            or trainer.ranks.size > 1
            or not trainer.loss.blockwise
        ):
            return False
        if (
            trainer.device != first.device
            or _kind(trainer) != _kind(first)
            or _is_hooked(trainer.model)
        ):
            return False
    models = [trainer.model.base_model for trainer in trainers if isinstance(trainer, LMTrainer)]
    return StackedModel(models).agrees_with(models)


def compare(trainers: Sequence[LMTrainer]) -> Comparison:
    """Time both ways in turns on random tokens. Weights do not change; gradients are reset."""
    first = trainers[0]
    key = (_kind(first), len(trainers), str(first.device), torch.get_num_threads())
    if key not in _compared:
        _compared[key] = _timed_trial(trainers)
    return _compared[key]


class Together:
    """Several trainers that `can_share`, each in its own thread.

    A pass waits until every trainer of the group requests one. The last to request it computes the
    passes of all. Only one thread runs at a time: a lock passes to another thread whenever one
    waits. So the group uses no more CPU than a single trainer, and random numbers of one trainer
    do not depend on the others.
    """

    def __init__(self, trainers: Sequence[LMTrainer]) -> None:
        self._trainers = tuple(trainers)
        self._model = StackedModel([trainer.model.base_model for trainer in trainers])
        self._changed = threading.Condition()
        self._there = set(range(len(trainers)))
        self._waiting: dict[int, _Pass] = {}
        # Seconds that each trainer spent waiting or computing for others.
        self._others = [0.0] * len(trainers)
        for number, trainer in enumerate(trainers):
            trainer.forward = partial(self._forward, number)
            trainer.clock = partial(self._clock, number)

    @contextmanager
    def place(self, trainer: Trainer) -> Iterator[None]:
        """Hold this block for the whole run of `trainer`, in its thread.

        The other trainers wait for it in every pass until the block ends.
        """
        number = next(number for number, own in enumerate(self._trainers) if own is trainer)
        with self._changed:
            try:
                yield
            finally:
                self._leave(number)

    def _clock(self, number: int) -> float:
        """A clock that excludes time spent for others, so that the times of all trainers add up."""
        return time.perf_counter() - self._others[number]

    def _leave(self, number: int) -> None:
        self._there.discard(number)
        self._trainers[number].forward = self._trainers[number].loss
        self._changed.notify_all()

    def _forward(
        self, number: int, tokens_BL: Tensor, counted_BL: Tensor, denominator: float
    ) -> tuple[Tensor, Tensor]:
        """Also computes the backward pass; `backward` on the returned loss changes no gradient."""
        if _is_hooked(self._trainers[number].model):  # a probe needs this model's own modules
            self._leave(number)
            return self._trainers[number].loss(tokens_BL, counted_BL, denominator)
        began = time.perf_counter()
        mine = _Pass(tokens_BL, counted_BL, denominator)
        self._waiting[number] = mine
        while mine.result is None and mine.error is None:
            if self._waiting.keys() == self._there:
                self._compute()
                self._changed.notify_all()
            else:
                self._changed.wait()
        self._others[number] += time.perf_counter() - began - mine.seconds
        if mine.error is not None:
            raise mine.error
        assert mine.result is not None
        total, loss_BL = mine.result
        return total.requires_grad_(), loss_BL

    def _compute(self) -> None:
        members = sorted(self._waiting)
        passes = [self._waiting.pop(member) for member in members]
        trainers = [self._trainers[member] for member in members]
        began = time.perf_counter()
        try:
            results = (
                _stacked(self._model, members, trainers, passes)
                if len(members) > 1
                else _apart(trainers, passes)
            )
        except Exception as error:  # each trainer raises it in its own thread
            for each in passes:
                each.error = error
            return
        for each, result in zip(passes, results, strict=True):
            each.result = result
            each.seconds = (time.perf_counter() - began) / len(passes)


def _stacked(
    model: StackedModel,
    members: Sequence[int],
    trainers: Sequence[LMTrainer],
    passes: Sequence[_Pass],
) -> list[tuple[Tensor, Tensor]]:
    assert len({each.tokens_BL.shape for each in passes}) == 1, (
        "trainers with equal settings have batches of equal shape"
    )
    compute = trainers[0].loss.compute
    with torch.autocast(trainers[0].device.type, dtype=compute, enabled=compute != torch.float32):
        hidden = model(members, [each.tokens_BL for each in passes])
    results = [
        trainer.loss.of_hidden(hidden_NH, each.tokens_BL, each.counted_BL, each.denominator)
        for trainer, hidden_NH, each in zip(trainers, hidden, passes, strict=True)
    ]
    torch.autograd.backward([total for total, _ in results])
    return [(total.detach(), loss_BL) for total, loss_BL in results]


def _apart(trainers: Sequence[LMTrainer], passes: Sequence[_Pass]) -> list[tuple[Tensor, Tensor]]:
    results = []
    for trainer, each in zip(trainers, passes, strict=True):
        total, loss_BL = trainer.loss(each.tokens_BL, each.counted_BL, each.denominator)
        total.backward()  # type: ignore[no-untyped-call]
        results.append((total.detach(), loss_BL))
    return results


def _timed_trial(trainers: Sequence[LMTrainer]) -> Comparison:
    settings = trainers[0].settings
    device = trainers[0].device
    shape = (settings.micro_batch_size or settings.batch_size, settings.sequence_length)
    generator = torch.Generator().manual_seed(0)
    passes = []
    for trainer in trainers:
        tokens = torch.randint(trainer.corpus.vocab_size, shape, generator=generator).to(device)
        counted = torch.ones(shape, dtype=torch.bool, device=device)
        counted[:, -1] = False
        passes.append(_Pass(tokens, counted, float(counted.sum())))
    model = StackedModel([trainer.model.base_model for trainer in trainers])
    members = range(len(trainers))
    best = [float("inf"), float("inf")]
    found: list[list[Tensor]] = [[], []]
    until = time.perf_counter() + _TRIAL_SECONDS
    for turn in itertools.count():
        if turn >= 6 and turn % 2 == 0 and time.perf_counter() > until:
            break
        for trainer in trainers:
            trainer.update.begin()
        _wait_for(device)
        began = time.perf_counter()
        way = turn % 2
        results = _stacked(model, members, trainers, passes) if way else _apart(trainers, passes)
        _wait_for(device)
        best[way] = min(best[way], time.perf_counter() - began)
        found[way] = [loss_BL for _, loss_BL in results] + [
            trainer.update.buffer.clone() for trainer in trainers
        ]
    for trainer in trainers:
        trainer.update.begin()
    return Comparison(best[0] / best[1], all(map(torch.equal, *found)))


def _kind(trainer: LMTrainer) -> tuple[str, str]:
    """What trainers must have in common, and what their speed depends on."""
    return str(trainer.model.config.to_dict()), str(replace(trainer.settings, seed=0))


def _is_hooked(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

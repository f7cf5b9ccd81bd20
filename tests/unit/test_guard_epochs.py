"""Epoch caps: the guard keeps every domain within its cap, and the stream never reaches its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import CorpusExhausted, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.data.stream.row_counts import UNLIMITED, RowSchedule
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.limits import limit_change, nearest_within

LENGTH = 32
ROWS = 16


class StreamTrainer:
    """Counts rows as the real stream does, with the same caps, and trains nothing."""

    def __init__(
        self,
        windows: list[int],
        caps: list[float],
        intervals: int,
        steps: int = 10,
        sampling: Any = "quota",
        budget: int = 0,
    ) -> None:
        self.domains = tuple(Domain(f"d{k}", count * LENGTH) for k, count in enumerate(windows))
        self.cap_K = np.array(
            [
                int(c * w + 1e-9) if c < np.inf else UNLIMITED
                for c, w in zip(caps, windows, strict=True)
            ]
        )
        names = tuple(domain.name for domain in self.domains)
        self.schedule = RowSchedule(names, self.cap_K.copy(), ROWS, 0, sampling)
        self.intervals, self.steps, self.t = intervals, steps, 0
        self.budget = budget or intervals * steps
        self.met_its_cap = 0

    @property
    def done(self) -> bool:
        return self.t >= self.intervals

    def start(self, probes: Any) -> Signals:
        return self._signals(np.zeros(len(self.domains), np.int64))

    def advance(self, mixture: Mixture) -> Signals:
        self.schedule.update(mixture)
        before_K = self.schedule.drawn_K().copy()
        for _ in range(min(self.steps, self.budget - self.schedule.position)):
            self.met_its_cap += self.schedule.executed != mixture
            self.schedule.ahead(1)
            self.schedule.advance(1)
        self.schedule.apply_due()
        self.t += 1
        return self._signals((self.schedule.drawn_K() - before_K) * LENGTH)

    def _signals(self, tokens_K: np.ndarray) -> Signals:
        progress = self.schedule.position / self.budget
        loss = Measured(np.full(len(self.domains), 3.0), tokens_K > 0)
        return Signals(self.domains, self.schedule.position, progress, tokens_K, loss)


class Says:
    """`weights(t)`, whatever happens."""

    probes = ()

    def __init__(self, weights: Callable[[int], Any]) -> None:
        self.weights = weights

    def mixture(self, so_far: Trajectory) -> Mixture:
        return Mixture.normalise(so_far.names, self.weights(len(so_far)))

    def learn(self, so_far: Trajectory) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def play(
    policy: Says, limits: Limits, trainer: StreamTrainer
) -> tuple[Trajectory, list[dict[str, Any]]]:
    guard, so_far, records = Guard(policy, limits), Trajectory.start(trainer.start(())), []
    while not trainer.done:
        mixture = guard.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        records.append(guard.learn(so_far)["guard"])
    return so_far, records


def drawn(so_far: Trajectory) -> np.ndarray:
    return np.sum([signals.tokens_K for signals in so_far.signals], axis=0) / LENGTH


def wander(seed: int, K: int) -> Callable[[int], Any]:
    return lambda t: np.random.default_rng([seed, t // 3]).dirichlet(np.full(K, 0.3))


@pytest.mark.parametrize("seed", range(6))
def test_the_guard_alone_keeps_a_stream_without_caps_within_them(seed: int) -> None:
    windows, caps = [4000, 60, 200, 15, 700], [np.inf, 2.0, 1.0, 4.0, 0.5]
    trainer = StreamTrainer(windows, [np.inf] * 5, 60)
    so_far, _ = play(
        Says(wander(seed, 5)),
        Limits(epochs={f"d{k}": cap for k, cap in enumerate(caps) if k}),
        trainer,
    )
    assert (drawn(so_far) <= np.multiply(windows, caps)).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sampling", ["quota", "multinomial"])
def test_no_cap_is_passed_and_the_stream_never_meets_its_own(seed: int, sampling: str) -> None:
    windows, caps = [4000, 60, 200, 15, 700], [np.inf, 2.0, 1.0, 4.0, 0.5]
    trainer = StreamTrainer(windows, caps, 60, sampling=sampling)
    limits = Limits(epochs={f"d{k}": cap for k, cap in enumerate(caps) if k}, max_change=0.5)
    so_far, _ = play(Says(wander(seed, 5)), limits, trainer)
    assert (drawn(so_far) <= trainer.cap_K).all()
    if sampling == "quota":
        assert trainer.met_its_cap == 0
    else:  # a random count can be any; one step of the last interval of a domain may meet it
        assert trainer.met_its_cap <= 5


def test_what_is_scarce_is_read_nearly_to_its_cap_and_then_gets_nothing() -> None:
    trainer = StreamTrainer([4000, 400], [np.inf, 2.0], 40)
    so_far, records = play(Says(lambda t: [0.5, 0.5]), Limits(epochs={"d1": 2}, floor=0.1), trainer)
    assert 780 <= drawn(so_far)[1] <= 800
    assert [mixture["d1"] for mixture in so_far.mixtures[1:9]] == [0.5] * 8
    assert [mixture["d1"] for mixture in so_far.mixtures[12:]] == [0.0] * 28, (
        "the cap wins over the floor"
    )
    assert records[20]["limits"] == ["epochs"]


@pytest.mark.parametrize("intervals", [20, 29])
def test_one_pass_over_everything_is_possible_when_budget_and_caps_are_equal(
    intervals: int,
) -> None:
    """Of the 29 intervals the last is shorter than the others."""
    trainer = StreamTrainer(
        [1600, 800, 800], [1.0] * 3, intervals, steps=-(-200 // intervals), budget=200
    )
    so_far, _ = play(Says(wander(1, 3)), Limits(epochs=1.0), trainer)
    assert drawn(so_far).sum() == 3200
    assert trainer.met_its_cap <= 20, "the last interval of a domain may end inside a batch"
    assert (drawn(so_far) <= [1600, 800, 800]).all()


def test_the_first_interval_keeps_within_caps_too() -> None:
    """160 rows an interval, and a domain of 15: nobody has said yet how long an interval is."""
    trainer = StreamTrainer([4000, 15], [np.inf, 1.0], 5)
    so_far, records = play(Says(lambda t: [0.1, 0.9]), Limits(epochs={"d1": 1}), trainer)
    assert drawn(so_far)[1] <= 15
    assert records[0]["limits"] == ["epochs"]
    told = Guard(
        Says(lambda t: [0.93, 0.07]), Limits(epochs={"d1": 1}), first_interval=160 * LENGTH
    )
    start = Trajectory.start(StreamTrainer([4000, 15], [np.inf, 1.0], 5).start(()))
    assert told.mixture(start)["d1"] == pytest.approx(0.07), (
        "14 rows are not too many for who knows"
    )


def test_ceilings_do_not_leave_a_run_without_a_way_to_its_end() -> None:
    """At most half of the tokens may come from d0, so the others must last. The policy asks for
    all of them at once."""
    trainer = StreamTrainer([9000, 900, 900], [np.inf, 1.0, 1.0], 22)
    limits = Limits(ceiling={"d0": 0.5}, epochs={"d1": 1.0, "d2": 1.0})
    so_far, _ = play(Says(lambda t: [0.0, 0.5, 0.5]), limits, trainer)
    assert len(so_far) == 22
    assert max(mixture["d0"] for mixture in so_far.mixtures) <= 0.5 + 1e-9
    assert (drawn(so_far)[1:] <= 900).all()


def test_caps_that_the_budget_cannot_meet_are_named_after_one_interval() -> None:
    trainer = StreamTrainer([100, 100], [1.0, 1.0], 10)
    with pytest.raises(
        PolicyError, match=r"1,280 of 2 domains|raise guard.epochs by a factor of \d+\.\d\d"
    ):
        play(Says(lambda t: [0.5, 0.5]), Limits(epochs=1.0), trainer)
    assert trainer.t == 1


def test_caps_that_run_out_later_end_the_run_with_a_remedy() -> None:
    """Progress that promised less than was read: nothing can be foreseen, and nothing is left."""
    trainer = StreamTrainer([200, 200], [np.inf, np.inf], 10)
    so_far, guard = (
        Trajectory.start(trainer.start(())),
        Guard(Says(lambda t: [0.5, 0.5]), Limits(epochs=1.0)),
    )
    for _ in range(2):
        mixture = guard.mixture(so_far)
        after = trainer.advance(mixture)
        honest = {name: getattr(after, name) for name in ("domains", "step", "tokens_K", "loss")}
        so_far = so_far.append(mixture, Signals(**honest, progress=0.9))
    so_far = so_far.append(mixture, Signals(**honest, progress=0.9))
    with pytest.raises(CorpusExhausted, match=r"raise guard\.epochs"):
        guard.mixture(so_far)


def test_the_change_limit_gives_way_to_a_cap_by_no_more_than_it_must() -> None:
    trainer = StreamTrainer([4000, 400], [np.inf, 1.0], 30)
    so_far, _ = play(Says(lambda t: [0.5, 0.5]), Limits(epochs={"d1": 1}, max_change=0.01), trainer)
    changes = [
        b.total_variation(a) for a, b in zip(so_far.mixtures, so_far.mixtures[1:], strict=False)
    ]
    assert sum(change > 0.01 + 1e-9 for change in changes) <= 2
    assert drawn(so_far)[1] <= 400


def test_a_way_that_a_cap_shortens_is_no_longer_in_all_than_it_may_be() -> None:
    names = ("a", "b", "c")
    last, wanted = (
        Mixture(names, np.array([0.5, 0.3, 0.2])),
        Mixture(names, np.array([0.0, 0.0, 1.0])),
    )
    held = nearest_within(last, np.zeros(3), np.array([0.4, 1.0, 1.0]))
    assert held.total_variation(last) == pytest.approx(0.1)
    moved = limit_change(wanted, last, held, 0.2)
    assert 0.1 < moved.total_variation(last) <= 0.2 + 1e-12
    assert limit_change(wanted, last, held, 0.05) == held


def test_a_floor_that_a_cap_has_lowered_limits_nothing() -> None:
    trainer = StreamTrainer([4000, 160], [np.inf, 1.0], 12)
    policy = Says(lambda t: [0.5, 0.5] if t < 5 else [1.0, 0.0])
    so_far, records = play(policy, Limits(epochs={"d1": 1}, floor=0.1), trainer)
    assert so_far.mixtures[-1]["d1"] == 0.0
    assert (records[-1]["verdict"], records[-1]["limits"]) == ("accepted", [])

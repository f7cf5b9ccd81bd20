"""A run that is interrupted anywhere and resumed equals an undisturbed one. A run that cannot
repeat itself is detected."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuvee.core.errors import CheckpointError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import State
from cuvee.core.trajectory import Trajectory
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.claim import ClaimLost
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.recipes.train import late_decisions
from cuvee.testing.toy import ToyTrainer

N = 8


class Folder:
    """Checkpoints in memory. The tests of `cuvee.training.checkpoint` cover the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._saved = folder, dict[int, State]()

    def save(self, step: int, state: State) -> None:
        self._saved[step] = copy.deepcopy(state)

    def latest(self) -> tuple[int, State] | None:
        return (
            (max(self._saved), copy.deepcopy(self._saved[max(self._saved)]))
            if self._saved
            else None
        )


class Stopped(BaseException):
    """What kill -9 looks like from within: nothing runs after it."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "checkpoints")


def unbroken() -> Trajectory:
    return run(ToyTrainer(N), Exp3())


def attempt(
    store: Store,
    folder: Folder,
    *,
    stop_after: int | None = None,
    every: int = 3,
    noise_seed: int = 0,
) -> Trajectory:
    """One attempt at the run. With `stop_after` its process dies when that interval is recorded."""
    claim = store.claim_run(store.create("toy", 0, {"intervals": N}), "worker")
    seen: list[int] = []

    def watch(so_far: Trajectory, *_: object) -> None:
        seen.append(len(so_far))
        if len(so_far) == stop_after:
            raise Stopped

    trainer, journal = (
        ToyTrainer(N, noise_seed=noise_seed),
        RunJournal(store, claim, folder, every, watch),
    )
    with journal.attempt(trainer):
        so_far = run(trainer, Exp3(), journal)
        journal.finish(trainer)
    assert seen == list(range(seen[0], N + 1)) if seen else True
    return so_far


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("stop_after", [1, 3, 4, N])
def test_a_run_stopped_at_any_interval_ends_like_an_unbroken_one(
    store: Store, folder: Folder, stop_after: int, every: int
) -> None:
    with pytest.raises(Stopped):
        attempt(store, folder, stop_after=stop_after, every=every)
    resumed = attempt(store, folder, every=every)
    assert resumed == unbroken()
    [summary] = store.runs()
    assert store.load(summary.id).trajectory == unbroken()
    saved = (
        N if stop_after == N else stop_after // every * every
    )  # the last interval always has a checkpoint
    assert summary.cost.tokens == 1000 * (stop_after + N - saved)
    assert (summary.status, summary.attempts, summary.intervals) == ("done", 2, N)
    assert summary.checkpoint == str(folder.folder)


def test_a_run_stopped_after_every_single_interval_ends_like_an_unbroken_one(
    store: Store, folder: Folder
) -> None:
    for stop_after in range(1, N + 1):
        with pytest.raises(Stopped):
            attempt(store, folder, stop_after=stop_after, every=1)
    assert attempt(store, folder) == unbroken()


def test_a_run_that_does_not_repeat_itself_is_found_out(store: Store, folder: Folder) -> None:
    with pytest.raises(Stopped):
        attempt(store, folder, stop_after=5, every=100)
    with pytest.raises(StoreError, match="not deterministic"):
        attempt(store, folder, noise_seed=1)
    [summary] = store.runs()
    assert (summary.status, summary.intervals) == ("waiting", 5)
    assert "not deterministic" in str(summary.reason)


class SlowAt(Exp3):
    """Takes longer than `LIMITS` allow for the decisions at some timesteps."""

    def __init__(self, *timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def mixture(self, so_far: Trajectory) -> Mixture:
        if len(so_far) in self.timesteps:
            time.sleep(0.3)
        return super().mixture(so_far)


LIMITS = Limits(decision_seconds=0.15)


@pytest.mark.parametrize(("first", "again"), [((2,), ()), ((), (2,)), ((2,), (3,))])
def test_the_clock_does_not_decide_a_recorded_interval_again(
    store: Store, folder: Folder, first: tuple[int, ...], again: tuple[int, ...]
) -> None:
    """A decision may be late only the first time, or only when it is repeated."""
    run_id = store.create("toy", 0, {})

    def stop(so_far: Trajectory, *_: object) -> None:
        if len(so_far) == 5:
            raise Stopped

    claim = store.claim_run(run_id, "worker", lease_seconds=1e-6)
    with pytest.raises(Stopped):
        run(
            ToyTrainer(N),
            Guard(SlowAt(*first), LIMITS),
            RunJournal(store, claim, folder, 100, stop),
        )
    assert folder.latest() is None
    time.sleep(0.01)
    recorded = late_decisions(store, store.summary(run_id))
    assert all(recorded[t] for t in first)
    guard = Guard(SlowAt(*again), LIMITS)
    guard.recorded = recorded
    claim = store.claim_run(run_id, "worker")
    run(ToyTrainer(N), guard, RunJournal(store, claim, folder, 100))
    assert store.summary(run_id).intervals == N
    repeated = late_decisions(store, store.summary(run_id))
    assert {t: repeated[t] for t in recorded} == recorded
    assert not guard.recorded


def test_an_error_is_the_reason_of_the_attempt_and_an_interrupt_is_none(store: Store) -> None:
    run_id = store.create("toy", 0, {}, max_attempts=1)

    def attempt_that_raises(error: BaseException) -> None:
        trainer = ToyTrainer(N)
        with RunJournal(store, store.claim_run(run_id, "worker")).attempt(trainer):
            trainer.advance(unbroken().mixtures[0])
            raise error

    with pytest.raises(KeyboardInterrupt):
        attempt_that_raises(KeyboardInterrupt())
    assert (store.summary(run_id).status, store.summary(run_id).reason) == ("waiting", None)
    with pytest.raises(FloatingPointError):
        attempt_that_raises(FloatingPointError("x"))
    assert (store.summary(run_id).status, store.summary(run_id).reason) == (
        "failed",
        "FloatingPointError: x",
    )
    assert store.summary(run_id).cost.tokens == 2000


def test_a_run_that_another_worker_took_over_stops_without_a_word(store: Store) -> None:
    run_id = store.create("toy", 0, {})

    def lose_it(so_far: Trajectory, *_: object) -> None:
        time.sleep(0.01)  # the lease of a millisecond is over
        store.claim("heir")

    journal = RunJournal(
        store, store.claim_run(run_id, "worker", lease_seconds=1e-3), on_record=lose_it
    )
    with pytest.raises(ClaimLost):
        run(ToyTrainer(N), Exp3(), journal)
    assert (store.summary(run_id).status, store.summary(run_id).worker) == ("running", "heir")


def test_checkpoints_and_store_must_belong_together(
    store: Store, folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        attempt(store, folder, stop_after=6)
    claim = store.claim_run(store.create("other", 1, {}), "worker")
    with pytest.raises(CheckpointError, match="not of"):
        run(ToyTrainer(N), Exp3(), RunJournal(store, claim, folder))
    with (
        Store.open(tmp_path / "another.sqlite") as another,
        pytest.raises(StoreError, match="store that belongs to it"),
    ):
        attempt(another, folder)
    with pytest.raises(StoreError, match="use 1 or more"):
        RunJournal(store, claim, every=0)

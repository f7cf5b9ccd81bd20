"""The display of a fleet: measured speed and time left, a row per active run, and why runs
failed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cuvee.cli import app
from cuvee.cli.display.fleet import FleetView
from cuvee.core.domain import natural_K
from cuvee.core.errors import StoreError
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.store.claim import Claim
from cuvee.fleet.store.store import Store
from cuvee.loop import run
from cuvee.policies.exp3 import Exp3
from cuvee.recipes.progress.fleet_watch import FleetStatus, FleetWatch
from cuvee.testing.toy import ToyTrainer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """In group g one run is done, one failed, one is active and one waits. Another group is
    empty."""
    with Store.open(tmp_path / "store.sqlite") as store:
        for seed in range(4):
            store.create("g/odm", seed, {}, group="g", max_attempts=1)
        done, failed, running = (store.claim(f"host{i}/1/2{i}/3", group="g") for i in range(3))
        assert failed
        train(store, done)
        failed.fail("MemoryError: [red]planted[/red]", Cost(500))
        train(store, running, 4)
        yield store


class Enough(Exception):
    pass


def train(store: Store, claim: Claim | None, intervals: int = 8) -> None:
    """So many intervals of 8."""
    assert claim

    def look(so_far: Trajectory, *_: object) -> None:
        if len(so_far) == intervals < 8:
            raise Enough

    journal, trainer = RunJournal(store, claim, on_record=look), ToyTrainer(8)
    with suppress(Enough):
        run(trainer, Exp3(), journal)
        journal.finish(trainer)


def statuses(store: Store) -> tuple[FleetStatus, FleetStatus]:
    """At the beginning, and ten seconds after the first sign of life, when one more run is done."""
    clock = iter([10.0, 90.0, 100.0, 110.0])
    watch = FleetWatch(store, "g", clock=lambda: next(clock))
    first = watch.look()
    assert watch.look().tokens_per_second is None
    store.add("imported", Run("r", 0, {}, run(ToyTrainer(4), Exp3()), Cost(4000)), group="g")
    assert watch.look().tokens_per_second is None
    train(store, store.claim("host4/1/24/3", group="g"))
    return first, watch.look()


def test_speed_and_time_left_are_those_of_the_whole_group(store: Store) -> None:
    first, second = statuses(store)
    assert (first.tally.waiting, first.tally.running, first.tally.done, first.tally.failed) == (
        1,
        1,
        1,
        1,
    )
    assert (first.tokens_per_second, first.seconds_left, first.retried) == (None, None, 0)
    assert [run.worker for run in first.running] == ["host2/1/22/3"]
    assert [run.reason for run in first.failed] == ["MemoryError: [red]planted[/red]"]
    assert second.tokens_per_second == 800
    assert second.seconds_left == pytest.approx(5)


def test_a_terminal_shows_every_run_under_way(store: Store) -> None:
    out = io.StringIO()
    with FleetView(Console(file=out, width=160, force_terminal=True)) as view:
        view.show(statuses(store)[1])
        drawn = "".join(segment.text for segment in Console(width=160).render(view.picture()))
    rows = [line.split() for line in drawn.splitlines()]
    assert rows[1] == ["0", "1", "3", "1", "0", "800", "0:05", "24,500", "1.20e+05", "0:00"]
    run = next(row for row in rows if "host2" in row)
    assert run[1:5] == ["50%", "4", "1", "4,000"]
    assert run[-2:] == ["host2", "22"]
    assert "(g/odm) after 1 attempts: MemoryError: [red]planted[/red]" in out.getvalue()


def test_the_only_run_under_way_has_shares_natural_shares_trends_and_epochs(store: Store) -> None:
    status = statuses(store)[1]
    (run_under_way,) = status.running
    so_far = store.trajectory(run_under_way.id)
    assert so_far.last_mixture is not None
    shown = {one.name: one for one in status.domains}
    assert {name: one.share for name, one in shown.items()} == so_far.last_mixture.as_dict()
    first = so_far.mixtures[0].as_dict()
    read = so_far.tokens_read().by_name()
    for domain, natural in zip(so_far.domains, natural_K(so_far.domains).tolist(), strict=True):
        one = shown[domain.name]
        assert one.natural == natural
        assert one.change == pytest.approx(one.share - first[domain.name])
        assert one.epochs == pytest.approx(read[domain.name] / domain.tokens)
    with FleetView(Console(file=io.StringIO(), width=160, force_terminal=True)) as view:
        view.show(status)
        drawn = "".join(segment.text for segment in Console(width=160).render(view.picture()))
    assert "natural" in drawn
    assert any(arrow in drawn for arrow in "↑→↓")


def test_a_log_gets_a_line_when_something_ended(store: Store) -> None:
    out = io.StringIO()
    first, second = statuses(store)
    with FleetView(Console(file=out, width=240)) as view:
        for status in (first, first, first, second, second):
            view.show(status)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(
        "1 done, 1 running, 1 waiting, 1 failed, 0 retried; ? tokens/s, ? left; 12,500 tokens"
    )
    assert lines[1].startswith(
        "3 done, 1 running, 0 waiting, 1 failed, 0 retried; 800 tokens/s, 0:05 left"
    )
    assert lines[3].startswith("failed: ")


def test_watch_ends_when_nothing_is_open(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["runs", "watch", "--store", str(tmp_path / "store.sqlite"), "--group"]
    with pytest.raises(StoreError, match="no group 'nothing there'"):
        CliRunner().invoke(app, [*asked, "nothing there"], catch_exceptions=False)
    store.create("h/odm", 9, {}, group="h")
    show = FleetView.show

    def show_then_train(view: FleetView, status: FleetStatus) -> None:
        show(view, status)
        if status.tally.open:
            train(store, store.claim("host4/1/24/3", group="h"))

    monkeypatch.setattr(FleetView, "show", show_then_train)
    shown = CliRunner().invoke(app, [*asked, "h"], catch_exceptions=False)
    first, *_, last = shown.stdout.splitlines()
    assert first.startswith("0 done, 0 running, 1 waiting")
    assert last.startswith("1 done, 0 running, 0 waiting, 0 failed, 0 retried; 8,000 tokens")

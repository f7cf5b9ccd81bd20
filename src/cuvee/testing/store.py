"""`StoreSuite`: tests of the run store. Subclass it with the URL of an empty database:

class TestMyStore(StoreSuite):
    @pytest.fixture
    def store_url(self, tmp_path): return str(tmp_path / "store.sqlite")
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from cuvee.core.domain import Domain
from cuvee.core.errors import StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.fleet.store import schema
from cuvee.fleet.store.claim import Claim, ClaimLost
from cuvee.fleet.store.rows import Interval, Tally, digest_of, run_key
from cuvee.fleet.store.store import Store

CONFIG = {"model": {"layers": 2, "rate": 1e-3}, "mixture": [0.1, 0.9], "note": "naïve — ∑"}


def example_interval(number: int, seed: int = 0) -> tuple[Mixture | None, Signals]:
    """Return interval `number` of a synthetic run that is hard to store.

    It has unusual floats, absent losses, probes of several shapes and a domain that is added later.
    """
    random = np.random.default_rng([seed, number])
    names = ("web", "code", "maths") if number < 3 else ("web", "code", "maths", "law")
    domains = tuple(Domain(name, 1000 + i, scores={"mtld": 71.3}) for i, name in enumerate(names))
    K = len(names)
    probes = {
        "alignment": Measured.all(
            random.standard_normal((K, K)) * 10.0 ** random.integers(-300, 300, (K, K))
        ),
        "gradient_norm": Measured.all(random.random()),
        "valid_loss": Measured(random.random(K), random.random(K) < 0.5),
    }
    loss = Measured(np.array([1 / 3, -0.0, 5e-324, 1.7976931348623157e308])[:K], np.arange(K) != 1)
    signals = Signals(
        domains, 10 * number, min(1.0, number / 100), random.integers(0, 2**40, K), loss, probes
    )
    return (Mixture.normalise(names, random.random(K)) if number else None), signals


def record(claim: Claim, count: int, first: int = 0, seed: int = 0) -> None:
    for number in range(first, count):
        claim.append(
            number,
            *example_interval(number, seed),
            {"reward": 0.1 * number},
            Cost(number, float(number), 1.0),
        )


def expected(count: int, seed: int = 0) -> Trajectory:
    steps = [example_interval(number, seed) for number in range(count)]
    return Trajectory(
        [signals for _, signals in steps], [mixture for mixture, _ in steps if mixture is not None]
    )


class StoreSuite:
    @pytest.fixture
    def store_url(self) -> Any:
        raise AssertionError("a store's tests give the URL of an empty database")

    @pytest.fixture
    def store(self, store_url: str) -> Iterator[Store]:
        with Store.open(store_url) as store:
            yield store

    def test_a_run_comes_back_bit_for_bit_from_another_connection(
        self, store: Store, store_url: str
    ) -> None:
        run_id = store.create("odm", 7, CONFIG, group="first")
        claim = store.claim_run(run_id, "worker")
        record(claim, 6)
        claim.finish(Cost(100, 2.5e15, 3.25), checkpoint="a/b", policy="c", model="d")
        with Store.open(store_url) as other:
            run = other.load(run_id)
            summary = other.summary(run_id)
        assert run.trajectory == expected(6)
        assert (run.id, run.seed, run.config, run.cost) == (
            run_id,
            7,
            CONFIG,
            Cost(100, 2.5e15, 3.25),
        )
        assert (summary.status, summary.group, summary.intervals) == ("done", "first", 5)
        assert (summary.checkpoint, summary.policy, summary.model) == ("a/b", "c", "d")
        assert summary.progress == 0.05
        assert [row["reward"] for row in store.metrics(run_id)] == [
            0.1 * number for number in range(1, 6)
        ]

    def test_planning_the_same_run_twice_finds_it(self, store: Store) -> None:
        first = store.create("a", 0, CONFIG)
        assert first == run_key(CONFIG, 0)
        assert store.create("a", 0, dict(reversed(CONFIG.items()))) == first
        assert store.create("a", 1, CONFIG) != first
        assert len(store.runs()) == 2
        with pytest.raises(StoreError, match="another configuration or seed"):
            store.create("a", 1, CONFIG, run_id=first)

    def test_the_fleet_is_who_claims_runs_and_which_attempts_were_bad(self, store: Store) -> None:
        for name in ("one", "two", "three"):
            store.create(name, 0, CONFIG, group="g", run_id=name, max_attempts=2)
        held = store.claim_run("one", "host-a/1/2/3", lease_seconds=50)
        record(held, 3)
        ended = store.claim_run("two", "host-b/1/2/3")
        ended.fail("MemoryError", Cost(500))
        again = store.claim_run("two", "host-b/1/2/3")
        again.finish(Cost(700))
        busy, free = store.workers("g")
        if busy.name != "host-a/1/2/3":
            busy, free = free, busy
        assert (busy.name, busy.done, busy.bad, busy.tokens) == ("host-a/1/2/3", 0, 0, 2)
        assert 0 < busy.holds["one"] <= 50
        assert not busy.dead
        assert (free.name, free.done, free.bad, free.tokens) == ("host-b/1/2/3", 1, 1, 1200)
        assert free.holds == {}
        [bad] = store.bad_attempts("g")
        assert (bad.run, bad.number, bad.outcome, bad.reason) == ("two", 1, "failed", "MemoryError")
        assert bad.tokens == 500
        assert not store.workers("another")
        assert not store.bad_attempts("another")
        silent = store.claim_run("three", "host-c/1/2/3", lease_seconds=0.001)
        time.sleep(0.1)
        found = {worker.name: worker for worker in store.workers()}
        assert found[silent.worker].dead
        assert found[silent.worker].holds["three"] < 0

    def test_a_removed_run_leaves_nothing_and_one_in_training_stays(self, store: Store) -> None:
        for name in ("gone", "kept"):
            claim = store.claim_run(store.create(name, 0, CONFIG, run_id=name), "worker")
            record(claim, 4)
        with pytest.raises(StoreError, match="run gone is being trained by worker"):
            store.remove("gone")
        claim = store.claim_run(store.create("c", 0, CONFIG, run_id="expired"), "worker", 1e-6)
        time.sleep(0.01)
        assert [run.state for run in store.runs()] == ["running", "running", "dead"]
        store.remove("expired")
        with pytest.raises(ClaimLost):
            claim.append(0, *example_interval(0))
        assert [run.id for run in store.runs()] == ["gone", "kept"]
        assert store.trajectory("kept") == expected(4)

    def test_a_renamed_run_keeps_everything(self, store: Store) -> None:
        claim = store.claim_run(store.create("odm", 7, CONFIG, group="first"), "worker")
        record(claim, 4)
        with pytest.raises(StoreError, match="is running: only a finished run can be renamed"):
            store.rename(claim.run.id, "new", {})
        claim.finish(Cost(100, 1.0, 2.0), model="d")
        before = store.summary(claim.run.id)
        store.create("other", 1, CONFIG, run_id="taken")
        with pytest.raises(StoreError, match="there is a run taken already"):
            store.rename(claim.run.id, "taken", {})
        store.rename(claim.run.id, "new", {"model": "e"})
        assert store.summary("new") == replace(before, id="new", model="e")
        assert store.trajectory("new") == expected(4)
        assert store.find(claim.run.id) is None
        store.remove("new")
        assert store.groups() == []

    def test_what_cannot_be_kept_is_refused_by_name(self, store: Store) -> None:
        cases: list[tuple[str, dict[str, Any]]] = [
            ("name", {"name": "a\x1b[31m"}),
            ("name", {"name": ""}),
            ("run id", {"run_id": "../../etc"}),
            ("group", {"group": "x\0y"}),
            ("max_attempts", {"max_attempts": 0}),
            (r"config.x\[1\]", {"config": {"x": [1, float("nan")]}}),
            ("config.x", {"config": {"x": np.float64("inf")}}),
            ("config.x", {"config": {"x": object()}}),
        ]
        for what, arguments in cases:
            with pytest.raises(StoreError, match=what):
                store.create(**{"name": "a", "seed": 0, "config": {}, **arguments})
        assert store.runs() == []

    def test_the_same_interval_twice_is_one_and_another_is_refused(self, store: Store) -> None:
        claim = store.claim_run(store.create("a", 0, {}), "worker")
        record(claim, 3)
        claim.append(2, *example_interval(2), {"took": 0.5})  # metrics may hold wall-clock times
        with pytest.raises(StoreError, match="not deterministic"):
            claim.append(2, *example_interval(2, seed=1))
        with pytest.raises(StoreError, match="no interval 4"):
            claim.append(5, *example_interval(5))
        with pytest.raises(StoreError, match="has no mixture"):
            claim.append(0, *example_interval(1))
        assert store.trajectory(claim.run.id) == expected(3)
        assert store.trajectory(claim.run.id, last=1) == expected(2)

    def test_runs_are_listed_in_the_order_of_planning(self, store: Store) -> None:
        ids = [store.create("a", seed, {}) for seed in range(40)]
        assert [run.id for run in store.runs()] == ids

    def test_claims_go_out_in_order_and_once(self, store: Store) -> None:
        ids = [store.create("a", seed, {}, group="g") for seed in range(3)]
        store.create("b", 0, {"other": 1}, group="h")
        claims = [store.claim("worker", group="g") for _ in range(4)]
        assert [claim.run.id for claim in claims if claim] == ids
        assert claims[3] is None
        assert [run.status for run in store.runs("g")] == ["running"] * 3
        with pytest.raises(StoreError, match="being worked on by worker"):
            store.claim_run(ids[0], "somebody else")

    def test_claims_from_many_threads_never_meet(self, store: Store) -> None:
        ids = {store.create("a", seed, {}) for seed in range(24)}
        taken: list[str] = []

        def work() -> None:
            while claim := store.claim("worker"):
                record(claim, 2)
                claim.finish(Cost(1))
                taken.append(claim.run.id)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == sorted(ids)
        assert all(run.status == "done" and run.attempts == 1 for run in store.runs())

    def test_a_worker_that_lost_its_lease_may_write_nothing(self, store: Store) -> None:
        run_id = store.create("a", 0, {})
        zombie = store.claim_run(run_id, "zombie", lease_seconds=1e-6)
        record(zombie, 2)
        heir = store.claim("heir")
        assert heir is not None
        assert heir.attempt == zombie.attempt + 1
        for write in (
            zombie.heartbeat,
            zombie.release,
            lambda: zombie.append(2, *example_interval(2, seed=1)),
            lambda: zombie.finish(Cost(5)),
            lambda: zombie.fail("late"),
        ):
            with pytest.raises(ClaimLost):
                write()
        record(heir, 4)
        heir.finish(Cost(1))
        assert store.trajectory(run_id) == expected(4)
        with pytest.raises(ClaimLost):
            heir.heartbeat()

    def test_a_living_worker_keeps_its_run_however_long_an_interval_takes(
        self, store: Store
    ) -> None:
        run_id = store.create("a", 0, {})
        claim = store.claim_run(run_id, "worker", lease_seconds=1.0)
        with claim.kept_alive():
            assert not threading.Event().wait(1.5)
            assert store.claim("other") is None
            record(claim, 2)
        claim.finish(Cost())

    def test_a_poison_run_stops_after_its_attempts(self, store: Store) -> None:
        run_id = store.create("a", 0, {}, max_attempts=3)
        for attempt, status in ((1, "waiting"), (2, "waiting"), (3, "failed")):
            claim = store.claim("worker", lease_seconds=1e-6 if attempt == 2 else 60.0)
            assert claim is not None
            if attempt == 2:
                continue  # abandoned: the next claim finds an expired lease
            assert claim.fail("loss is nan", Cost(10)) == status
        assert store.claim("worker") is None
        summary = store.summary(run_id)
        assert (summary.status, summary.reason, summary.attempts, summary.cost.tokens) == (
            "failed",
            "loss is nan",
            3,
            20,
        )
        again = store.claim_run(run_id, "worker")  # an explicit request of the user
        record(again, 1)
        again.finish(Cost(1))
        assert store.summary(run_id).status == "done"

    def test_a_failed_run_is_tried_again_when_it_is_reopened(self, store: Store) -> None:
        run_id = store.create("a", 0, {}, max_attempts=2)
        for round_ in (1, 2, 3):
            for attempt in (1, 2):
                claim = store.claim("worker")
                assert claim is not None
                assert claim.fail("x") == ("waiting" if attempt == 1 else "failed")
            assert store.claim("worker") is None
            assert store.summary(run_id).attempts == 2 * round_
            store.reopen(run_id, attempts_more=2)
            store.reopen(run_id, attempts_more=9)  # it is already open
            assert store.summary(run_id).status == "waiting"

    def test_giving_a_run_back_does_not_count_against_it(self, store: Store) -> None:
        run_id = store.create("a", 0, {}, max_attempts=1)
        for _ in range(3):
            claim = store.claim("worker")
            assert claim is not None
            claim.release(Cost(1))
        assert store.summary(run_id).status == "waiting"
        assert store.summary(run_id).cost == Cost(3)

    def test_ending_twice_is_ending_once(self, store: Store) -> None:
        claim = store.claim_run(store.create("a", 0, {}), "worker")
        record(claim, 1)
        claim.finish(Cost(3))
        claim.finish(Cost(3))
        with pytest.raises(ClaimLost):
            claim.fail("after all")
        with pytest.raises(StoreError, match="is done"):
            store.claim_run(claim.run.id, "worker")
        assert store.summary(claim.run.id).cost == Cost(3)

    def test_a_run_done_elsewhere_is_added_once_and_whole(self, store: Store) -> None:
        run = Run("elsewhere", 3, CONFIG, expected(6), Cost(5, 1.5, 2.5), "a", "b")
        for _ in range(2):
            assert store.add("imported", run, group="g", metrics=[{"reward": 1.0}]) == "elsewhere"
        assert store.load("elsewhere") == run
        assert store.metrics("elsewhere") == [{"reward": 1.0}, {}, {}, {}, {}]
        assert store.claim("worker") is None
        with pytest.raises(StoreError, match="other measurements"):
            store.add("imported", replace(run, trajectory=expected(6, seed=1)))
        claim = store.claim_run(store.create("a", 0, {}, run_id="begun"), "worker")
        with pytest.raises(StoreError, match="other measurements"):
            store.add("a", Run("begun", 0, {}, expected(2)))
        claim.heartbeat()

    def test_a_tally_counts_runs_attempts_and_cost(self, store: Store) -> None:
        assert store.tally("g") == Tally(0, 0, 0, 0, 0.0, 0, 0, Cost())
        for seed in range(4):
            store.create("a", seed, {}, group="g", max_attempts=1)
        store.create("a", 9, {}, group="h")
        claims = [store.claim("worker", group="g") for _ in range(3)]
        for claim in claims:
            assert claim is not None
            record(claim, 3)
        assert claims[0] is not None
        claims[0].finish(Cost(5, 2.0, 1.0))
        assert claims[1] is not None
        claims[1].fail("x")
        cost = Cost(5 + 2 + 2, 2.0 + 2.0 + 2.0, 3.0)
        assert store.tally("g") == Tally(1, 1, 1, 1, 3 * 0.02, 3, 1, cost)
        assert store.tally().open == 3

    def test_what_is_not_there_is_named(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no run 'x'"):
            store.load("x")
        run_id = store.create("a", 0, {})
        with pytest.raises(StoreError, match="nothing yet"):
            store.load(run_id)
        with pytest.raises(StoreError, match="no status"):
            store.runs(status="finished")

    def test_a_row_that_somebody_altered_is_refused_on_reading(self, store: Store) -> None:
        claim = store.claim_run(store.create("a", 0, {}), "worker")
        record(claim, 2)
        values: list[Any] = [{}, [], 3, {"step": "x"}, {"names": ["web"], "weights": [1e308]}]
        for column, value, forged in itertools.product(
            ["signals", "mixture"], values, [False, True]
        ):
            row = Interval(1, *example_interval(1), {}).row() | {column: value}
            if forged:  # by an attacker who knows how digests are made
                row["digest"] = digest_of([row["space"], row["mixture"], row["signals"]])
            _update(
                store, sa.update(schema.intervals).where(schema.intervals.c.number == 1).values(row)
            )
            with pytest.raises(StoreError, match="interval 1 of run"):
                store.load(claim.run.id)
        _update(store, sa.update(schema.spaces).values(domains=[]))
        with pytest.raises(StoreError, match="the list of domains of run"):
            store.load(claim.run.id)

    def test_deleted_rows_and_altered_configurations_are_noticed(self, store: Store) -> None:
        claim = store.claim_run(store.create("a", 0, {"rate": 1}), "worker")
        record(claim, 4)
        _update(store, sa.delete(schema.intervals).where(schema.intervals.c.number == 2))
        with pytest.raises(StoreError, match="rows were deleted"):
            store.load(claim.run.id)
        _update(store, sa.update(schema.runs).values(config={"rate": 2}))
        with pytest.raises(StoreError, match="altered"):
            store.runs()

    def test_the_database_itself_refuses_nonsense(self, store: Store) -> None:
        claim = store.claim_run(store.create("a", 0, {}), "worker")
        record(claim, 2)
        claim.finish(Cost(1))
        cases: list[tuple[sa.Table, dict[str, Any]]] = [
            (schema.runs, {"status": "finished"}),
            (schema.runs, {"progress": 1.5}),
            (schema.runs, {"lease_expires": 1.0}),
            (schema.attempts, {"flops": float("nan")}),
            (schema.attempts, {"tokens": -1}),
            (schema.attempts, {"outcome": "?"}),
            (schema.intervals, {"number": -1}),
            (schema.intervals, {"space": "unknown"}),
            (schema.intervals, {"attempt": 99}),
        ]
        for table, values in cases:
            with pytest.raises(StoreError, match="refused"):
                _update(store, sa.update(table).values(values))

    def test_the_tables_are_those_of_the_schema(self, store: Store) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        found = store._database.read(
            lambda connection: compare_metadata(
                MigrationContext.configure(connection), schema.metadata
            )
        )
        assert found == []

    def test_a_store_of_a_newer_version_is_refused(self, store: Store, store_url: str) -> None:
        version = sa.table("alembic_version", sa.column("version_num"))
        _update(store, sa.update(version).values(version_num="9999"))
        with pytest.raises(StoreError, match="newer cuvee"):
            Store.open(store_url)

    def test_many_may_open_a_new_store_at_once(self, store_url: str) -> None:
        failures: list[BaseException] = []

        def open_it() -> None:
            try:
                with Store.open(store_url) as store:
                    store.create("a", 0, {})
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def _update(store: Store, statement: sa.Executable) -> None:
    """A change that needs the database's password."""
    store._database.write(lambda connection: connection.execute(statement))

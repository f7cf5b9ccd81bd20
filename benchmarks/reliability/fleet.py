"""Tests 9 to 15: fleet and store. The checks are those of `fleet_faults.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import fleet_faults
import store_faults

from cuvee.testing.postgres import find_binaries, postgres_server
from reliability.measure import Result, measured

Check = Callable[..., Mapping[str, Any]]


LOST = "0 lost, duplicated, torn, unfinished"


def judge(
    found: Mapping[str, Any],
    n: str,
    check: Check,
    *plants: str,
    bar: str = LOST,
    bad: Sequence[str] = fleet_faults.BAD,
) -> Result:
    """The figures called `bad` must be 0, and must not be with each of `plants`."""

    def faults_in(found: Mapping[str, Any]) -> dict[str, int]:
        return {name: found[name] for name in bad if found.get(name)}

    faults = faults_in(found)
    told = ", ".join(f"{count} {name}" for name, count in faults.items()) or "0 faults"
    caught = {fault: bool(faults_in(check(False, fault))) for fault in plants}
    return Result(n, told, bar, not faults, caught)


@measured(9, "kill -9 the fleet")
def kills(full: bool) -> Result:
    found = fleet_faults.kills(full)
    n = f"{found['kills']} kills (rate < {3 / found['kills']:.2g})"
    plants = ("acknowledged before the commit", "end recorded before the last row")
    return judge(found, n, fleet_faults.kills, *plants)


@measured(10, "power loss")
def power_loss(full: bool) -> Result:
    found = store_faults.power_loss(full)
    assert found["acknowledged"], "strace is not installed"
    n = f"{found['acknowledged']} rows, order of fsyncs in a trace"
    return judge(found, n, store_faults.power_loss, "synchronous = OFF")


@measured(11, "many writers")
def writers(full: bool) -> Result:
    """SQLite, then PostgreSQL with restarts."""
    found = dict(store_faults.writers(full))
    local = judge(found, "", store_faults.writers, "deferred BEGIN")
    with postgres_server() as server:

        def check(full: bool, planted: str | None = None) -> Mapping[str, Any]:
            return store_faults.writers(full, planted, server)

        served = check(full)
        remote = judge(served, "", check, "no reconnect")
    return Result(
        f"{found['rows']} + {served['rows']} rows, {served['restarts']} restarts",
        f"SQLite: {local.figure}; PostgreSQL: {remote.figure}",
        local.bar,
        local.met and remote.met,
        {**local.caught, **remote.caught},
    )


@measured(12, "lost acknowledgement")
def lost_answers(full: bool) -> Result:
    assert find_binaries(), "PostgreSQL is not installed"
    with postgres_server() as server:

        def check(full: bool, planted: str | None = None) -> Mapping[str, Any]:
            return store_faults.lost_answers(full, server, planted)

        found = check(full)
        return judge(found, f"{found['lost answers']} answers lost", check, "no idempotency key")


@measured(13, "stale workers")
def zombies(full: bool) -> Result:
    found = fleet_faults.zombies(full)
    n = f"{found['zombies']} workers stopped for 2.5 leases"
    return judge(found, n, fleet_faults.zombies, "no fencing token")


@cache
def _poison(full: bool, planted: str | None = None) -> Mapping[str, Any]:
    return fleet_faults.poison(full, planted)


@measured(14, "runs that die or exhaust memory")
def dying(full: bool) -> Result:
    return judge(
        _poison(full),
        f"3 of {60 if full else 12} runs: killed, out of memory, NaN",
        _poison,
        "a killed run counts as done",
        bar="0 others changed, 0 wrong status, 0 without a reason",
        bad=("torn", "wrong status", "without a reason"),
    )


@measured(15, "poison task, fleet run twice")
def repetition(full: bool) -> Result:
    return judge(
        _poison(full),
        f"{60 if full else 12} tasks, 2 starts, 3 attempts",
        _poison,
        "a restart repeats finished runs",
        bar="0 wrong attempts, 0 starts that end with status 0",
        bad=("wrong attempts", "silent ends"),
    )

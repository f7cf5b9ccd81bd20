"""Requests of operators to runs: `cuvee steer` writes them, the worker of the run takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.schema import requests, runs
from cuvee.policies.guard.operator import NO_DOMAINS, Request

_KINDS = ("freeze", "unfreeze", "set", "policy", "add")


def check_action(action: Mapping[str, Any], names: Sequence[str], guard: Mapping[str, Any]) -> None:
    """Raise `StoreError` unless `action` is a request to a run over the domains `names`.

    `guard` is the audit record of the run's last interval.
    """
    kinds = [kind for kind in _KINDS if kind in action]
    if len(kinds) != 1:
        raise StoreError(f"a request holds one of {', '.join(_KINDS)}, not {sorted(action)}")
    if "add" in action:
        _check_added(action["add"], names, guard)
    shares = action.get("set", {})
    if unknown := sorted(set(shares) - set(names)):
        raise StoreError(f"the run has no domain {', '.join(unknown)}: it has {', '.join(names)}")
    for name, share in shares.items():
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise StoreError(f"the share of {name} is {share}: it must lie between 0 and 1")
    total = sum(shares.values())
    if shares and (total > 1 + 1e-9 or (set(shares) == set(names) and total < 1 - 1e-9)):
        raise StoreError(
            f"the shares sum to {total:g}: they must sum to 1 over all domains, or to at most 1 "
            "over some of them"
        )


def _check_added(added: Mapping[str, Any], names: Sequence[str], guard: Mapping[str, Any]) -> None:
    name = added["name"]
    share = added["share"]
    takes = guard.get("takes")
    if takes is None:
        raise StoreError(NO_DOMAINS)
    if name in names:
        raise StoreError(
            f"the run has the domain {name} already: change its share with --set {name}={share:g}"
        )
    if not 0 < share < 1:
        raise StoreError(
            f"the share of {name} is {share}: an added domain must have more than 0 and less than 1"
        )
    if (guard.get("operator") or {}).get("order") == {"freeze": True}:
        raise StoreError("the mixture is frozen: unfreeze it, and then add the domain")
    if added["vocabulary"] != takes:
        raise StoreError(
            f"{added['corpus']} has another tokenizer than the run's corpus: build it with "
            "`cuvee corpus build … --tokenizer RUN_CORPUS/tokenizer.json`"
        )


def add_request(database: Database, run_id: str, action: Mapping[str, Any], author: str) -> Request:
    """Record a request that waits for the run's next interval."""

    def work(connection: sa.Connection) -> int:
        lock = sa.select(runs.c.id).where(runs.c.id == run_id).with_for_update()
        connection.execute(lock)
        of_run = requests.c.run_id == run_id
        query = sa.select(sa.func.coalesce(sa.func.max(requests.c.number), 0)).where(of_run)
        number = int(connection.execute(query).scalar_one()) + 1
        row = {"run_id": run_id, "number": number, "action": dict(action), "author": author}
        now = database.now(connection)
        connection.execute(sa.insert(requests).values(**row, created=now))
        return number

    return Request(run_id, database.write(work), action, author)


def take_requests(connection: sa.Connection, run_id: str, number: int) -> list[Request]:
    """Return the requests that take effect at interval `number`.

    Waiting requests are assigned to it, unless the interval is recorded already: a resumed run
    repeats it exactly.
    """
    recorded = sa.select(runs.c.intervals).where(runs.c.id == run_id)
    if connection.execute(recorded).scalar_one() < number:
        waiting = (requests.c.run_id == run_id) & requests.c.interval.is_(None)
        connection.execute(sa.update(requests).where(waiting).values(interval=number))
    query = sa.select(requests).where(requests.c.run_id == run_id, requests.c.interval == number)
    return [_request(row) for row in connection.execute(query.order_by(requests.c.number))]


def read_requests(
    connection: sa.Connection, run_id: str | None, group: str | None
) -> list[Request]:
    """Return the requests to a run, to the runs of a group, or all, oldest first."""
    query = sa.select(requests).join(runs, runs.c.id == requests.c.run_id)
    query = query.where(requests.c.run_id == run_id) if run_id is not None else query
    query = query.where(runs.c.cohort == group) if group is not None else query
    query = query.order_by(requests.c.created, requests.c.run_id, requests.c.number)
    return [_request(row) for row in connection.execute(query)]


def _request(row: sa.Row[Any]) -> Request:
    return Request(row.run_id, row.number, row.action, row.author, row.interval)

"""Opens the store of a command and finds runs in it, without loading torch."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from cuvee.core.errors import StoreError, nearest
from cuvee.fleet.store.address import find_address
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store

DEFAULT_STORE = "runs/cuvee.db"
_FIRST_PATIENCE = 5.0  # seconds, for a server that does not answer when a command starts
_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def open_store(given: str | Path | None = None, must_exist: bool = False) -> Store:
    """Open the given store, else the one in $CUVEE_STORE, else runs/cuvee.db.

    `given` is a path of a SQLite file, `postgresql://…`, or `@FILE` that holds one of these.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_store(f"{folder}/runs.db") as store:
    ...         [run.id for run in store.runs()]
    []

    With `must_exist`, raises `StoreError` if the file does not exist, instead of creating it.
    """
    place = str(given or "") or os.environ.get("CUVEE_STORE") or DEFAULT_STORE
    address = find_address(place)
    if must_exist and address.is_sqlite and not Path(address.url.database or "").is_file():
        raise StoreError(
            f"there is no store {place}: name one with --store, or train something first"
        )
    return Store.open(place, first_patience=_FIRST_PATIENCE)


def find_runs(store: Store, ids: Sequence[str] = (), group: str | None = None) -> list[RunSummary]:
    """Return the runs whose ids are, or begin with, `ids`, in this order.

    Without `ids`, return all runs of the group, or of the store if there is no group. Raises
    `StoreError` for an unknown, ambiguous or damaged id. Other damaged runs are left out with a
    warning.
    """
    if not ids:
        return listed_runs(store, group)
    group = find_group(store, group)
    found = []
    for wanted in ids:
        matches = _matches(store, wanted, group)
        if not matches:
            raise StoreError(
                f"no run {wanted!r} in the store {store.address.shown}: `cuvee runs list` lists all runs"
            )
        if len(matches) > 1:
            raise StoreError(
                f"{wanted!r} is the beginning of {len(matches)} ids: "
                f"{', '.join(run.id for run in matches)}"
            )
        found += matches
    return found


def listed_runs(
    store: Store, group: str | None = None, state: str | None = None
) -> list[RunSummary]:
    """Return the runs of a group, or of the store. Warns of each that is damaged.

    `state` is a status or `dead`; runs that are dead are not `running`.
    """
    listing = store.listing(find_group(store, group), "running" if state == "dead" else state)
    for message in listing.damaged.values():
        warnings.warn(message, stacklevel=2)
    return [run for run in listing.runs if state in (None, run.state)]


def begun(runs: Sequence[RunSummary], named: bool = False) -> list[RunSummary]:
    """Return the runs that have recorded an interval.

    A finished run that counts none was altered: it is left out with a warning. Raises `StoreError`
    instead if the user `named` the runs.
    """
    for run in runs:
        if run.status == "done" and not run.intervals:
            message = (
                f"run {run.id} is done and counts no interval: it was altered after it was "
                "recorded; restore the store from a copy"
            )
            if named:
                raise StoreError(message)
            warnings.warn(message, stacklevel=2)
    return [run for run in runs if run.intervals]


def find_group(store: Store, given: str | None) -> str | None:
    """Return the group that is, or begins with, `given`; None for None.

    The groups of `name: mine` are called `mine-` and a digest of their settings. Raises
    `StoreError` if there is no such group, or if there are several.
    """
    if given is None:
        return None
    groups = store.groups()
    if given in groups:
        return given
    found = [group for group in groups if _DIGEST.sub("", group) == given]
    found = found or [group for group in groups if group.startswith(given)]
    if not found:
        hint = nearest(given, short_groups(groups).values()) or ": none of its runs belongs to one"
        raise StoreError(f"no group {given!r} in the store {store.address.shown}{hint}")
    if len(found) > 1:
        raise StoreError(
            f"{len(found)} groups are called {given!r}, with other settings: give one of "
            f"{', '.join(found)}"
        )
    return found[0]


def short_groups(groups: Iterable[str]) -> dict[str, str]:
    """Return each group's name without the digest, as the user gave it, where that is enough."""
    groups = set(groups)
    short = {group: _DIGEST.sub("", group) for group in groups}
    names = list(short.values())
    return {group: name if names.count(name) == 1 else group for group, name in short.items()}


def _matches(store: Store, wanted: str, group: str | None) -> list[RunSummary]:
    exact = store.find(wanted)
    if exact is not None and group in (None, exact.group):
        return [exact]
    listing = store.listing(group, beginning=wanted)
    if listing.damaged:
        raise StoreError(next(iter(listing.damaged.values())))
    return list(listing.runs)

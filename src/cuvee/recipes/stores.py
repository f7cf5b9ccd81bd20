"""Opens the store of a command and finds runs in it, without loading torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from cuvee.core.errors import StoreError
from cuvee.fleet.store.rows import RunSummary
from cuvee.fleet.store.store import Store

DEFAULT_STORE = "runs/cuvee.db"


def open_store(given: str | None, must_exist: bool = False) -> Store:
    """Open the given store, else the one in $CUVEE_STORE, else runs/cuvee.db.

    With `must_exist`, raises `StoreError` if the file does not exist, instead of creating it.
    """
    place = given or os.environ.get("CUVEE_STORE") or DEFAULT_STORE
    if "://" not in place and not place.startswith("@"):
        if must_exist and not Path(place).is_file():
            raise StoreError(
                f"there is no store {place}: name one with --store, or train something first"
            )
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    return Store.open(place)


def find_runs(store: Store, ids: Sequence[str] = (), group: str | None = None) -> list[RunSummary]:
    """Return the runs whose ids are, or begin with, `ids`, in this order.

    Without `ids`, return all runs of the group, or of the store if there is no group. Raises
    `StoreError` for an unknown, ambiguous or damaged id. Other damaged runs are left out with a
    warning.
    """
    if not ids:
        return listed_runs(store, group)
    found = []
    for wanted in ids:
        matches = _matches(store, wanted, group)
        if not matches:
            raise StoreError(f"no run {wanted!r} in {store!r}: `cuvee runs list` lists all runs")
        if len(matches) > 1:
            raise StoreError(
                f"{wanted!r} is the beginning of {len(matches)} ids: "
                f"{', '.join(run.id for run in matches)}"
            )
        found += matches
    return found


def listed_runs(
    store: Store, group: str | None = None, status: str | None = None
) -> list[RunSummary]:
    """Return the runs of a group, or of the store. Warns of each that is damaged."""
    listing = store.listing(group, status)
    for message in listing.damaged.values():
        warnings.warn(message, stacklevel=2)
    return list(listing.runs)


def _matches(store: Store, wanted: str, group: str | None) -> list[RunSummary]:
    exact = store.find(wanted)
    if exact is not None and group in (None, exact.group):
        return [exact]
    listing = store.listing(group, beginning=wanted)
    if listing.damaged:
        raise StoreError(next(iter(listing.damaged.values())))
    return list(listing.runs)

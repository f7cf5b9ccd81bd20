"""Rows of the store: lossless JSON, digests that identify content, and checks on reading."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.errors import CuveeError, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Cost

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class RunSummary:
    """The status of a run, without its trajectory.

    Times are seconds since 1970 by the database's clock.
    """

    id: str
    name: str
    group: str | None
    seed: int
    config: Mapping[str, Any]
    status: str
    """`waiting`, `running`, `done` or `failed`."""
    reason: str | None
    """Why the run or its last attempt failed."""
    attempts: int
    intervals: int
    progress: float
    cost: Cost
    """The sum over all attempts, including lost work."""
    created: float
    updated: float
    worker: str | None = None
    checkpoint: str | None = None
    policy: str | None = None
    model: str | None = None
    dead: bool = False
    """Whether it is `running` and its worker is gone; the next worker that looks claims it."""

    @property
    def state(self) -> str:
        """The status, or `dead`."""
        return "dead" if self.dead else self.status


@dataclass(frozen=True)
class Tally:
    """The number of runs by status, their progress and their cost.

    `progress` is the sum over runs of the share that is done. `lost_attempts` counts failed and
    lost attempts.
    """

    waiting: int
    running: int
    done: int
    failed: int
    progress: float
    attempts: int
    lost_attempts: int
    cost: Cost

    @property
    def open(self) -> int:
        """The number of runs that are waiting or running."""
        return self.waiting + self.running


def digest_of(value: Any) -> str:
    """Return the sha256 of canonical JSON; the order of keys does not matter."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()


def run_key(config: Mapping[str, Any], seed: int) -> str:
    """Return the id of the run with this content, 16 hex digits.

    The same configuration and seed therefore find the same run again.
    """
    return fingerprint_of(config, seed)[:16]


def fingerprint_of(config: Mapping[str, Any], seed: int) -> str:
    """Return the sha256 of configuration and seed."""
    return digest_of({"config": plain_json(config, "config"), "seed": seed})


def plain_json(value: Any, path: str) -> Any:
    """Return `value` as plain JSON data.

    Raises `StoreError`, naming the place, if JSON cannot hold it exactly.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain_json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise StoreError(
        f"{path} is {value!r}, which JSON cannot hold: use text, finite numbers, lists and "
        "string keys"
    )


def figures_json(value: Any) -> Any:
    """Return a policy's metrics as JSON data; a number that is not finite becomes None."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): figures_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [figures_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, str, int)) else str(value)


_DAMAGE = (CuveeError, KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Space:
    """The domains that many intervals share, checked once."""

    digest: str
    domains: tuple[Domain, ...]

    @classmethod
    def read(cls, digest: str, domains: Any, run_id: str) -> Space:
        """Read and check a row. Raises `StoreError` if it was altered or is invalid."""
        where = f"the list of domains of run {run_id}"
        try:
            if digest_of(domains) != digest:
                raise StoreError(
                    f"{where} was altered after it was written: its digest does not match"
                )
            return cls(digest, tuple(Domain.from_json(domain) for domain in domains))
        except StoreError:
            raise
        except _DAMAGE as error:
            raise StoreError(f"{where} cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Interval:
    """One interval of a run in the store. Number 0 holds the signals before the first step."""

    number: int
    mixture: Mixture | None
    signals: Signals
    metrics: Metrics

    def space_json(self) -> list[Any]:
        """Return the domains of this interval as JSON data."""
        return [domain.to_json() for domain in self.signals.domains]

    def row(self) -> dict[str, Any]:
        """Return the columns of `intervals` except for run and attempt.

        The digest excludes metrics, because they may contain wall-clock times.
        """
        space = digest_of(self.space_json())
        mixture = self.mixture.to_json() if self.mixture else None
        signals = self.signals.to_json()
        return {
            "number": self.number,
            "space": space,
            "mixture": mixture,
            "signals": signals,
            "metrics": figures_json(self.metrics),
            "digest": digest_of([space, mixture, signals]),
        }

    @classmethod
    def read(cls, row: Mapping[str, Any], space: Space | None, run_id: str) -> Interval:
        """Read and check a row. Raises `StoreError` if it was altered or is invalid."""
        where = f"interval {row['number']} of run {run_id}"
        try:
            if (
                space is None
                or space.digest != row["space"]
                or digest_of([row["space"], row["mixture"], row["signals"]]) != row["digest"]
            ):
                raise StoreError(
                    f"{where} was altered after it was written: its digest does not match"
                )
            mixture = Mixture.from_json(row["mixture"]) if row["mixture"] is not None else None
            signals = Signals.from_json(space.domains, row["signals"])
            if mixture is not None and mixture.names != signals.names:
                raise StoreError(f"{where} has a mixture over other domains than its signals")
            return cls(row["number"], mixture, signals, dict(row["metrics"]))
        except StoreError:
            raise
        except _DAMAGE as error:
            raise StoreError(f"{where} cannot be read: {type(error).__name__}: {error}") from error

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


_DAMAGE = (
    CuveeError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_HALF = 32  # characters of a digest of a row
_VERDICT = {"step": int, "verdict": str}
_RECORD: Mapping[str, Any] = {
    "reason": str,
    "lesson": str,
    "change": (int, float),
    "limits": list,
    "alarms": dict,
    "proposed": dict,
    "executed": dict,
    "fallback": dict,
    "operator": dict,
    "own": dict,
    "explained": dict,
}
"""The types of entries of an audit record, where they are there and not None."""


def _row_digest(row: Mapping[str, Any], run: str) -> str:
    """The digest of a row of the run with the fingerprint `run`."""
    of = [run, row["number"], row["space"], row["mixture"], row["signals"]]
    return digest_of(of)[:_HALF] + digest_of(row["metrics"])[:_HALF]


def _old_digest(row: Mapping[str, Any]) -> str:
    """The digest of the same row in stores of earlier versions: without run, number and metrics."""
    return digest_of([row["space"], row["mixture"], row["signals"]])


def _checked(metrics: Any) -> dict[str, Any]:
    """Return the metrics of a row. Raises `TypeError` if they, or an audit record, have no such form."""
    found = dict(metrics)
    record = found.get("guard")
    if record is None:
        return found
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), kind) for name, kind in _VERDICT.items()
    ):
        raise TypeError("the record of the guard has no step and verdict")
    for name, kind in _RECORD.items():
        if record.get(name) is not None and not isinstance(record[name], kind):
            raise TypeError(f"the record of the guard has {name} {str(record[name])[:40]!r}")
    weights = [record.get(name) or {} for name in ("proposed", "executed")]
    if not all(isinstance(one, (int, float)) for each in weights for one in each.values()):
        raise TypeError("the record of the guard has a weight that is no number")
    return found


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

    def row(self, run: str = "") -> dict[str, Any]:
        """Return the columns of `intervals` except for run and attempt.

        `run` is the fingerprint of the run. The digest has two halves. The first one is of the run,
        the number, the mixture and the signals. The second one is of the metrics, which may contain
        wall-clock times.
        """
        row = {
            "number": self.number,
            "space": digest_of(self.space_json()),
            "mixture": self.mixture.to_json() if self.mixture else None,
            "signals": self.signals.to_json(),
            "metrics": figures_json(self.metrics),
        }
        return {**row, "digest": _row_digest(row, run)}

    def is_recorded_as(self, digest: str, run: str) -> bool:
        """Whether a row with this digest is of this interval. Metrics do not count."""
        row = self.row(run)
        return digest[:_HALF] == row["digest"][:_HALF] or digest == _old_digest(row)

    @classmethod
    def read(
        cls, row: Mapping[str, Any], space: Space | None, run_id: str, run: str = ""
    ) -> Interval:
        """Read and check a row of the run with the fingerprint `run`.

        Raises `StoreError` if it was altered or is invalid.
        """
        where = f"interval {row['number']} of run {run_id}"
        try:
            if (
                space is None
                or type(row["number"]) is not int
                or space.digest != row["space"]
                or row["digest"] not in (_row_digest(row, run), _old_digest(row))
            ):
                raise StoreError(
                    f"{where} was altered after it was written: its digest does not match"
                )
            mixture = Mixture.from_json(row["mixture"]) if row["mixture"] is not None else None
            signals = Signals.from_json(space.domains, row["signals"])
            if mixture is not None and mixture.names != signals.names:
                raise StoreError(f"{where} has a mixture over other domains than its signals")
            return cls(row["number"], mixture, signals, _checked(row["metrics"]))
        except StoreError:
            raise
        except _DAMAGE as error:
            raise StoreError(f"{where} cannot be read: {type(error).__name__}: {error}") from error

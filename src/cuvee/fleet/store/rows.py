"""What a row is made of and made into: JSON that keeps every bit, digests that tell two rows apart, and checks on reading."""

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


@dataclass(frozen=True)
class RunSummary:
    """Where a run stands, without its trajectory. Times are seconds since 1970 by the database's clock."""

    id: str
    name: str
    group: str | None
    seed: int
    config: Mapping[str, Any]
    status: str
    """`waiting`, `running`, `done` or `failed`."""
    reason: str | None
    """Why it failed, or why its last attempt did."""
    attempts: int
    intervals: int
    progress: float
    cost: Cost
    """Over all attempts, lost work included."""
    created: float
    updated: float
    worker: str | None = None
    checkpoint: str | None = None
    policy: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Tally:
    """How many runs stand where; `progress` is the sum of their shares done, `lost_attempts` those that came to nothing."""

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
        return self.waiting + self.running


def digest_of(value: Any) -> str:
    """sha256 of canonical JSON: the same for the same value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_key(config: Mapping[str, Any], seed: int) -> str:
    """The id of the run with this content: 16 hex digits. Running the same thing again finds the same run."""
    return fingerprint_of(config, seed)[:16]


def fingerprint_of(config: Mapping[str, Any], seed: int) -> str:
    return digest_of({"config": plain_json(config, "config"), "seed": seed})


def plain_json(value: Any, path: str) -> Any:
    """`value` as JSON gives it back. Raises `StoreError`, naming the place, for what JSON cannot hold exactly."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain_json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise StoreError(
        f"{path} is {value!r}, which JSON cannot hold: use text, finite numbers, lists and string keys"
    )


def figures_json(value: Any) -> Any:
    """A policy's metrics for the log: numpy becomes plain, and a figure that is not finite becomes null."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): figures_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [figures_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, str, int)) else str(value)


@dataclass(frozen=True)
class Interval:
    """One interval of a run as the store keeps it. Number 0 has no mixture: it is what was measured before the first step."""

    number: int
    mixture: Mixture | None
    signals: Signals
    metrics: Metrics

    def space_json(self) -> list[Any]:
        return [domain.to_json() for domain in self.signals.domains]

    def row(self) -> dict[str, Any]:
        """The columns of `intervals` but for whose they are. The digest leaves metrics out: they may hold wall-clock times."""
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
    def read(cls, row: Mapping[str, Any], domains: Any, run_id: str) -> Interval:
        """Trusts nothing: whoever may write to the database may have written this. Raises `StoreError`."""
        where = f"interval {row['number']} of run {run_id}"
        try:
            if (
                digest_of(domains) != row["space"]
                or digest_of([row["space"], row["mixture"], row["signals"]]) != row["digest"]
            ):
                raise StoreError(
                    f"{where} was altered after it was written: its digest does not match"
                )
            space = tuple(Domain.from_json(domain) for domain in domains)
            mixture = Mixture.from_json(row["mixture"]) if row["mixture"] is not None else None
            signals = Signals.from_json(space, row["signals"])
            if mixture is not None and mixture.names != signals.names:
                raise StoreError(f"{where} has a mixture over other domains than its signals")
            return cls(row["number"], mixture, signals, dict(row["metrics"]))
        except StoreError:
            raise
        except (
            CuveeError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:
            raise StoreError(f"{where} cannot be read: {type(error).__name__}: {error}") from error

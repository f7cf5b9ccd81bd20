"""`Signals`: the raw measurements of one interval of training.

They hold neither rewards nor scaled values; `trajectory.py` computes rewards from trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import SignalError
from cuvee.core.mixture import check_names


@dataclass(frozen=True, eq=False)
class Measured:
    """An array in which every entry is finite or explicitly absent.

    `present` marks the measured entries; `values` is 0 in the others. For example, the loss of a
    domain without tokens in a batch is absent: neither 0 nor NaN. Raises `SignalError` if a present
    value is not finite.

    >>> Measured.mean([6.0, 0.0], [2, 0]).to_json()
    [3.0, None]
    """

    values: FloatArray
    present: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        present = np.array(np.broadcast_to(self.present, values.shape), dtype=np.bool_)
        if not np.isfinite(values[present]).all():
            bad = values[present][~np.isfinite(values[present])][0]
            raise SignalError(f"a measurement is {bad}: it must be finite, or declared absent")
        values[~present] = 0.0
        values.setflags(write=False)
        present.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "present", present)

    @classmethod
    def all(cls, values: npt.ArrayLike) -> Measured:
        """Return an array in which every entry is present."""
        array = np.asarray(values, dtype=np.float64)
        return cls(array, np.ones(array.shape, dtype=np.bool_))

    @classmethod
    def absent(cls, shape: int | tuple[int, ...]) -> Measured:
        """Return an array of this shape in which every entry is absent."""
        return cls(np.zeros(shape), np.zeros(shape, dtype=np.bool_))

    @classmethod
    def mean(cls, sums: npt.ArrayLike, counts: npt.ArrayLike) -> Measured:
        """Return sums / counts, absent where the count is 0."""
        sums_, counts_ = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
        present = counts_ > 0
        return cls(sums_ / np.where(present, counts_, 1.0), present)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def filled(self, default: float | FloatArray) -> FloatArray:
        """Return a writable copy with `default` in the absent entries."""
        return np.where(self.present, self.values, default)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Measured)
            and self.shape == other.shape
            and bool((self.present == other.present).all())
            and self.values.tobytes() == other.values.tobytes()
        )

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> Any:
        """Return nested lists with None for absent entries."""
        listed = np.full(self.shape, None, dtype=object)
        listed[self.present] = self.values[self.present]
        return listed.tolist()

    @classmethod
    def from_json(cls, data: Any) -> Measured:
        as_objects = np.array(data, dtype=object)
        present = np.array(
            np.frompyfunc(lambda entry: entry is not None, 1, 1)(as_objects), dtype=np.bool_
        )
        values = np.where(present, as_objects, 0.0).astype(np.float64)
        return cls(values, present)


@dataclass(frozen=True, eq=False)
class Signals:
    """The measurements at the end of one interval.

    The first signals of a run are measured before its first step.

    `step` is the number of optimizer steps done. `progress` is the used share of the token budget,
    from 0 to 1. `tokens_K` (K,) counts the tokens drawn from each domain in this interval. `loss`
    (K,) is the mean training loss of each domain in nats per token. `probes` holds the results of
    the policy's probes by probe name. Raises `SignalError` for a wrong shape or a value out of
    range.
    """

    domains: tuple[Domain, ...]
    step: int
    progress: float
    tokens_K: npt.NDArray[np.int64]
    loss: Measured
    probes: Mapping[str, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.names)
        tokens_K = np.array(self.tokens_K, dtype=np.int64)
        if tokens_K.shape != (len(self.domains),) or (tokens_K < 0).any():
            raise SignalError(
                f"tokens by domain must be {len(self.domains)} counts ≥ 0, got {tokens_K.tolist()}"
            )
        if self.loss.shape != (len(self.domains),):
            raise SignalError(
                f"losses by domain must have shape ({len(self.domains)},), got {self.loss.shape}"
            )
        if not 0.0 <= self.progress <= 1.0:  # also refuses NaN
            raise SignalError(f"progress is {self.progress}: it must lie between 0 and 1")
        if self.step < 0:
            raise SignalError(f"step is {self.step}: it must not be negative")
        tokens_K.setflags(write=False)
        object.__setattr__(self, "tokens_K", tokens_K)
        object.__setattr__(self, "probes", dict(self.probes))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Signals)
            and self.domains == other.domains
            and (self.step, self.progress) == (other.step, other.progress)
            and self.tokens_K.tobytes() == other.tokens_K.tobytes()
            and self.loss == other.loss
            and self.probes == other.probes
        )

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """Return everything except the domains, which the trajectory writes once."""
        return {
            "step": self.step,
            "progress": self.progress,
            "tokens": self.tokens_K.tolist(),
            "loss": self.loss.to_json(),
            "probes": {name: measured.to_json() for name, measured in self.probes.items()},
        }

    @classmethod
    def from_json(cls, domains: tuple[Domain, ...], data: Mapping[str, Any]) -> Signals:
        return cls(
            domains=domains,
            step=data["step"],
            progress=data["progress"],
            tokens_K=np.array(data["tokens"], dtype=np.int64),
            loss=Measured.from_json(data["loss"]),
            probes={
                name: Measured.from_json(measured) for name, measured in data["probes"].items()
            },
        )

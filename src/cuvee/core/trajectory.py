"""`Trajectory`: the mixtures and signals of a run. `Run`: a trajectory with seed and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.epochs import TokensRead
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals


class Trajectory:
    """An append-only history: signals₀, mixture₀, signals₁, mixture₁, …

    `mixtures[t]` was in force between `signals[t]` and `signals[t + 1]`. `append` returns a new
    trajectory and leaves this one unchanged. The two share storage, so a run of T intervals takes
    O(T) memory.

    >>> from cuvee.testing.runs import example_run
    >>> trajectory = example_run("odm", intervals=20).trajectory
    >>> trajectory
    Trajectory(20 intervals, 8 domains, step 200, 100% of the budget)
    >>> trajectory.weights_TK().shape
    (20, 8)
    """

    __slots__ = ("_mixtures", "_read", "_signals", "_steps", "_totals")

    def __init__(self, signals: Sequence[Signals], mixtures: Sequence[Mixture] = ()) -> None:
        assert len(signals) == len(mixtures) + 1, (
            "a trajectory has one signal more than it has mixtures"
        )
        self._signals = list(signals)
        self._mixtures = list(mixtures)
        self._totals = np.cumsum([one.tokens_K.sum() for one in signals]).tolist()
        self._steps = len(mixtures)
        self._read: TokensRead | None = None

    @classmethod
    def start(cls, signals: Signals) -> Trajectory:
        """Return the trajectory of a run before its first interval."""
        return cls([signals])

    def append(self, mixture: Mixture, signals: Signals) -> Trajectory:
        """Return this trajectory with one more interval.

        Domains that `mixture` does not have, because they were added during the interval, get
        weight 0.
        """
        if mixture.names != signals.names:
            mixture = mixture.to(signals.names)
        longer = object.__new__(Trajectory)
        if len(self._mixtures) == self._steps:  # this is the newest: extend the lists in place
            longer._signals = self._signals
            longer._mixtures = self._mixtures
            longer._totals = self._totals
        else:  # another trajectory was already appended to this one: copy
            longer._signals = self._signals[: self._steps + 1]
            longer._mixtures = self._mixtures[: self._steps]
            longer._totals = self._totals[: self._steps + 1]
        longer._signals.append(signals)
        longer._mixtures.append(mixture)
        longer._totals.append(longer._totals[-1] + int(signals.tokens_K.sum()))
        longer._steps = self._steps + 1
        longer._read = None
        if self._read is not None:
            longer._read = self._read.copy()
            longer._read.add(signals)
        return longer

    def __len__(self) -> int:
        """T, the number of finished intervals."""
        return self._steps

    @property
    def signals(self) -> Sequence[Signals]:
        """The T + 1 signals."""
        return self._signals[: self._steps + 1]

    @property
    def mixtures(self) -> Sequence[Mixture]:
        """The T mixtures."""
        return self._mixtures[: self._steps]

    @property
    def last(self) -> Signals:
        """The newest signals."""
        return self._signals[self._steps]

    @property
    def last_mixture(self) -> Mixture | None:
        """The mixture of the last interval, or None before the first."""
        return self._mixtures[self._steps - 1] if self._steps else None

    @property
    def domains(self) -> tuple[Domain, ...]:
        """The current domains. Earlier signals may have fewer."""
        return self.last.domains

    @property
    def names(self) -> tuple[str, ...]:
        return self.last.names

    def tokens_T1(self) -> npt.NDArray[np.int64]:
        """Return the (T + 1,) training tokens of all domains up to each signal."""
        return np.array(self._totals[: self._steps + 1], dtype=np.int64)

    def tokens_read(self) -> TokensRead:
        """Return the training tokens of each domain in all intervals, retired ones included.

        The first call is O(T K). If every trajectory of a run is asked, a call is O(K). The result
        may be added to.
        """
        if self._read is None:
            self._read = TokensRead()
            for signals in self.signals:
                self._read.add(signals)
        return self._read.copy()

    def weights_TK(self) -> FloatArray:
        """Return the (T, K) weights over the current domains; 0 before a domain was added."""
        weights_TK = np.empty((len(self), len(self.names)))
        for row_K, mixture in zip(weights_TK, self.mixtures, strict=True):
            if mixture.names == self.names:
                row_K[:] = mixture.weights_K
            else:
                shares = mixture.as_dict()
                row_K[:] = [shares.get(name, 0.0) for name in self.names]
        return weights_TK

    def at(self, t: int) -> Signals:
        """Return the signals after `t` intervals, in O(1)."""
        assert 0 <= t <= self._steps, f"there are {self._steps} intervals, not {t}"
        return self._signals[t]

    def since(self, t: int) -> Iterator[tuple[Signals, Mixture, Signals]]:
        """Yield (signals before, mixture, signals after) of each interval after the first `t`."""
        for i in range(t, self._steps):
            yield self._signals[i], self._mixtures[i], self._signals[i + 1]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row by interval and domain, as a table.

        Losses are in nats per token, and None where they were not measured. Interval 0 is the
        start: its `weight` is None.
        """
        pairs = zip([None, *self.mixtures], self.signals, strict=True)
        return [row for t, pair in enumerate(pairs) for row in _rows(t, *pair)]

    def to_frame(self) -> Any:
        """Return `rows()` as a `pandas.DataFrame`. Raises `ConfigError` without pandas."""
        try:
            import pandas
        except ImportError:
            raise ConfigError(
                "to_frame needs pandas: pip install pandas, or use rows(), a list of dictionaries"
            ) from None
        return pandas.DataFrame(self.rows())

    def __repr__(self) -> str:
        last = self.last
        return (
            f"Trajectory({len(self)} intervals, {len(self.names)} domains, step {last.step:,}, "
            f"{last.progress:.0%} of the budget)"
        )

    def __iter__(self) -> Iterator[tuple[Signals, Mixture, Signals]]:
        """Yield (signals before, mixture, signals after) of each interval."""
        return self.since(0)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Trajectory)
            and list(self.signals) == list(other.signals)
            and list(self.mixtures) == list(other.mixtures)
        )

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        # A list of domains is written once for each stretch of intervals that share it.
        spaces: list[tuple[Domain, ...]] = []
        rows = []
        for signals in self.signals:
            if not spaces or spaces[-1] != signals.domains:
                spaces.append(signals.domains)
            rows.append({"space": len(spaces) - 1, **signals.to_json()})
        return {
            "domains": [[domain.to_json() for domain in space] for space in spaces],
            "signals": rows,
            "mixtures": [mixture.to_json() for mixture in self.mixtures],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trajectory:
        spaces = [tuple(Domain.from_json(domain) for domain in space) for space in data["domains"]]
        return cls(
            signals=[
                Signals.from_json(spaces[signals["space"]], signals) for signals in data["signals"]
            ],
            mixtures=[Mixture.from_json(mixture) for mixture in data["mixtures"]],
        )


def _rows(t: int, mixture: Mixture | None, signals: Signals) -> Iterator[dict[str, Any]]:
    weights = mixture.as_dict() if mixture else {}
    absent = Measured.absent(len(signals.domains))
    measured = {"loss": signals.loss} | {
        name: signals.probes.get(name, absent) for name in ("valid_loss", "test_loss")
    }
    losses_K = {name: loss.to_json() for name, loss in measured.items()}
    for k, domain in enumerate(signals.domains):
        yield {
            "interval": t,
            "step": signals.step,
            "domain": domain.name,
            "role": domain.role,
            "tokens": int(signals.tokens_K[k]),
            "weight": weights.get(domain.name),
            **{name: values[k] for name, values in losses_K.items()},
        }


Reward = Callable[[Trajectory], float | None]
"""Return the reward of the last interval of a trajectory, or None if an input is not measured."""


def prefixes(trajectory: Trajectory) -> Iterator[Trajectory]:
    """Yield the T + 1 prefixes of a trajectory, shortest first, in O(T) in total."""
    so_far = Trajectory.start(trajectory.signals[0])
    yield so_far
    for _, mixture, after in trajectory:
        so_far = so_far.append(mixture, after)
        yield so_far


def rewards(trajectory: Trajectory, reward: Reward) -> Measured:
    """Return the (T,) reward of each interval, absent where `reward` returns None.

    `reward` is called once for each interval, in order.
    """
    found = [reward(so_far) for so_far in prefixes(trajectory) if len(so_far)]
    return Measured(
        np.array([value or 0.0 for value in found]),
        np.array([value is not None for value in found], bool),
    )


def returns(rewards_T: npt.ArrayLike, discount: float = 1.0, final: float = 0.0) -> FloatArray:
    """Return the (T,) discounted returns G_t = r_t + γ G_{t+1}, with G_T = `final`."""
    rewards_T = np.asarray(rewards_T, dtype=np.float64)
    returns_T = np.zeros(len(rewards_T))
    following = final
    for t in reversed(range(len(rewards_T))):
        following = returns_T[t] = rewards_T[t] + discount * following
    return returns_T


@dataclass(frozen=True)
class Cost:
    """A cost in training tokens, floating-point operations and wall-clock seconds."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds
        )


@dataclass(frozen=True)
class Run:
    """A trajectory with the seed and configuration that reproduce it and with its cost.

    `checkpoint` and `policy` are the folders of the saved model and policy, or None if not kept.
    `diverged`: it ended because a loss or gradient was not finite.
    """

    id: str
    seed: int
    config: Mapping[str, Any]
    trajectory: Trajectory
    cost: Cost = field(default_factory=Cost)
    checkpoint: str | None = None
    policy: str | None = None
    diverged: bool = False

    def __repr__(self) -> str:
        return f"Run({self.id!r}, seed {self.seed}, {self.cost.tokens:,} tokens, {self.trajectory})"

"""The schedule: how many rows of every domain every global step holds, under a log of mixtures that grows as training goes.

It knows domains by name and size and nothing of tokens, ranks or workers. Between two changes the counts are a closed form of
the step (`apportion`), so its whole state is one row for each domain, the mixture in force, and what is logged but not yet due.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import BoolArray, IntArray
from cuvee.core.errors import CheckpointError, CorpusExhausted, MixtureError
from cuvee.core.mixture import Mixture
from cuvee.data.stream.apportion import Quota, ShareArray, integer_shares, spread
from cuvee.data.stream.multinomial import Multinomial

Sampling = Literal["quota", "multinomial"]

UNLIMITED = 1 << 62
_RANDOM_STEPS = 4096


@dataclass(frozen=True)
class MixtureUpdate:
    """One row of the mixture log. `log_digest` is a hash chain: two logs that agree on it agree on every row before."""

    version: int
    step: int
    kind: str
    """"mixture", or the change of domains that came with it: "add NAME", "retire NAME", "rename OLD NEW"."""
    mixture: Mixture
    log_digest: str

    @classmethod
    def after(
        cls, last: MixtureUpdate | None, step: int, kind: str, mixture: Mixture
    ) -> MixtureUpdate:
        version = last.version + 1 if last else 0
        row = json.dumps([last.log_digest if last else "", version, step, kind, mixture.digest()])
        return cls(version, step, kind, mixture, hashlib.sha256(row.encode()).hexdigest())

    @cached_property
    def mixture_digest(self) -> str:
        return self.mixture.digest()

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "step": self.step,
            "kind": self.kind,
            "mixture": self.mixture.to_json(),
            "log_digest": self.log_digest,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MixtureUpdate:
        return cls(
            data["version"],
            data["step"],
            data["kind"],
            Mixture.from_json(data["mixture"]),
            data["log_digest"],
        )


@dataclass(frozen=True)
class Segment:
    """Steps from `start` on under one executed mixture: `fixed_K` rows of domains that run out in its only step, if any, and
    the rest by `source`. `active_K` marks the domains that give rows."""

    start: int
    executed: Mixture
    fixed_K: IntArray
    active_K: BoolArray
    source: Quota | Multinomial | None

    def counts(self, step: int, steps: int) -> IntArray:
        """(steps + 1, K) rows given since `start` before global steps `step`, `step` + 1, …"""
        offset = step - self.start
        fixed_TK = np.arange(offset, offset + steps + 1)[:, None] * self.fixed_K
        return fixed_TK + self.source.counts(offset, steps) if self.source else fixed_TK

    def credit_at(self, step: int) -> IntArray:
        """Asked minus realised before a later step than `start`, in units of 2^-58 rows; none is kept for random counts."""
        if not isinstance(self.source, Quota):
            return np.zeros_like(self.fixed_K)
        offset = step - self.start
        return self.source.credit_at(offset, self.source.counts(offset, 1)[0])


class RowSchedule:
    """Counts of every step from the log, the caps and the sampling rule. `cap_K` is the rows a domain may ever give."""

    def __init__(
        self,
        names: tuple[str, ...],
        cap_K: IntArray,
        batch_size: int,
        seed: int,
        sampling: Sampling,
    ) -> None:
        self.names = names
        self.cap_K = cap_K
        self.batch_size = batch_size
        self.seed = seed
        self.sampling: Sampling = sampling
        self.position = 0
        self.current: MixtureUpdate | None = None
        self.pending: list[MixtureUpdate] = []
        self._start = 0
        self._drawn_K = np.zeros(len(names), dtype=np.int64)
        self._credit_K = np.zeros(len(names), dtype=np.int64)
        self._segment: Segment | None = None

    # The log

    def update(
        self, mixture: Mixture, at_step: int | None = None, kind: str = "mixture"
    ) -> MixtureUpdate:
        """Appends a row effective from `at_step`, by default the next step not yet drawn."""
        step = self.position if at_step is None else at_step
        if step < self.position:
            raise MixtureError(
                f"step {step} was already drawn: the first that a mixture can still change is {self.position}"
            )
        if self.pending and step < self.pending[-1].step:
            raise MixtureError(
                f"an update for step {self.pending[-1].step} is already logged: log updates in order, not {step}"
            )
        update = MixtureUpdate.after(
            self.pending[-1] if self.pending else self.current, step, kind, mixture.to(self.names)
        )
        self.pending.append(update)
        return update

    @property
    def last_version(self) -> int:
        last = self.pending[-1] if self.pending else self.current
        return last.version if last else -1

    def settle(self) -> bool:
        """Brings what is due at the present step into force. False if nothing can be drawn any more."""
        while self.pending and self.pending[0].step <= self.position:
            self._anchor()
            self.current = self.pending.pop(0)
            self._segment = None
        if self._segment and (self._ran_out(self.position) or self._overdrawn(self.position + 1)):
            self._anchor()
            self._segment = None
        if self._segment is None:
            self._segment = self._begin()
        return self._segment is not None

    @property
    def executed(self) -> Mixture:
        """The mixture of the next step: what was asked, projected on the domains that still have something to give."""
        return self._ready().executed

    # Counts

    def drawn_K(self) -> IntArray:
        """(K,) rows of each domain before the present step."""
        if self._segment is None:
            return self._drawn_K
        given_K: IntArray = self._drawn_K + self._segment.counts(self.position, 1)[0]
        return given_K

    def ahead(self, most: int) -> IntArray:
        """(S + 1, K) rows of each domain before the present step and the S next ones, S ≤ `most`, all under one mixture."""
        if self.sampling == "multinomial":
            self._anchor_here()  # random counts are no closed form: they are added up from here
        segment = self._ready()
        steps = min(most, self.pending[0].step - self.position) if self.pending else most
        counts_TK = self._drawn_K + segment.counts(self.position, steps)
        if (
            self._capped
            and (out_S := (counts_TK[1:] >= self.cap_K)[:, segment.active_K].any(axis=1)).any()
        ):
            first_out = int(np.argmax(out_S)) + 1
            overdrawn = bool((counts_TK[first_out] > self.cap_K).any())
            counts_TK = counts_TK[: first_out + 1 - overdrawn]
        return counts_TK

    def advance(self, steps: int) -> None:
        """Moves on over steps that `ahead` returned."""
        self.position += steps

    def seek(self, step: int) -> None:
        """Moves to a later step, or back to one not before the last change, through all that is logged in between."""
        if step < self._start:
            raise MixtureError(
                f"step {step} lies before the last change at step {self._start}: load a state that was saved before it"
            )
        self.position = max(self._start, min(step, self.position))
        while self.position < step:
            self._ready()
            end = min(step, self.pending[0].step) if self.pending else step
            if self.sampling == "multinomial":
                end = min(end, self.position + _RANDOM_STEPS)
            if self._ran_out(end):
                end = _first(self.position, end, self._ran_out)
                end -= self._overdrawn(end)
            self.position = end
            if self.sampling == "multinomial":
                self._anchor_here()

    def forecast(self) -> dict[str, int | None]:
        """The step at which each capped domain runs out if the present mixture stays; None for those that never will.

        What a domain that has run out leaves is shared among the others, which hastens their end; counted in whole rows.
        """
        left_K = (self.cap_K - self.drawn_K()).astype(np.float64)
        asked_K = self.current.mixture.weights_K if self.current else np.zeros(len(self.names))
        step, ends = float(self.position), dict.fromkeys(self.names)
        forecast: dict[str, int | None] = dict(ends)
        active_K = (asked_K > 0) & (left_K > 0)
        for k in np.flatnonzero((left_K <= 0) & (self.cap_K < UNLIMITED)):
            forecast[self.names[k]] = self.position
        while active_K.any():
            rate_K = self.batch_size * np.where(active_K, asked_K, 0.0) / asked_K[active_K].sum()
            capped = np.flatnonzero(active_K & (self.cap_K < UNLIMITED))
            if not capped.size:
                break
            steps = float((left_K[capped] / rate_K[capped]).min())
            step += steps
            left_K -= rate_K * steps
            gone = capped[left_K[capped] <= 1e-6 * self.batch_size]
            for k in gone:
                forecast[self.names[k]] = int(step)
            active_K[gone] = False
        return forecast

    # Domains

    def require_nothing_pending(self) -> None:
        """Raises `MixtureError` if a mixture is logged for a later step, which a change of domains would leave without them."""
        self.settle()
        if self.pending:
            raise MixtureError(
                f"a mixture is logged for step {self.pending[-1].step}: change the domains first, or once it is in force"
            )

    def reshape(
        self, drawn: Mapping[str, int], caps: Mapping[str, int], mixture: Mixture, kind: str
    ) -> MixtureUpdate:
        """Makes `mixture.names` the domains from the present step on, with the rows that each has drawn and may ever draw.

        Credit goes by name, and that of a domain which is no longer there to the others in proportion. A rename is told by
        `kind` alone, "rename OLD NEW".
        """
        self.require_nothing_pending()
        self._anchor_here()
        credit = dict(zip(self.names, self._credit_K.tolist(), strict=True))
        match kind.split():
            case ["rename", old, new]:
                credit[new] = credit.pop(old)
        self.names, self._segment = mixture.names, None
        self._drawn_K = np.array([drawn[name] for name in self.names], dtype=np.int64)
        self.cap_K = np.maximum(
            np.array([caps[name] for name in self.names], dtype=np.int64), self._drawn_K
        )
        kept_K = np.array([credit.get(name, 0) for name in self.names], dtype=np.int64)
        self._credit_K = spread(kept_K, -int(kept_K.sum()), integer_shares(mixture.weights_K))
        update = self.update(mixture, kind=kind)
        self.settle()
        return update

    # State

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        if self.sampling == "multinomial":
            self._anchor_here()
        assert self.current is not None
        return {
            "step": self.position,
            "since": self._start,
            "current": self.current.to_json(),
            "pending": [update.to_json() for update in self.pending],
            "drawn": self._drawn_K.tolist(),
            "credit": self._credit_K.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.current = MixtureUpdate.from_json(state["current"])
        self.pending = [MixtureUpdate.from_json(update) for update in state["pending"]]
        self._start = state["since"]
        self._drawn_K = np.array(state["drawn"], dtype=np.int64)
        self._credit_K = np.array(state["credit"], dtype=np.int64)
        self.cap_K = np.maximum(
            self.cap_K, self._drawn_K
        )  # one that came back may have given more than its new cap
        if int(self._credit_K.sum()) != 0:
            raise CheckpointError("the stream state is damaged: its credits do not sum to zero")
        self.position = self._start
        self._segment = self._begin()
        self.position = state["step"]

    # Segments

    def _ready(self) -> Segment:
        if not self.settle():
            raise CorpusExhausted(self._why_exhausted())
        assert self._segment is not None
        return self._segment

    def _why_exhausted(self) -> str:
        assert self.current is not None
        left_K = self.cap_K - self.drawn_K()
        idle = [
            n
            for n, left, w in zip(self.names, left_K, self.current.mixture.weights_K, strict=True)
            if left > 0 and not w
        ]
        hint = f"; {', '.join(idle)} has rows left but weight 0" if idle else ""
        return (
            f"at step {self.position} the domains that have weight hold fewer than the {self.batch_size} rows of a batch "
            f"under their epoch caps{hint}: raise the caps, add a domain or end the run here"
        )

    def _anchor(self) -> None:
        """Makes the present step the origin from which counts are computed. Looking, at a step, changes nothing: what a segment
        that never gave a row did to the credit is forgotten with it."""
        if self._segment is not None and self.position > self._start:
            self._drawn_K, self._credit_K = self.drawn_K(), self._segment.credit_at(self.position)
        self._start = self.position

    def _anchor_here(self) -> None:
        if self._segment is not None and self.position > self._start:
            self._anchor()
            self._segment = self._begin()

    def _begin(self) -> Segment | None:
        """The segment that starts at the origin: the asked mixture, less what no domain can give (water-filling).

        A domain that has fewer rows left than this step wants gives exactly those, and the surplus goes to the others in
        proportion; the next step begins another segment without it.
        """
        if self.current is None:
            return None
        asked_K = self.current.mixture.weights_K
        left_K = self.cap_K - self._drawn_K
        limited_K = (left_K <= 0) & (asked_K > 0)
        while True:
            segment = self._with_limits(asked_K, left_K, limited_K)
            if segment is None:
                return None
            over_K = (segment.counts(self._start, 1)[1] > left_K) & ~limited_K
            if not over_K.any():
                return segment
            limited_K = limited_K | over_K

    def _with_limits(
        self, asked_K: npt.NDArray[np.float64], left_K: IntArray, limited_K: BoolArray
    ) -> Segment | None:
        free_K = np.where(limited_K, 0.0, asked_K)
        fixed_K = np.where(limited_K, left_K, 0)
        rows = self.batch_size - int(fixed_K.sum())
        if rows > 0 and not free_K.any():
            return None
        assert rows >= 0, "limited domains give less than they were asked for"
        source: Quota | Multinomial | None = None
        executed_K = fixed_K / self.batch_size
        if rows:
            shares_K = integer_shares(free_K)
            source = self._source(rows, shares_K, limited_K)
            executed_K = executed_K + rows / self.batch_size * (free_K / free_K.sum())
        executed = (
            self.current.mixture
            if self.current and not limited_K.any()
            else Mixture.normalise(self.names, executed_K)
        )
        return Segment(self._start, executed, fixed_K, (free_K > 0) | (fixed_K > 0), source)

    def _source(self, rows: int, shares_K: ShareArray, limited_K: BoolArray) -> Quota | Multinomial:
        if self.sampling == "multinomial":
            return Multinomial(rows, shares_K, self.seed, self._start * self.batch_size)
        kept_K = np.where(limited_K, 0, self._credit_K)
        return Quota(rows, shares_K, spread(kept_K, -int(kept_K.sum()), shares_K))

    def _ran_out(self, step: int) -> bool:
        """Whether a domain that gives rows in the present segment has given its last, or more, before `step`."""
        if not self._capped or self._segment is None:
            return False
        out_K = self._drawn_K + self._segment.counts(step, 1)[0] >= self.cap_K
        return bool((out_K & self._segment.active_K).any())

    def _overdrawn(self, step: int) -> bool:
        """Whether the present segment would give more rows of a domain than it has before `step`."""
        if not self._capped or self._segment is None:
            return False
        return bool((self._drawn_K + self._segment.counts(step, 1)[0] > self.cap_K).any())

    @property
    def _capped(self) -> bool:
        return bool((self.cap_K < UNLIMITED).any())


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first step in (low, high] at which `holds`, which is false at `low`, true at `high` and changes once."""
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high

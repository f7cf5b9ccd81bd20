"""The row schedule: how many rows of every domain each global step holds, given a log of mixtures.

It knows domains by name and size only: no tokens, ranks or workers. Between two changes, the counts
are a closed form of the step (`apportion`). The state is therefore one row per domain, the mixture
in force, and the updates that are logged for later steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    """One entry of the mixture log.

    `log_digest` is a hash chain: logs with equal digests have equal entries up to here.
    """

    version: int
    step: int
    kind: str
    """What changed: "mixture", "retire NAME" or "rename OLD NEW"."""
    mixture: Mixture
    log_digest: str

    @classmethod
    def after(
        cls, last: MixtureUpdate | None, step: int, kind: str, mixture: Mixture
    ) -> MixtureUpdate:
        """Return the entry that follows `last`."""
        version = last.version + 1 if last else 0
        row = json.dumps([last.log_digest if last else "", version, step, kind, mixture.digest()])
        return cls(version, step, kind, mixture, hashlib.sha256(row.encode()).hexdigest())

    @cached_property
    def mixture_digest(self) -> str:
        return self.mixture.digest()

    def over(self, names: tuple[str, ...]) -> MixtureUpdate:
        """Return the same entry over more domains, with the digest that it was logged with."""
        return replace(self, mixture=self.mixture.to(names))

    def to_json(self) -> dict[str, Any]:
        return {**self.without_names(), "mixture": self.mixture.to_json()}

    def without_names(self) -> dict[str, Any]:
        """Return the entry as JSON data, with the weights alone for a mixture."""
        return {
            "version": self.version,
            "step": self.step,
            "kind": self.kind,
            "mixture": self.mixture.weights_K.tolist(),
            "log_digest": self.log_digest,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], names: tuple[str, ...] = ()) -> MixtureUpdate:
        """Read an entry. `names` are those of the domains if the entry has none."""
        mixture = data["mixture"]
        if isinstance(mixture, list):
            mixture = {"names": names, "weights": mixture}
        return cls(
            data["version"],
            data["step"],
            data["kind"],
            Mixture.from_json(mixture),
            data["log_digest"],
        )


@dataclass(frozen=True)
class Segment:
    """The steps from `start` on under one executed mixture.

    `fixed_K` are the rows of domains that run out in the segment's only step, if there are any.
    `source` distributes the other rows. `active_K` marks the domains that give rows.
    """

    start: int
    executed: Mixture
    fixed_K: IntArray
    active_K: BoolArray
    source: Quota | Multinomial | None

    def counts(self, step: int, steps: int) -> IntArray:
        """Return (steps + 1, K) rows given since `start` before steps `step`, `step` + 1, …"""
        offset = step - self.start
        fixed_TK = np.arange(offset, offset + steps + 1)[:, None] * self.fixed_K
        return fixed_TK + self.source.counts(offset, steps) if self.source else fixed_TK

    def credit_at(self, step: int) -> IntArray:
        """Return requested minus delivered rows (K,) before `step`, in units of 2^-58.

        `step` must be later than `start`. The result is 0 for random counts.
        """
        if not isinstance(self.source, Quota):
            return np.zeros_like(self.fixed_K)
        offset = step - self.start
        return self.source.credit_at(offset, self.source.counts(offset, 1)[0])


class RowSchedule:
    """The counts of every step, from the log, the epoch caps and the sampling rule.

    `cap_K` is the number of rows that each domain may give in total.
    """

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
        """Append an entry to the log, effective from `at_step`, by default the next undrawn step.

        Raises `MixtureError` if that step was drawn already or precedes the last logged one.
        """
        step = self.position if at_step is None else at_step
        if step < self.position:
            raise MixtureError(
                f"step {step} was already drawn: the first step that a mixture can still change is "
                f"{self.position}"
            )
        if self.pending and step < self.pending[-1].step:
            raise MixtureError(
                f"an update for step {self.pending[-1].step} is already logged: log updates in "
                f"order, not {step}"
            )
        update = MixtureUpdate.after(
            self.pending[-1] if self.pending else self.current, step, kind, mixture.to(self.names)
        )
        self.pending.append(update)
        return update

    @property
    def last_version(self) -> int:
        """The version of the newest logged update, or -1."""
        last = self.pending[-1] if self.pending else self.current
        return last.version if last else -1

    def apply_due(self) -> bool:
        """Apply the updates that are due now. Return False if nothing can be drawn any more."""
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
        """The mixture of the next step.

        It is the requested mixture, restricted to domains that still have rows.
        """
        return self._ready().executed

    # Counts

    def drawn_K(self) -> IntArray:
        """Return (K,) rows of each domain before the current step."""
        if self._segment is None:
            return self._drawn_K
        given_K: IntArray = self._drawn_K + self._segment.counts(self.position, 1)[0]
        return given_K

    def ahead(self, most: int) -> IntArray:
        """Return (S + 1, K) rows of each domain before the current and the S next steps.

        S ≤ `most`; all S steps have the same mixture. Raises `CorpusExhausted`.
        """
        if self.sampling == "multinomial":
            self._anchor_here()  # random counts have no closed form; sum them from here
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
        """Move forward over steps that `ahead` returned."""
        self.position += steps

    def seek(self, step: int) -> None:
        """Move to a later step, applying all updates on the way, or back to the last change.

        Raises `MixtureError` for a step before the last change.
        """
        if step < self._start:
            raise MixtureError(
                f"step {step} lies before the last change at step {self._start}: load a state "
                "that was saved before it"
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
        """Return the step at which each domain runs out if the mixture does not change, or None.

        When a domain runs out, its share goes to the others, which then run out sooner. Steps are
        rounded down.
        """
        left_K = (self.cap_K - self.drawn_K()).astype(np.float64)
        requested_K = self.current.mixture.weights_K if self.current else np.zeros(len(self.names))
        step = float(self.position)
        forecast: dict[str, int | None] = dict.fromkeys(self.names)
        active_K = (requested_K > 0) & (left_K > 0)
        for k in np.flatnonzero((left_K <= 0) & (self.cap_K < UNLIMITED)):
            forecast[self.names[k]] = self.position
        while active_K.any():
            weights_K = np.where(active_K, requested_K, 0.0)
            rate_K = self.batch_size * weights_K / requested_K[active_K].sum()
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
        """Raise `MixtureError` if a mixture is logged for a later step.

        Domains cannot change then, because that mixture would not name the new domains.
        """
        self.apply_due()
        if self.pending:
            raise MixtureError(
                f"a mixture is logged for step {self.pending[-1].step}: change the domains "
                "first, or once it is in force"
            )

    def extend(self, name: str, cap: int, drawn: int) -> None:
        """Append a domain with weight 0, which has given `drawn` rows. No count changes."""
        self.names = (*self.names, name)
        self._drawn_K = np.append(self._drawn_K, drawn)
        self._credit_K = np.append(self._credit_K, 0)
        self.cap_K = np.append(self.cap_K, max(cap, drawn))
        self.pending = [update.over(self.names) for update in self.pending]
        if self.current is not None:
            self.current = self.current.over(self.names)
            self._segment = self._begin()

    def reshape(
        self, drawn: Mapping[str, int], caps: Mapping[str, int], mixture: Mixture, kind: str
    ) -> MixtureUpdate:
        """Make `mixture.names` the domains from the current step on.

        `drawn` and `caps` give the rows that each domain has given and may give. Credit is kept by
        name; the credit of a removed domain is divided among the others. A rename is recognised by
        `kind`, "rename OLD NEW".
        """
        self.require_nothing_pending()
        self._anchor_here()
        credit = dict(zip(self.names, self._credit_K.tolist(), strict=True))
        match kind.split():
            case ["rename", old, new]:
                credit[new] = credit.pop(old)
        self.names = mixture.names
        self._segment = None
        self._drawn_K = np.array([drawn[name] for name in self.names], dtype=np.int64)
        self.cap_K = np.maximum(
            np.array([caps[name] for name in self.names], dtype=np.int64), self._drawn_K
        )
        kept_K = np.array([credit.get(name, 0) for name in self.names], dtype=np.int64)
        self._credit_K = spread(kept_K, -int(kept_K.sum()), integer_shares(mixture.weights_K))
        update = self.update(mixture, kind=kind)
        self.apply_due()
        return update

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state: JSON-compatible and O(K)."""
        self.apply_due()
        if self.sampling == "multinomial":
            self._anchor_here()
        assert self.current is not None
        return {
            "step": self.position,
            "since": self._start,
            "current": self.current.without_names(),
            "pending": [update.without_names() for update in self.pending],
            "drawn": self._drawn_K.tolist(),
            "credit": self._credit_K.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. Raises `CheckpointError` if it is damaged."""
        self.current = MixtureUpdate.from_json(state["current"], self.names)
        self.pending = [MixtureUpdate.from_json(update, self.names) for update in state["pending"]]
        self._start = state["since"]
        self._drawn_K = np.array(state["drawn"], dtype=np.int64)
        self._credit_K = np.array(state["credit"], dtype=np.int64)
        # A domain that was added again may have given more rows than its new cap.
        self.cap_K = np.maximum(self.cap_K, self._drawn_K)
        if int(self._credit_K.sum()) != 0:
            raise CheckpointError("the stream state is damaged: its credits do not sum to zero")
        self.position = self._start
        self._segment = self._begin()
        self.position = state["step"]

    # Segments

    def _ready(self) -> Segment:
        """Return the current segment. Raises `CorpusExhausted` if there is none."""
        if not self.apply_due():
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
            f"at step {self.position} the domains that have weight hold fewer than the "
            f"{self.batch_size} rows of a batch "
            f"under their epoch caps{hint}: raise the caps, add a domain or end the run here"
        )

    def _anchor(self) -> None:
        """Make the current step the origin from which counts are computed.

        If no row was drawn since the previous origin, drawn rows and credit stay as they are.
        Inspecting a step therefore has no side effects.
        """
        if self._segment is not None and self.position > self._start:
            self._drawn_K = self.drawn_K()
            self._credit_K = self._segment.credit_at(self.position)
        self._start = self.position

    def _anchor_here(self) -> None:
        """Move the origin to the current step within the current segment."""
        if self._segment is not None and self.position > self._start:
            self._anchor()
            self._segment = self._begin()

    def _begin(self) -> Segment | None:
        """Return the segment that starts at the origin, or None if a batch cannot be filled.

        A domain with fewer rows left than this step requests gives exactly those. The surplus is
        divided among the others in proportion (water-filling). The next step then begins a segment
        without it.
        """
        if self.current is None:
            return None
        requested_K = self.current.mixture.weights_K
        left_K = self.cap_K - self._drawn_K
        limited_K = (left_K <= 0) & (requested_K > 0)
        while True:
            segment = self._with_limits(requested_K, left_K, limited_K)
            if segment is None:
                return None
            over_K = (segment.counts(self._start, 1)[1] > left_K) & ~limited_K
            if not over_K.any():
                return segment
            limited_K = limited_K | over_K

    def _with_limits(
        self, requested_K: npt.NDArray[np.float64], left_K: IntArray, limited_K: BoolArray
    ) -> Segment | None:
        """Return the segment in which the domains of `limited_K` give all their rows, or None."""
        free_K = np.where(limited_K, 0.0, requested_K)
        fixed_K = np.where(limited_K, left_K, 0)
        rows = self.batch_size - int(fixed_K.sum())
        if rows > 0 and not free_K.any():
            return None
        assert rows >= 0, "limited domains give fewer rows than requested"
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
        """Whether an active domain of the segment has given its last row before `step`."""
        if not self._capped or self._segment is None:
            return False
        out_K = self._drawn_K + self._segment.counts(step, 1)[0] >= self.cap_K
        return bool((out_K & self._segment.active_K).any())

    def _overdrawn(self, step: int) -> bool:
        """Whether the segment would give more rows of a domain than it has before `step`."""
        if not self._capped or self._segment is None:
            return False
        return bool((self._drawn_K + self._segment.counts(step, 1)[0] > self.cap_K).any())

    @property
    def _capped(self) -> bool:
        return bool((self.cap_K < UNLIMITED).any())


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the first step in (low, high] for which `holds` is true, by bisection.

    `holds` is false at `low`, true at `high` and changes once in between.
    """
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high

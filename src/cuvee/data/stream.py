"""`MixtureStream`: batches under a mixture that may change at any step, the same for any world size and worker count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, ConfigError, CorpusError, FingerprintMismatch, MixtureError
from cuvee.core.mixture import Mixture
from cuvee.data.apportion import Quota, integer_shares
from cuvee.data.batch import Batch, Origin
from cuvee.data.order import dealing_order, rotations
from cuvee.data.permutation import bits_of, epoch_keys, permute, stable_key
from cuvee.data.pool import TokenPool
from cuvee.data.windows import Windows, document_ordinals

IntArray = npt.NDArray[np.int64]
_FORMAT = 1
_PLAN_ROWS = 8192


class Pools(Protocol):
    """The part of a corpus that a stream needs."""

    @property
    def domains(self) -> tuple[Domain, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    def pool(self, name: str, split: Literal["train", "valid"] = "train") -> TokenPool: ...


@dataclass(frozen=True)
class Update:
    """One row of the mixture log."""

    version: int
    step: int
    mixture: Mixture
    log_digest: str


@dataclass(frozen=True)
class _Plan:
    """Rows of consecutive steps, in the order of this rank's lanes."""

    first: int
    domain_SB: IntArray
    epoch_SB: IntArray
    window_SB: IntArray


class MixtureStream(Iterator[Batch]):
    """TBD."""

    def __init__(
        self,
        corpus: Pools,
        mixture: Mixture,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        split: Literal["train", "valid"] = "train",
        sampling: Literal["quota", "multinomial"] = "quota",
        epoch_caps: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(f"batch_size {batch_size} is not divisible by world_size {world_size}")
        self.corpus, self.batch_size, self.sequence_length, self.seed = corpus, batch_size, sequence_length, seed
        self.split, self.rank, self.world_size = split, rank, world_size
        self.names = tuple(domain.name for domain in corpus.domains)
        self._windows = [Windows(corpus.pool(name, split), sequence_length) for name in self.names]
        self._size_K = np.array([len(windows) for windows in self._windows], dtype=np.int64)
        self._bits_K = bits_of(self._size_K)
        self._key_K = np.array([stable_key("domain", seed, name) for name in self.names], dtype=np.uint64)
        share = batch_size // world_size
        self._lanes_B = dealing_order(batch_size)[rank * share : (rank + 1) * share]
        self.position = 0
        self._version = -1
        self._log_digest = ""
        self._pending: list[Update] = []
        self._start = 0
        self._drawn_K = np.zeros(len(self.names), dtype=np.int64)
        self._credit_K = np.zeros(len(self.names), dtype=np.int64)
        self._plan: _Plan | None = None
        self.set_mixture(mixture)

    def set_mixture(self, mixture: Mixture, at_step: int | None = None) -> Update:
        """Logs `mixture` as effective from `at_step`, by default the next step not yet drawn."""
        step = self.position if at_step is None else at_step
        if step < self.position:
            raise MixtureError(f"step {step} was already drawn; the next one not drawn is {self.position}")
        if self._pending and step < self._pending[-1].step:
            raise MixtureError(f"an update for step {self._pending[-1].step} is already logged; {step} is before it")
        mixture = mixture.to(self.names)
        empty = [
            name
            for name, weight, size in zip(self.names, mixture.weights_K, self._size_K, strict=True)
            if weight and not size
        ]
        if empty:
            raise CorpusError(f"{', '.join(empty)} has no tokens in split {self.split}: give it weight 0")
        last = self._pending[-1] if self._pending else None
        version = (last.version if last else self._version) + 1
        row = json.dumps([last.log_digest if last else self._log_digest, version, step, mixture.digest()])
        update = Update(version, step, mixture, hashlib.sha256(row.encode()).hexdigest())
        self._pending.append(update)
        self._plan = None
        return update

    @property
    def mixture(self) -> Mixture:
        """The mixture in force at the next step."""
        self._settle()
        return self._mixture

    def __iter__(self) -> MixtureStream:
        return self

    def __next__(self) -> Batch:
        plan = self._planned()
        row = self.position - plan.first
        batch = self._gather(plan.domain_SB[row], plan.epoch_SB[row], plan.window_SB[row])
        self.position += 1
        return batch

    def counts(self) -> dict[str, int]:
        """Rows of each domain drawn so far, over all ranks."""
        return dict(zip(self.names, self._counts_K().tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        drawn, credit = self._drawn_K.tolist(), self._credit_K.tolist()
        return {
            "format": _FORMAT,
            "fingerprint": self.corpus.fingerprint,
            "split": self.split,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "step": self.position,
            "version": self._version,
            "log_digest": self._log_digest,
            "mixture": self._mixture.to_json(),
            "since": self._start,
            "domains": {name: {"drawn": drawn[k], "credit": credit[k]} for k, name in enumerate(self.names)},
            "pending": [
                {"version": u.version, "step": u.step, "mixture": u.mixture.to_json(), "log_digest": u.log_digest}
                for u in self._pending
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["format"] != _FORMAT:
            raise CheckpointError(f"stream state has format {state['format']}; this version of cuvee reads {_FORMAT}")
        if state["fingerprint"] != self.corpus.fingerprint:
            raise FingerprintMismatch(
                f"the state was saved on corpus {state['fingerprint']} but this stream reads {self.corpus.fingerprint}"
            )
        for name in ("split", "batch_size", "sequence_length", "seed"):
            if state[name] != getattr(self, name):
                raise CheckpointError(
                    f"the state was saved with {name}={state[name]}, this stream has {getattr(self, name)}"
                )
        self.position, self._version, self._log_digest = state["step"], state["version"], state["log_digest"]
        self._start = state["since"]
        self._drawn_K = np.array([state["domains"][name]["drawn"] for name in self.names], dtype=np.int64)
        self._credit_K = np.array([state["domains"][name]["credit"] for name in self.names], dtype=np.int64)
        self._pending = [
            Update(u["version"], u["step"], Mixture.from_json(u["mixture"]), u["log_digest"]) for u in state["pending"]
        ]
        self._enter(Mixture.from_json(state["mixture"]))
        self._plan = None

    def _enter(self, mixture: Mixture) -> None:
        self._mixture, self._digest = mixture, mixture.digest()
        self._quota = Quota(self.batch_size, integer_shares(mixture.weights_K), self._credit_K)

    def _counts_K(self) -> IntArray:
        self._settle()
        steps = self.position - self._start
        return self._drawn_K + self._quota.counts(steps, 1)[0]

    def _settle(self) -> None:
        """Brings updates that are due at the present step into force."""
        while self._pending and self._pending[0].step <= self.position:
            update = self._pending.pop(0)
            if self._version >= 0:
                steps = update.step - self._start
                given_K = self._quota.counts(steps, 1)[0]
                self._credit_K = self._quota.credit_at(steps, given_K)
                self._drawn_K = self._drawn_K + given_K
            self._start, self._version, self._log_digest = update.step, update.version, update.log_digest
            self._enter(update.mixture)
            self._plan = None

    def _planned(self) -> _Plan:
        self._settle()
        plan = self._plan
        if plan is None or not plan.first <= self.position < plan.first + len(plan.domain_SB):
            steps = max(1, _PLAN_ROWS // self.batch_size)
            if self._pending:
                steps = min(steps, self._pending[0].step - self.position)
            plan = self._plan = self._draw(self.position, steps)
        return plan

    def _draw(self, first: int, steps: int) -> _Plan:
        cumulative_TK = self._drawn_K + self._quota.counts(first - self._start, steps)
        rows_SK = np.diff(cumulative_TK, axis=0)
        rows = rows_SK.ravel()
        domain_N = np.repeat(np.tile(np.arange(len(self.names)), steps), rows)
        offset_N = np.repeat(cumulative_TK[:-1].ravel() - (np.cumsum(rows) - rows), rows)
        draw_N = np.arange(steps * self.batch_size) + offset_N
        dealt_SB = (
            self._lanes_B + rotations(self.seed, np.arange(first, first + steps), self.batch_size)[:, None]
        ) % self.batch_size
        dealt_SB += np.arange(steps)[:, None] * self.batch_size
        domain_SB, draw_SB = domain_N[dealt_SB], draw_N[dealt_SB]
        size_SB = self._size_K[domain_SB]
        epoch_SB, index_SB = np.divmod(draw_SB, size_SB)
        window_SB = permute(
            index_SB.ravel(),
            size_SB.ravel(),
            self._bits_K[domain_SB.ravel()],
            epoch_keys(self._key_K[domain_SB.ravel()], epoch_SB.ravel()),
        ).reshape(domain_SB.shape)
        return _Plan(first, domain_SB, epoch_SB, window_SB)

    def _gather(self, domain_B: IntArray, epoch_B: IntArray, window_B: IntArray) -> Batch:
        length = self.sequence_length
        tokens_BL = np.empty((len(domain_B), length), dtype=np.int64)
        filled_B = np.full(len(domain_B), length)
        for domain in np.unique(domain_B):
            rows = np.flatnonzero(domain_B == domain)
            source = self._windows[domain]
            part = np.empty((len(rows), length), dtype=source.tokens.dtype)
            source.read(window_B[rows], part)
            tokens_BL[rows] = part
            filled_B[rows] = source.filled(window_B[rows])
        return Batch(
            step=self.position,
            names=self.names,
            tokens_BL=tokens_BL,
            domain_B=domain_B,
            counted_BL=np.arange(length) < filled_B[:, None],
            origin=Origin(epoch_B, window_B),
            version=self._version,
            mixture_digest=self._digest,
            log_digest=self._log_digest,
            documents=partial(document_ordinals, self._windows, domain_B, window_B, length),
        )

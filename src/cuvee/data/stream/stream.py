"""`MixtureStream`: batches under a mixture that can change at any step.

The rows of a step depend only on the corpus, the seed and the log of mixtures:

    schedule   step → number of rows of each domain              row_counts.py
    plan       n-th row of a domain → pass and window of tokens  plan.py
    windows    window → tokens                                   windows.py

Ranks and workers each read a part of this one global sequence. Its state is one row per domain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.domain import Domain, Split
from cuvee.core.epochs import epochs_K
from cuvee.core.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    FingerprintMismatch,
    MixtureError,
)
from cuvee.core.mixture import Mixture, check_names
from cuvee.data.stream.apportion import MOST_ROWS
from cuvee.data.stream.batch import Batch, Origin
from cuvee.data.stream.domain_state import Pools, StreamDomain, open_again
from cuvee.data.stream.plan import BatchPlan, Planner
from cuvee.data.stream.row_counts import MixtureUpdate, RowSchedule, Sampling
from cuvee.data.stream.windows import Reader, document_ordinals

_FORMAT = 2
"""Format 1 lists the domains and their names always."""
_PLAN_ROWS = 32768
_BLOCK_BYTES = 1 << 24


class MixtureStream(Iterator[Batch]):
    """An endless iterator of batches. Each rank gets `batch_size / world_size` rows of every step.

    `epoch_caps` limits the number of passes over a domain: `{"books": 1.5}`. Domains without a cap
    repeat without limit. `sampling` is "quota" (counts follow the mixture to within one row) or
    "multinomial" (each row draws its domain at random). `next` raises `CorpusExhausted` if the caps
    leave less than a batch. The constructor raises `ConfigError`, `MixtureError` or `CorpusError`.

    >>> import numpy as np
    >>> from cuvee.data.stream.memory import MemoryCorpus, TokenPool
    >>> tokens = np.arange(90_000) % 997
    >>> starts = np.arange(0, 90_000, 500)  # of documents
    >>> corpus = MemoryCorpus({name: TokenPool(name, tokens, starts) for name in ("web", "code")})
    >>> stream = MixtureStream(
    ...     corpus, {"web": 0.75, "code": 0.25}, batch_size=32, sequence_length=512, seed=0
    ... )
    >>> batch = next(stream)
    >>> batch.tokens_BL.shape, batch.tokens_K()
    ((32, 512), array([12288,  4096]))
    >>> change = stream.set_mixture({"web": 0.25, "code": 0.75})  # from the next step on
    >>> next(stream).tokens_K()
    array([ 4096, 12288])
    """

    def __init__(
        self,
        corpus: Pools,
        mixture: Mixture | Mapping[str, float],
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        split: Split = "train",
        sampling: Sampling = "quota",
        epoch_caps: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_sizes(batch_size, sequence_length, rank, world_size)
        if sampling not in ("quota", "multinomial"):
            raise ConfigError(f"sampling {sampling!r} is not known: use 'quota' or 'multinomial'")
        self.corpus = corpus
        self.split = split
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.stride = 1
        """Distance between the steps that this copy draws: the number of a loader's workers."""
        names = check_names([domain.name for domain in corpus.domains])
        self.epoch_caps = {name: float(cap) for name, cap in (epoch_caps or {}).items()}
        epochs_K(self.epoch_caps, names)  # raises for unknown domains
        self._retired: dict[str, tuple[StreamDomain, int]] = {}
        self._corpora: dict[str, Pools] = {corpus.fingerprint: corpus}
        self._sources = {one.domain.name: one for one in self._opened(self._at_start())}
        self._schedule = RowSchedule(names, self._caps_K(), batch_size, seed, sampling)
        self._reset()
        self.set_mixture(mixture)

    def __repr__(self) -> str:
        size = f"{self.batch_size} × {self.sequence_length} tokens a step"
        return f"MixtureStream(step {self.position}, {size}, {self.mixture})"

    # Properties

    @property
    def names(self) -> tuple[str, ...]:
        return self._schedule.names

    @property
    def domains(self) -> tuple[Domain, ...]:
        """The current domains, in order."""
        return tuple(self._sources[name].domain for name in self.names)

    @property
    def sampling(self) -> Sampling:
        return self._schedule.sampling

    @property
    def position(self) -> int:
        """The next global step."""
        return self._schedule.position

    @property
    def mixture(self) -> Mixture:
        """The mixture of the next step.

        It is the requested mixture, restricted to domains that still have rows.
        """
        return self._schedule.executed

    @property
    def log_digest(self) -> str:
        """Hash chain over all updates in force. Ranks with equal digests draw the same batches."""
        self._schedule.apply_due()
        assert self._schedule.current is not None
        return self._schedule.current.log_digest

    @property
    def last_version(self) -> int:
        """The version of the newest logged update, in force or not."""
        return self._schedule.last_version

    def rows_drawn(self) -> dict[str, int]:
        """Return the rows of each domain before the next step, over all ranks."""
        self._schedule.apply_due()
        return dict(zip(self.names, self._schedule.drawn_K().tolist(), strict=True))

    def sources(self) -> list[dict[str, Any]]:
        """Return a row for each domain as JSON: its name, its corpus, its name there, its cap."""
        return [source.to_json() for source in self._sources.values()]

    def rows_per_epoch(self) -> dict[str, int]:
        """Return for each domain the number of rows in one pass, ⌈N/L⌉."""
        return {name: len(self._sources[name].windows) for name in self.names}

    def forecast(self) -> dict[str, int | None]:
        """Return the step at which each domain runs out if the mixture does not change, or None."""
        self._schedule.apply_due()
        return self._schedule.forecast()

    # Drawing

    def __iter__(self) -> MixtureStream:
        return self

    def __next__(self) -> Batch:
        if self._plan is None or self.position not in self._plan:
            self._draw()
        assert self._plan is not None
        step = self.position
        batch = self._gather(step, self._plan.index(step))
        self._schedule.advance(1)
        return batch

    def rows(self, step: int, lanes: Sequence[int]) -> Batch:
        """Return the given lanes of the global batch of step `step`, without reading its other
        rows.

        The stream moves to that step. Lane b belongs to rank b // (batch_size / W) of W ranks.
        Lanes must be distinct and between 0 and batch_size − 1; otherwise `ConfigError` is raised.
        """
        lanes_B = np.asarray(lanes, dtype=np.int64)
        if len(set(lanes)) < len(lanes) or not ((lanes_B >= 0) & (lanes_B < self.batch_size)).all():
            raise ConfigError(
                f"lanes {list(lanes)} must be distinct and lie in 0 … {self.batch_size - 1}"
            )
        self.seek(step)
        self._prepare(self._planner.plan(step, self._schedule.ahead(1), lanes_B=lanes_B))
        batch = self._gather(step, 0)
        self._trim()
        return batch

    def tokens_between(self, start: int, stop: int) -> dict[str, int]:
        """Return the tokens of each domain in steps `start` … `stop` − 1, with padding.

        Has no side effects. `start` must not precede the last change of the mixture; updates that
        are logged for later steps are applied.
        """
        schedule = copy.deepcopy(self._schedule)
        schedule.seek(start)
        before_K = schedule.drawn_K()
        schedule.seek(stop)
        rows_K = schedule.drawn_K() - before_K
        return dict(zip(self.names, (rows_K * self.sequence_length).tolist(), strict=True))

    def seek(self, step: int) -> None:
        """Move to global step `step`: a later one, or an earlier one since the last change.

        Raises `MixtureError` for a step before the last change.
        """
        if self._plan is not None and step in self._plan:
            self._schedule.position = step
        else:
            self._schedule.seek(step)
            self._trim()

    # Changing

    def set_mixture(
        self, mixture: Mixture | Mapping[str, float], at_step: int | None = None
    ) -> MixtureUpdate:
        """Log `mixture`, or shares by name, as effective from step `at_step`, by default the next undrawn one.

        Every rank must log the same updates before it draws that step; `Batch.log_digest` shows
        whether it did. Raises `MixtureError` for a step that was drawn already, and `CorpusError`
        if a domain without tokens has weight.
        """
        mixture = Mixture.of(mixture)
        for name, weight in mixture.as_dict().items():
            if weight > 0 and name in self._sources and not len(self._sources[name].windows):
                raise CorpusError(f"{name} has no tokens in split {self.split!r}: give it weight 0")
        update = self._schedule.update(mixture, at_step)
        self._trim()
        return update

    @property
    def corpora(self) -> Mapping[str, Pools]:
        """The corpora that domains come from, by fingerprint."""
        return self._corpora

    def add_domain(self, name: str, corpus: Pools, epoch_cap: float | None = None) -> None:
        """Add domain `name` of `corpus`, as the last one and with weight 0.

        It changes no row and is no entry of the log, so it may come while readers work ahead. Set a
        mixture to give the domain weight. A domain that was in the stream before resumes where it
        stopped, even if it was renamed before it was retired. Raises `MixtureError`.
        """
        if name in self._sources:
            raise MixtureError(
                f"the stream already has a domain {name!r}: retire or rename it first"
            )
        domain = next((one for one in corpus.domains if one.name == name), None)
        length = self.sequence_length
        opened = StreamDomain.open(corpus, name, domain, self.split, length, epoch_cap)
        source = opened.added_from(corpus)
        if present := [other for other, known in self._sources.items() if known.key == source.key]:
            raise MixtureError(
                f"domain {name!r} of that corpus is in the stream already, as {present[0]!r}"
            )
        self._corpora[corpus.fingerprint] = corpus
        _, drawn = self._retired.pop(source.key, (source, 0))
        self._schedule.extend(name, source.rows, drawn)
        self._sources = {**self._sources, name: source}
        self._reset()

    def retire_domain(self, name: str) -> MixtureUpdate:
        """Remove domain `name` from the next step on; its weight goes to the others in proportion.

        Raises `MixtureError`.
        """
        source = self._source(name)
        self._schedule.require_nothing_pending()
        drawn = self.rows_drawn()
        shares = self._requested().as_dict()
        del shares[name]
        if not any(shares.values()):
            raise MixtureError(
                f"{name} holds all the weight: set a mixture of the other domains before "
                "retiring it"
            )
        self._retired[source.key] = (source, drawn[name])
        rest = {other: self._sources[other] for other in shares}
        return self._reshape(
            rest, drawn, Mixture.normalise(tuple(rest), list(shares.values())), f"retire {name}"
        )

    def rename_domain(self, old: str, new: str) -> MixtureUpdate:
        """Rename domain `old` to `new` from the next step on. The order of its rows stays."""
        source = self._source(old)
        if new in self._sources:
            raise MixtureError(f"the stream already has a domain {new!r}")
        self._schedule.require_nothing_pending()
        names = check_names([new if name == old else name for name in self.names])
        sources = {
            name: self._sources[name] if name != new else source.renamed(new) for name in names
        }
        drawn = {**self.rows_drawn(), new: self.rows_drawn()[old]}
        return self._reshape(
            sources, drawn, Mixture(names, self._requested().weights_K), f"rename {old} {new}"
        )

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the global sequence: JSON-compatible, O(K), equal on all ranks.

        The domains are listed if they are no longer those of the corpus.
        """
        domains = self.sources()
        return {
            "format": _FORMAT,
            "fingerprint": self.corpus.fingerprint,
            **{name: getattr(self, name) for name in _FIXED},
            "schedule": self._schedule.state_dict(),
            "domains": None if domains == self._at_start() else domains,
            "retired": [
                {**source.to_json(), "drawn": drawn} for source, drawn in self._retired.values()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], corpora: Sequence[Pools] = ()) -> None:
        """Move to where `state` was saved, at any world size.

        `corpora` are those that domains were added from; those on disk are found again without it.
        Raises `FingerprintMismatch` if a corpus
        differs, and `CheckpointError` if the state is damaged or the stream has another seed, batch
        size, sequence length, split, sampling or epoch caps.
        """
        if state.get("format") not in (1, _FORMAT):
            raise CheckpointError(
                f"stream state has format {state.get('format')!r}; this version of cuvee reads "
                f"formats 1 to {_FORMAT}"
            )
        if state.get("fingerprint") != self.corpus.fingerprint:
            raise FingerprintMismatch(
                f"the state was saved on corpus {state.get('fingerprint')}, but this stream reads "
                f"{self.corpus.fingerprint}: "
                "open the corpus that the run began with"
            )
        for name in _FIXED:
            if state.get(name) != getattr(self, name):
                raise CheckpointError(
                    f"the state was saved with {name} {state.get(name)!r}, but this stream has "
                    f"{getattr(self, name)!r}: "
                    f"create the stream with {name}={state.get(name)!r}"
                )
        self._corpora.update({corpus.fingerprint: corpus for corpus in corpora})
        try:
            listed = self._at_start() if state["domains"] is None else state["domains"]
            self._corpora = open_again([*listed, *state["retired"]], self._corpora)
            sources = {source.domain.name: source for source in self._opened(listed)}
            drawn = [int(row["drawn"]) for row in state["retired"]]
            gone = zip(self._opened(state["retired"]), drawn, strict=True)
            retired = {source.key: (source, rows) for source, rows in gone}
            caps_K = np.array([source.rows for source in sources.values()], dtype=np.int64)
            schedule = RowSchedule(
                tuple(sources), caps_K, self.batch_size, self.seed, self.sampling
            )
            schedule.load_state_dict(state["schedule"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"the stream state is damaged ({error!r}): use an earlier checkpoint"
            ) from error
        self._sources = sources
        self._retired = retired
        self._schedule = schedule
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what determines the order, without prepared batches."""
        return {name: value for name, value in self.__dict__.items() if name not in _PREPARED}

    def __copy__(self) -> MixtureStream:
        """Return a deep copy, because copies advance independently."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # Internals

    def _at_start(self) -> list[dict[str, Any]]:
        """Return the rows of the domains with which the stream began."""
        caps = {name: cap for name, cap in self.epoch_caps.items() if cap != float("inf")}
        fingerprint = self.corpus.fingerprint
        names = [domain.name for domain in self.corpus.domains]
        return [
            {"name": name, "source": name, "fingerprint": fingerprint, "cap": caps.get(name)}
            for name in names
        ]

    def _opened(self, rows: Sequence[Mapping[str, Any]]) -> list[StreamDomain]:
        """Open saved domains. Raises `FingerprintMismatch` without their corpora."""
        return StreamDomain.from_json(rows, self._corpora, self.split, self.sequence_length)

    def _source(self, name: str) -> StreamDomain:
        if name not in self._sources:
            raise MixtureError(f"no domain {name!r} in the stream: it has {', '.join(self.names)}")
        return self._sources[name]

    def _requested(self) -> Mixture:
        self._schedule.apply_due()
        assert self._schedule.current is not None
        return self._schedule.current.mixture

    def _caps_K(self) -> npt.NDArray[np.int64]:
        return np.array([source.rows for source in self._sources.values()], dtype=np.int64)

    def _reshape(
        self,
        sources: dict[str, StreamDomain],
        drawn: Mapping[str, int],
        mixture: Mixture,
        kind: str,
    ) -> MixtureUpdate:
        caps = {name: source.rows for name, source in sources.items()}
        update = self._schedule.reshape(drawn, caps, mixture, kind)
        self._sources = sources
        self._reset()
        return update

    def _reset(self) -> None:
        """Discard prepared batches and read the domains again."""
        sources = [self._sources[name] for name in self.names]
        windows = [source.windows for source in sources]
        self._planner = Planner(self.seed, self.batch_size, self.rank, self.world_size)
        self._planner.domains(
            [source.key for source in sources], np.array([len(w) for w in windows], dtype=np.int64)
        )
        self._reader = Reader(windows, self.sequence_length)
        self._all_counted_BL = np.ones((self.batch_size, self.sequence_length), dtype=np.bool_)
        self._all_counted_BL.setflags(write=False)
        self._trim()

    def _trim(self) -> None:
        """Discard prepared batches."""
        self._plan: BatchPlan | None = None
        self._block: npt.NDArray[Any] | None = None
        self._ahead = 1

    def _draw(self) -> None:
        """Prepare the next steps: one after a change, then twice as many each time.

        This keeps frequent changes cheap.
        """
        rows = max(_PLAN_ROWS, 64 * len(self.names))  # enough per domain to amortise a numpy call
        if not self._reader.by_row:
            rows = min(rows, _BLOCK_BYTES // (self.sequence_length * self._reader.dtype.itemsize))
        steps = max(1, min(self._ahead, rows // self.batch_size))
        self._ahead = 2 * steps
        counts_TK = self._schedule.ahead(steps * self.stride)
        self._prepare(self._planner.plan(self.position, counts_TK, self.stride))

    def _prepare(self, plan: BatchPlan) -> None:
        """Makes `plan` the present one and reads its rows, unless they are read one by one."""
        self._plan = plan
        self._short_SB = self._reader.short(plan.domain_SB, plan.window_SB)
        self._padded_S: npt.NDArray[np.bool_] = np.any(self._short_SB, axis=1)
        if self._reader.by_row:
            self._place_SB = self._reader.rows(plan.domain_SB, plan.window_SB)
        else:
            self._place_SB = plan.row_SB
            self._block = self._reader.read_sorted(plan.domain_N, plan.window_N)

    def _gather(self, step: int, index: int) -> Batch:
        """Return the batch of one planned step."""
        plan = self._plan
        assert plan is not None
        domain_B = plan.domain_SB[index]
        window_B = plan.window_SB[index]
        place_B = self._place_SB[index]
        block = self._block
        rows_BL = (
            self._reader.read_rows(place_B)
            if block is None
            else block.take(place_B, axis=0, mode="clip")
        )
        counted_BL = self._all_counted_BL[: len(place_B)]
        if self._padded_S[index]:
            counted_BL = counted_BL.copy()
            for row in np.flatnonzero(self._short_SB[index]).tolist():
                rows_BL[row] = self._reader.tail(domain_B[row])
                counted_BL[row, len(self._reader.windows[domain_B[row]].tail) :] = False
        update = self._schedule.current
        assert update is not None
        return Batch(
            step=step,
            names=self.names,
            tokens_BL=rows_BL.astype(np.int64),
            domain_B=domain_B,
            counted_BL=counted_BL,
            origin=Origin(plan.epoch_SB[index], window_B),
            version=update.version,
            mixture_digest=update.mixture_digest,
            log_digest=update.log_digest,
            documents=partial(
                document_ordinals, self._reader.windows, domain_B, window_B, self.sequence_length
            ),
        )


_PREPARED = {
    "_planner",
    "_reader",
    "_all_counted_BL",
    "_plan",
    "_block",
    "_ahead",
    "_short_SB",
    "_padded_S",
    "_place_SB",
}
_FIXED = ("seed", "batch_size", "sequence_length", "split", "sampling", "epoch_caps")


def _check_sizes(batch_size: int, sequence_length: int, rank: int, world_size: int) -> None:
    if not 1 <= batch_size <= MOST_ROWS:
        raise ConfigError(f"batch_size {batch_size} must lie between 1 and {MOST_ROWS}")
    if sequence_length < 1:
        raise ConfigError(f"sequence_length {sequence_length} must be at least 1")
    if world_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"world_size {world_size} does not divide batch_size {batch_size}: every rank must "
            "get the same number of rows"
        )
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is outside 0 … {world_size - 1}")

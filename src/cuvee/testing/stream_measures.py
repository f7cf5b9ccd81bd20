"""Measurements of a mixture stream's guarantees, each returning figures.

They work at any size: `StreamSuite` uses small ones, `benchmarks/stream_exact.py` full size. A
`Scenario` is a corpus, a log of mixtures and the stream's settings. Streams are made by a factory,
so that another implementation, or a broken one, can take the place of `MixtureStream`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.errors import CuveeError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.batch import Batch
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.data.stream.stream import MixtureStream

Factory = Callable[..., MixtureStream]
State = Mapping[str, Any]


def make_corpus(tokens: Mapping[str, int], seed: int = 0, document: int = 23) -> MemoryCorpus:
    """Return a corpus of random ids in which every document ends with id 0.

    Documents have `document` tokens on average.
    """
    rng = np.random.default_rng(seed)
    pools = {}
    for name, number in tokens.items():
        ids = rng.integers(1, 1000, number).astype(np.uint16)
        ends = (
            np.unique(np.append(rng.integers(0, max(number, 1), number // document), number - 1))
            if number
            else np.array([], int)
        )
        ids[ends] = 0
        starts = np.append(0, ends[:-1] + 1) if number else ends
        pools[name] = TokenPool(name, ids, starts.astype(np.int64))
    return MemoryCorpus(pools)


@dataclass(frozen=True)
class Scenario:
    """A corpus, the first mixture, and later mixtures by the step from which they apply."""

    corpus: MemoryCorpus
    start: Mixture
    changes: Mapping[int, Mixture] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {"batch_size": 48, "sequence_length": 16, "seed": 7}
    )
    factory: Factory = MixtureStream

    @classmethod
    def random(
        cls,
        corpus: MemoryCorpus,
        steps: int,
        changes: int,
        log_seed: int,
        floor: float = 0.0,
        **settings: Any,
    ) -> Scenario:
        """Return a scenario with `changes` Dirichlet mixtures at random steps.

        One weight in five is zero. Then all domains get an equal part of the weight `floor`.
        """
        rng = np.random.default_rng(log_seed)
        names = tuple(domain.name for domain in corpus.domains)

        def mixture() -> Mixture:
            weights_K = rng.dirichlet(np.full(len(names), 0.7)) * (rng.random(len(names)) < 0.8)
            weights_K = (
                weights_K / weights_K.sum()
                if weights_K.any()
                else np.full(len(names), 1 / len(names))
            )
            return Mixture.normalise(names, (1 - floor) * weights_K + floor / len(names))

        when = sorted(rng.choice(np.arange(1, steps), changes, replace=False).tolist())
        base = {"batch_size": 48, "sequence_length": 16, "seed": 7}
        return cls(corpus, mixture(), {step: mixture() for step in when}, {**base, **settings})

    @property
    def batch_size(self) -> int:
        return int(self.settings["batch_size"])

    def ranks(self, world_size: int = 1, state: State | None = None) -> list[MixtureStream]:
        """Return a stream per rank, at the start or at `state` (after a round trip via JSON)."""
        streams = [
            self.factory(self.corpus, self.start, rank=r, world_size=world_size, **self.settings)
            for r in range(world_size)
        ]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
        return streams

    def steps(self, streams: Sequence[MixtureStream], end: int) -> Iterator[list[Batch]]:
        """Yield the batches of all ranks step by step, under the logged mixtures."""
        for step in range(streams[0].position, end):
            self.change(streams, step)
            yield [next(stream) for stream in streams]

    def change(self, streams: Sequence[MixtureStream], step: int) -> None:
        for stream in streams:
            if step in self.changes and step == stream.position:
                stream.set_mixture(self.changes[step])

    def digests(self, streams: Sequence[MixtureStream], end: int) -> list[str]:
        return [digest(batches) for batches in self.steps(streams, end)]


def digest(batches: Sequence[Batch]) -> str:
    """Hash a global step: names, and domain, pass, window and tokens of every row in order."""
    sha = hashlib.sha256("\0".join(batches[0].names).encode())
    for parts in zip(
        *((b.domain_B, b.origin.epoch_B, b.origin.window_B, b.tokens_BL) for b in batches),
        strict=True,
    ):
        for part in parts:
            sha.update(np.ascontiguousarray(part).data)
    return sha.hexdigest()


@dataclass(frozen=True)
class Sameness:
    """How many sequences equal the reference, and the first step at which one differs."""

    identical: int
    tried: int
    first_difference: int | None = None

    def __str__(self) -> str:
        return f"{self.identical}/{self.tried}"

    @property
    def holds(self) -> bool:
        return self.identical == self.tried


def _compare(reference: Sequence[str], runs: Iterator[tuple[int, list[str]]]) -> Sameness:
    identical = 0
    tried = 0
    first = None
    for begin, found in runs:
        wrong = next(
            (begin + i for i, hashed in enumerate(found) if hashed != reference[begin + i]), None
        )
        tried += 1
        identical += wrong is None
        first = first if wrong is None else min(wrong, first if first is not None else wrong)
    return Sameness(identical, tried, first)


Spoil = Callable[[dict[str, Any]], dict[str, Any]]


def measure_resume(
    scenario: Scenario, stops: Sequence[int], end: int, spoil: Spoil = lambda state: state
) -> Sameness:
    """Measurement 1: the rest of the sequence after a stop and a resume at each of `stops`."""
    states: dict[int, dict[str, Any]] = {}
    streams = scenario.ranks()
    reference = []
    for step in range(end):
        if step in stops:
            states[step] = json.loads(json.dumps(streams[0].state_dict()))
        reference.extend(scenario.digests(streams, step + 1))

    def runs() -> Iterator[tuple[int, list[str]]]:
        for stop in stops:
            yield stop, scenario.digests(scenario.ranks(1, spoil(states[stop])), end)

    return _compare(reference, runs())


def special_stops(scenario: Scenario, end: int) -> list[int]:
    """Return stops at which errors are likely.

    They are 0, 1, each change of mixture ±1, and each step ±1 in which a domain begins a pass.
    """
    streams = scenario.ranks()
    special = {0, 1, *scenario.changes}
    passes: dict[str, int] = {}
    mixture = streams[0].mixture
    for batches in scenario.steps(streams, end):
        for batch in batches:
            for domain, epoch in zip(
                batch.domain_B.tolist(), batch.origin.epoch_B.tolist(), strict=True
            ):
                if epoch > passes.setdefault(batch.names[domain], 0):
                    passes[batch.names[domain]] = epoch
                    special.add(batch.step)
        before = mixture
        mixture = streams[0].mixture if streams[0].position < end else mixture
        if before != mixture:
            special.add(streams[0].position)
    return sorted(
        {step + shift for step in special for shift in (-1, 0, 1) if 0 <= step + shift < end}
    )


def measure_worlds(
    scenario: Scenario,
    pairs: Sequence[tuple[int, int]],
    stop: int,
    end: int,
    spoil: Spoil = lambda state: state,
) -> tuple[Sameness, Sameness]:
    """Measurement 2: the rest of the sequence after saving at W ranks and resuming at W'.

    World sizes that do not divide the batch must be refused with an error that names them. Returns
    the result of (valid pairs, invalid pairs).
    """
    reference = scenario.digests(scenario.ranks(), end)
    valid = [
        (w, v) for w, v in pairs if scenario.batch_size % w == 0 and scenario.batch_size % v == 0
    ]
    saved: dict[int, State] = {}
    wrong_before = set()
    for world in sorted({w for w, _ in valid}):
        streams = scenario.ranks(world)
        if scenario.digests(streams, stop) != reference[:stop]:
            wrong_before.add(world)
        states = [stream.state_dict() for stream in streams]
        assert all(state == states[0] for state in states), (
            "the state is global: every rank must save the same"
        )
        saved[world] = states[0]

    def runs() -> Iterator[tuple[int, list[str]]]:
        for world, other in valid:
            state = spoil({**json.loads(json.dumps(saved[world])), "_worlds": (world, other)})
            state.pop("_worlds", None)
            found = scenario.digests(scenario.ranks(other, state), end)
            yield (0, ["saved on another sequence"]) if world in wrong_before else (stop, found)

    refused = sum(
        _refuses(scenario, max(pair, key=lambda w: scenario.batch_size % w > 0))
        for pair in pairs
        if pair not in valid
    )
    return _compare(reference, runs()), Sameness(refused, len(pairs) - len(valid))


def _refuses(scenario: Scenario, world_size: int) -> bool:
    try:
        scenario.ranks(world_size)
    except CuveeError as error:
        return str(world_size) in str(error)
    return False


def measure_repeated_resume(scenario: Scenario, cycles: int, step_between: bool) -> tuple[int, int]:
    """Measurement 3: save, load and iterate again, `cycles` times.

    Returns (rows that drifted, states that changed by loading).
    """
    stream = scenario.ranks()[0]
    expected = [digest(batches) for batches in scenario.steps(scenario.ranks(), 2 * cycles + 2)]
    next(stream)
    drift = unequal = 0
    for _ in range(cycles):
        state = json.loads(json.dumps(stream.state_dict()))
        stream = scenario.ranks(1, state)[0]
        unequal += json.loads(json.dumps(stream.state_dict())) != state
        if step_between:
            scenario.change([stream], stream.position)
            at = stream.position
            batch = next(iter(stream))
            drift += 0 if digest([batch]) == expected[at] else len(batch.domain_B)
    return drift, unequal


@dataclass(frozen=True)
class Visits:
    """Errors in the order of visits.

    They are rows given twice or never within a finished pass, the largest difference between
    visit counts, and passes in an order that occurred before.
    """

    duplicates: int
    skips: int
    spread: int
    repeated_orders: int

    @property
    def holds(self) -> bool:
        return self.duplicates == self.skips == self.repeated_orders == 0 and self.spread <= 1


def measure_visits(scenario: Scenario, end: int) -> Visits:
    """Measurement 4: each pass over a domain visits every window exactly once."""
    stream = scenario.ranks()[0]
    size = {name: rows for name, rows in stream.rows_per_epoch().items() if rows}
    given: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in size}
    for (batch,) in scenario.steps([stream], end):
        for domain in np.unique(batch.domain_B):
            mine = batch.domain_B == domain
            given[batch.names[domain]].append(
                np.stack([batch.origin.epoch_B[mine], batch.origin.window_B[mine]])
            )
    duplicates = skips = spread = repeated = 0
    for name, parts in given.items():
        if not parts:
            continue
        epoch_N, window_N = np.concatenate(parts, axis=1)
        visits_W = np.bincount(window_N, minlength=size[name])
        spread = max(spread, int(visits_W.max() - visits_W.min()))
        orders: list[bytes] = []
        for epoch in range(int(epoch_N.max()) + 1):
            seen_W = np.bincount(window_N[epoch_N == epoch], minlength=size[name])
            duplicates += int(np.maximum(seen_W - 1, 0).sum())
            if epoch < epoch_N.max():
                skips += int((seen_W == 0).sum())
                orders.append(np.sort(window_N[epoch_N == epoch][: size[name] // 2]).tobytes())
        # Rows of a batch may be in any order. So two orders are equal if the same windows are in
        # their first halves; with 32 windows or more this is unlikely by chance.
        repeated += len(orders) - len(set(orders)) if size[name] >= 32 else 0
    return Visits(duplicates, skips, spread, repeated)


@dataclass(frozen=True)
class Fidelity:
    """Largest |realised − requested| in rows after any step, overall and of a rank's share."""

    overall: float
    by_rank: float
    z: float
    """The same in standard deviations of independent draws, for multinomial sampling."""


def measure_fidelity(scenario: Scenario, end: int, world_size: int = 1) -> Fidelity:
    """Measurement 5: cumulative counts against requested counts, without epoch caps."""
    streams = scenario.ranks(world_size)
    domains = len(scenario.start)
    asked_K = np.zeros(domains)
    variance_K = np.zeros(domains)
    realised_RK = np.zeros((world_size, domains))
    overall = by_rank = z = 0.0
    mixture = scenario.start
    for step, batches in enumerate(scenario.steps(streams, end)):
        mixture = scenario.changes.get(step, mixture)
        asked_K += scenario.batch_size * mixture.weights_K
        variance_K += scenario.batch_size * mixture.weights_K * (1 - mixture.weights_K)
        realised_RK += [np.bincount(batch.domain_B, minlength=domains) for batch in batches]
        off_K = np.abs(realised_RK.sum(axis=0) - asked_K)
        overall = max(overall, float(off_K.max()))
        by_rank = max(by_rank, float(np.abs(realised_RK - asked_K / world_size).max()))
    spread_K = np.sqrt(variance_K[variance_K > 0])
    z = float((off_K[variance_K > 0] / spread_K).max()) if len(spread_K) else 0.0
    return Fidelity(overall, by_rank, z)


def measure_edges(cases: int, seed: int, factory: Factory = MixtureStream) -> dict[str, int]:
    """Measurement 7: unusual weights for 1 to 1,000 domains.

    Mixtures that cannot be drawn must raise a `CuveeError`. Returns the numbers of cases, refusals
    and draws, and of two failures: other errors, and draws under invalid weights.
    """
    rng = np.random.default_rng(seed)
    corpora: dict[tuple[int, int], MemoryCorpus] = {}
    figures = {
        "cases": cases,
        "refused": 0,
        "drawn": 0,
        "unnamed_errors": 0,
        "silent_acceptances": 0,
    }
    for _ in range(cases):
        domains = int(rng.choice([1, 2, 3, 8, 40, 1000], p=[0.2, 0.2, 0.2, 0.2, 0.19, 0.01]))
        variant = domains, int(rng.integers(8))
        if variant not in corpora:
            sizes = rng.choice([0, 1, 15, 16, 17, 400], domains, p=[0.05, *[0.19] * 5])
            corpora[variant] = make_corpus({f"d{k}": int(size) for k, size in enumerate(sizes)})
        corpus = corpora[variant]
        weights_K = _odd_weights(rng, domains)
        total = float(weights_K.sum())
        legal = bool(
            np.isfinite(weights_K).all() and (weights_K >= 0).all() and abs(total - 1) <= 1e-9
        )
        names = [domain.name for domain in corpus.domains]
        try:
            with np.errstate(all="ignore"):
                mixture = Mixture(tuple(names), weights_K)
                stream = factory(
                    corpus, mixture, batch_size=int(rng.integers(1, 9)), sequence_length=16, seed=1
                )
                drawn = [next(stream) for _ in range(3)]
        except CuveeError:
            figures["refused"] += 1
        except Exception:
            figures["unnamed_errors"] += 1
        else:
            figures["drawn"] += 1
            weightless = any(weights_K[d] == 0 for batch in drawn for d in batch.domain_B)
            figures["silent_acceptances"] += not legal or weightless
    return figures


def _odd_weights(rng: np.random.Generator, domains: int) -> npt.NDArray[np.float64]:
    weights_K = rng.dirichlet(np.full(domains, 0.5))
    odd = rng.choice(["none", "zeros", "one", "tiny", "nan", "inf", "negative", "sum"])
    at = int(rng.integers(domains))
    if odd == "zeros":
        weights_K = np.where(rng.random(domains) < 0.7, 0.0, weights_K)
        weights_K = weights_K / weights_K.sum() if weights_K.any() else weights_K
    elif odd == "one":
        weights_K = np.eye(domains)[at]
    elif odd == "tiny":
        weights_K = np.where(np.arange(domains) == at, 1 - 1e-12 * (domains - 1), 1e-12)
    elif odd in ("nan", "inf", "negative"):
        weights_K[at] = {"nan": np.nan, "inf": np.inf, "negative": -0.1}[str(odd)]
    elif odd == "sum":
        weights_K = weights_K * (
            1 + float(rng.choice([-1, 1])) * 10.0 ** -float(rng.integers(1, 7))
        )
    return weights_K


def golden_order(samples: int, factory: Factory = MixtureStream) -> str:
    """Measurement 8: hash of the first `samples` rows of a fixed scenario.

    It is equal on every platform and with every version of Python and numpy.
    """
    names = ("web", "code", "books", "notes")
    corpus = make_golden_corpus()
    scenario = Scenario(
        corpus,
        Mixture(names, np.array([0.4, 0.3, 0.2, 0.1])),
        {
            step: Mixture(names, np.roll([0.5, 0.25, 0.125, 0.125], step))
            for step in range(10, 200, 17)
        },
        factory=factory,
    )
    return hashlib.sha256(
        "".join(scenario.digests(scenario.ranks(), -(-samples // 48))).encode()
    ).hexdigest()


def make_golden_corpus() -> MemoryCorpus:
    """Return four domains of counted ids. They do not depend on numpy's random generators."""
    sizes = {"web": 30_011, "code": 9_973, "books": 1_600, "notes": 5}
    return MemoryCorpus(
        {
            n: TokenPool(n, (np.arange(s) % 997).astype(np.uint16), np.arange(0, s, 50))
            for n, s in sizes.items()
        }
    )

"""The contents of a batch: tokens, padding, documents, positions. All ways of gathering agree."""

import pickle
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.data.stream.row_counts import Sampling
from cuvee.data.stream.stream import MixtureStream
from cuvee.data.stream.windows import Reader, Windows
from cuvee.testing.stream_measures import make_corpus


def one_domain(tokens: list[int], starts: list[int], length: int, batch: int = 1) -> MixtureStream:
    corpus = MemoryCorpus({"web": TokenPool("web", np.array(tokens, np.uint16), np.array(starts))})
    return MixtureStream(
        corpus, Mixture.of({"web": 1.0}), batch_size=batch, sequence_length=length, seed=0
    )


def test_a_domain_shorter_than_a_window_is_padded_and_not_counted() -> None:
    batch = next(one_domain([5, 6, 0], [0], length=6))
    assert batch.tokens_BL.tolist() == [[5, 6, 0, 0, 0, 0]]
    assert batch.tokens_BL.dtype == np.int64
    assert batch.counted_BL.tolist() == [[True] * 3 + [False] * 3]
    assert batch.document_BL.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert batch.position_BL.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.tokens_K().tolist() == [3]


def test_every_token_is_counted_once_in_a_pass() -> None:
    tokens = [*range(1, 23), 0]
    stream = one_domain(tokens, [0], length=5)
    seen = [
        token
        for _ in range(5)
        for b in [next(stream)]
        for token in b.tokens_BL[b.counted_BL].tolist()
    ]
    assert sorted(seen) == sorted(tokens)


def test_documents_are_numbered_within_each_row() -> None:
    stream = one_domain([1, 0, 2, 3, 0, 4, 5, 6, 7, 0, 8, 0], [0, 2, 5, 10], length=4, batch=3)
    batch = next(stream)
    rows = {
        int(w): (d.tolist(), p.tolist())
        for w, d, p in zip(batch.origin.window_B, batch.document_BL, batch.position_BL, strict=True)
    }
    assert rows[0] == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert rows[1] == ([0, 1, 1, 1], [0, 0, 1, 2])
    assert rows[2] == ([0, 0, 1, 1], [0, 1, 0, 1])


def test_tokens_by_domain_are_exact_over_all_ranks() -> None:
    corpus = make_corpus({"web": 1000, "note": 9})
    mixture = Mixture.of({"web": 0.5, "note": 0.5})
    streams = [
        MixtureStream(
            corpus, mixture, batch_size=6, sequence_length=16, seed=1, rank=r, world_size=3
        )
        for r in range(3)
    ]
    batches = [next(stream) for stream in streams]
    assert np.sum([b.tokens_K() for b in batches], axis=0).tolist() == [48, 27]
    assert (batches[0].domain_BL == batches[0].domain_B[:, None]).all()


def test_a_batch_travels_between_processes_with_its_documents() -> None:
    batch = next(one_domain([1, 0, 2, 3, 0, 4], [0, 2, 5], length=3, batch=2))
    copy = pickle.loads(pickle.dumps(batch))  # noqa: S301 (what a loader's worker does with it)
    assert (copy.document_BL == batch.document_BL).all()
    assert (copy.tokens_BL == batch.tokens_BL).all()


@pytest.mark.parametrize("length", [16, 256, 300])
@pytest.mark.parametrize("dtypes", [("u2", "u2", "u2"), ("u2", "i4", "u2")])
@pytest.mark.parametrize("gap", [0, 1, 511])
def test_all_ways_of_gathering_agree(length: int, dtypes: tuple[str, ...], gap: int) -> None:
    """Pools at distances that are and are not multiples of a window, of one type and of two,
    some shorter than a window."""
    ids = np.arange(60_000) % 50_000
    sizes, pools, at = (20 * length, 3 * length + 7, 5), [], 0
    memory = {dtype: ids.astype(dtype) for dtype in dtypes}
    for name, size, dtype in zip("abc", sizes, dtypes, strict=True):
        pools.append(TokenPool(name, memory[dtype][at : at + size], np.zeros(1, np.int64)))
        at += -(-size // length) * length + gap
    windows = [Windows(pool, length) for pool in pools]
    reader = Reader(windows, length)
    domain_N = np.repeat(np.arange(3), [len(w) for w in windows])
    window_N = np.concatenate([np.arange(len(w))[::-1] for w in windows])
    sorted_rows = reader.read_sorted(domain_N, window_N)
    rows_NL = reader.read_rows(reader.rows(domain_N, window_N)) if reader.by_row else sorted_rows
    for row in np.flatnonzero(reader.short(domain_N, window_N)):
        rows_NL[row] = reader.tail(domain_N[row])
    for row, domain, window in zip(rows_NL, domain_N, window_N, strict=True):
        text = np.asarray(pools[domain].tokens)[window * length : (window + 1) * length]
        assert (row[: len(text)] == text).all()
        assert (row[len(text) :] == text[-1]).all()
    assert (reader.short(domain_N, window_N) == windows_short(windows, domain_N, window_N)).all()


def windows_short(windows: list[Windows], domain_N: np.ndarray, window_N: np.ndarray) -> np.ndarray:
    return np.array(
        [
            windows[d].filled(np.array([w]))[0] < windows[d].length
            for d, w in zip(domain_N, window_N, strict=True)
        ]
    )


def test_any_object_with_named_pools_is_a_corpus() -> None:
    class Mine:
        domains = (Domain("web", 64),)
        fingerprint = "mine"

        def pool(self, name: str, split: str = "train") -> TokenPool:
            return TokenPool(name, np.arange(64, dtype=np.int32), np.zeros(1, np.int64))

    stream = MixtureStream(
        Mine(), Mixture.of({"web": 1.0}), batch_size=2, sequence_length=32, seed=0
    )
    assert np.sort(next(stream).tokens_BL.ravel()).tolist() == list(range(64))


@pytest.mark.parametrize("sizes", [{"web": 3000, "code": 900, "note": 7}, {"web": 400}])
@pytest.mark.parametrize("sampling", ["quota", "multinomial"])
def test_lanes_of_a_step_are_those_of_the_whole_batch(
    sizes: dict[str, int], sampling: Sampling
) -> None:
    """In any grouping, across a change of the mixture, for skipped and repeated steps."""
    mixture = Mixture.normalise(tuple(sizes), [1.0] * len(sizes))
    later = Mixture.normalise(tuple(sizes), range(1, len(sizes) + 1))
    made: dict[str, Any] = {
        "batch_size": 12,
        "sequence_length": 16,
        "seed": 3,
        "sampling": sampling,
    }
    whole = MixtureStream(make_corpus(sizes), mixture, **made)
    lanes = MixtureStream(make_corpus(sizes), mixture, **made)
    whole.set_mixture(later, at_step=4)
    lanes.set_mixture(later, at_step=4)
    batches = [next(whole) for _ in range(9)]
    for step, chosen in [
        (0, [0]),
        (2, [5, 1, 7]),
        (2, range(12)),
        (3, [11]),
        (6, [4, 0]),
        (8, [9]),
    ]:
        part = lanes.rows(step, list(chosen))
        batch = batches[step]
        np.testing.assert_array_equal(part.tokens_BL, batch.tokens_BL[list(chosen)])
        np.testing.assert_array_equal(part.domain_B, batch.domain_B[list(chosen)])
        np.testing.assert_array_equal(part.counted_BL, batch.counted_BL[list(chosen)])
        np.testing.assert_array_equal(part.document_BL, batch.document_BL[list(chosen)])
        assert (part.step, part.version, part.log_digest) == (step, batch.version, batch.log_digest)
    assert next(whole).log_digest == lanes.rows(9, [0]).log_digest
    with pytest.raises(ConfigError, match="must be distinct and lie in 0 … 11"):
        lanes.rows(9, [12])


def test_the_tokens_of_coming_steps_are_known_without_drawing_them() -> None:
    sizes = {"web": 3000, "code": 900}
    mixture, later = Mixture.of({"web": 0.7, "code": 0.3}), Mixture.of({"web": 0.2, "code": 0.8})
    stream = MixtureStream(make_corpus(sizes), mixture, batch_size=10, sequence_length=8, seed=0)
    stream.set_mixture(later, at_step=3)
    state = stream.state_dict()
    foreseen = stream.tokens_between(1, 6)
    assert stream.state_dict() == state
    batches = [next(stream) for _ in range(6)][1:]
    drawn_K = 8 * np.sum([np.bincount(b.domain_B, minlength=2) for b in batches], axis=0)
    assert foreseen == dict(zip(stream.names, drawn_K.tolist(), strict=True))


@pytest.mark.parametrize("sampling", ["quota", "multinomial"])
def test_a_look_at_rows_before_the_start_changes_nothing(sampling: Sampling) -> None:
    sizes = {"web": 3000, "code": 900}
    mixture, later = Mixture.of({"web": 0.7, "code": 0.3}), Mixture.of({"web": 0.2, "code": 0.8})
    made: dict[str, Any] = {"batch_size": 6, "sequence_length": 8, "seed": 5, "sampling": sampling}
    untouched, seen = (MixtureStream(make_corpus(sizes), mixture, **made) for _ in range(2))
    seen.rows(0, [3])
    assert seen.mixture == mixture
    for stream in (untouched, seen):
        stream.set_mixture(later)
    for _ in range(5):
        a, b = next(untouched), next(seen)
        np.testing.assert_array_equal(a.tokens_BL, b.tokens_BL)
        assert a.log_digest == b.log_digest
    assert untouched.state_dict() == seen.state_dict()

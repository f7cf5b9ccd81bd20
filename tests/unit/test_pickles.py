"""Every public object with mapped tokens survives pickling, copying and all three process start
methods."""

import copy
import gc
import mmap
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.errors import CorpusError, ShardError
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.corpus.shards import bin_path, open_shard, write_index
from cuvee.data.ingest.adopt import adopt
from cuvee.data.stream.loader import StreamDataset, StreamLoader
from cuvee.data.stream.memory import MemoryCorpus
from cuvee.data.stream.stream import MixtureStream
from cuvee.data.stream.windows import Reader, Windows
from cuvee.testing.stream_measures import digest

loads = pickle.loads
TOKENS = 1 << 20
NAMES = ("web", "code")
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: loads(pickle.dumps(value)),
    "protocol 2": lambda value: loads(pickle.dumps(value, protocol=2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def ids(seed: int) -> np.ndarray[Any, Any]:
    tokens = (np.arange(TOKENS) * (seed + 3) % 90 + 1).astype(np.uint16)
    tokens[-1] = 0
    return tokens


def write_shard(prefix: Path, tokens: np.ndarray[Any, Any]) -> None:
    bin_path(prefix).write_bytes(tokens.tobytes())
    write_index(prefix, np.array([len(tokens)], np.int32), tokens.dtype)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "shards").mkdir()
    for seed, name in enumerate(NAMES):
        write_shard(tmp_path / "shards" / name, ids(seed))
    return adopt([tmp_path / "shards"], tmp_path / "corpus", vocab_size=91, end_of_text=0)


def stream_over(corpus: Any, **settings: Any) -> MixtureStream:
    fixed: dict[str, Any] = {"batch_size": 8, "sequence_length": 32, "seed": 0}
    return MixtureStream(corpus, Mixture.uniform(NAMES), **{**fixed, **settings})


def first(stream: MixtureStream, steps: int = 5) -> str:
    return digest([next(stream) for _ in range(steps)])


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_stream_resumes_with_the_same_batches_and_its_pickle_holds_no_tokens(
    corpus: Corpus, how: str
) -> None:
    stream = stream_over(corpus, batch_size=64, sequence_length=1024)
    first(stream)  # so that batches are prepared ahead
    assert len(pickle.dumps(stream)) < 100_000
    copied = COPIES[how](stream)
    assert (copied.position, copied.state_dict()) == (stream.position, stream.state_dict())
    assert first(copied) == first(stream)


@pytest.mark.parametrize("how", COPIES)
def test_every_object_that_holds_a_mapping_is_copied_by_reference(corpus: Corpus, how: str) -> None:
    pool = corpus.pool("code")
    windows = Windows(pool, 32)
    for value in (corpus, pool, windows, Reader([windows], 32)):
        assert len(pickle.dumps(value)) < 10_000, type(value)
    assert COPIES[how](corpus).fingerprint == corpus.fingerprint
    np.testing.assert_array_equal(COPIES[how](corpus).pool("code").tokens, pool.tokens)
    np.testing.assert_array_equal(COPIES[how](pool).tokens, pool.tokens)
    np.testing.assert_array_equal(COPIES[how](pool).document_starts, pool.document_starts)
    np.testing.assert_array_equal(COPIES[how](windows).whole_WL, windows.whole_WL)
    rows = np.array([5]), np.array([7])
    reader = COPIES[how](Reader([windows], 32))
    np.testing.assert_array_equal(
        reader.read_sorted(np.array([0]), rows[1])[0], pool.tokens[224:256]
    )


@pytest.mark.parametrize("how", COPIES)
def test_pools_over_a_users_own_mapping_are_copied_by_reference(tmp_path: Path, how: str) -> None:
    """A slice or a view of a mapping starts at another offset than the mapping itself."""
    path = tmp_path / "tokens"
    ids(0).tofile(path)
    mapped = np.memmap(path, np.uint16, "r", offset=8)
    for tokens in (mapped, mapped[100:-100], mapped.view(np.ndarray)[100:]):
        pool = TokenPool("web", tokens, np.array([0]))
        assert len(pickle.dumps(MemoryCorpus({"web": pool}))) < 10_000
        np.testing.assert_array_equal(COPIES[how](pool).tokens, tokens)


def test_an_array_without_a_file_is_pickled_by_value(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    ids(0).tofile(path)
    private = np.memmap(path, np.uint16, "c")
    private[0] = 77  # only in this process: the file does not change
    strided = np.memmap(path, np.uint16, "r")[::2]
    for tokens in (ids(1), private, strided, np.empty(0, np.uint16)):
        copied = COPIES["pickle"](TokenPool("web", tokens, np.array([0])))
        np.testing.assert_array_equal(copied.tokens, tokens)


def test_memory_between_two_pools_is_neither_read_nor_pickled() -> None:
    held = [mmap.mmap(-1, 2 * TOKENS), mmap.mmap(-1, 8 << 20), mmap.mmap(-1, 2 * TOKENS)]
    held[1][:24] = b"canary-of-another-object"
    pools = {}
    for seed, name in enumerate(NAMES):
        tokens = np.frombuffer(held[2 * seed], np.uint16)
        tokens[:] = ids(seed)
        pools[name] = TokenPool(name, tokens, np.array([0]))
    stream = stream_over(MemoryCorpus(pools))
    first(stream)
    data = pickle.dumps(stream)
    assert b"canary-of-another-object" not in data
    assert (
        len(data) < 2 * 2 * TOKENS + 100_000
    )  # the tokens once, though corpus and stream share them
    held.pop(1).close()
    gc.collect()
    assert first(loads(pickle.dumps(stream))) == first(stream)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_loader_workers_give_the_same_batches_however_they_are_started(
    corpus: Corpus, method: str
) -> None:
    expected = [digest([batch]) for _, batch in zip(range(6), stream_over(corpus), strict=False)]
    before = torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = StreamLoader(stream_over(corpus), num_workers=2, steps=6)
            assert [digest([batch]) for batch in loader] == expected
    finally:
        torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copied_loader_has_a_log_of_mixtures_of_its_own(corpus: Corpus, how: str) -> None:
    loader = StreamLoader(stream_over(corpus))
    dataset = StreamDataset(stream_over(corpus))
    copied, other = COPIES[how](loader), COPIES[how](dataset)
    copied.set_mixture(Mixture(NAMES, np.array([1.0, 0.0])))
    assert (loader.stream.last_version, copied.stream.last_version) == (0, 1)
    datasets = (dataset, other, loader._dataset, copied._dataset)
    logs = {each._updates._path for each in datasets}
    assert len(logs) == 4
    del dataset, other, loader, copied, datasets
    gc.collect()
    assert not any(map(os.path.exists, logs))


def test_a_pickle_of_files_that_have_changed_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    shard = open_shard(tmp_path / "shards" / "web", "web")
    data, whole = pickle.dumps(shard), pickle.dumps(corpus)
    write_shard(tmp_path / "shards" / "web", ids(7))
    with pytest.raises(ShardError, match=r"web\.bin was changed after"):
        loads(data)
    (tmp_path / "corpus" / "manifest.json").unlink()
    adopt([tmp_path / "shards"], tmp_path / "corpus", vocab_size=91, end_of_text=0)
    with pytest.raises(CorpusError, match="was built again after"):
        loads(whole)


def test_a_relative_path_is_found_from_another_working_directory(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Corpus.open("corpus")
    data = pickle.dumps(stream_over(relative))
    monkeypatch.chdir("/")
    assert first(loads(data)) == first(stream_over(corpus))

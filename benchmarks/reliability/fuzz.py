"""Fuzzes one reader of files, guided by the lines that an input reaches.

    python -m reliability.fuzz FORMAT INPUTS [--atheris] [--plant]

A reader may raise a `CuveeError` and nothing else. Inputs are mutated from a few valid files; one
that reaches a new line of cuvee is mutated further. With --atheris, libFuzzer mutates them instead
(`pip install atheris`). Prints one JSON object: inputs, unnamed errors, executions (`Canary`),
peak memory in MiB, CPU seconds of the slowest input, and lines reached.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import hashlib
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from safetensors.numpy import save as save_tensors

from cuvee.core.errors import CuveeError
from cuvee.core.mixture import Mixture
from cuvee.core.registry import AGENTS, POLICIES, PROBES
from cuvee.core.state import from_bytes, load_state, to_bytes
from cuvee.data.corpus import shards
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.tokenizer import parse_tokenizer
from cuvee.data.ingest.build import BuildSettings, build
from cuvee.data.ingest.documents import Rules, read_documents
from cuvee.data.ingest.reading import read_blocks
from cuvee.data.ingest.sources.raw import find_sources
from cuvee.fleet.store.rows import Interval, Space
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.fixed import Fixed
from cuvee.probes.questions import read_questions
from cuvee.recipes.config.schema import TrainConfig, load
from cuvee.recommend.reading import read_runs
from cuvee.testing.runs import example_run
from reliability.canary import Canary

Reader = Callable[[bytes], object]
ROWS = [{"text": f"row {i} of a few", "topic": "law" if i % 2 else "mail"} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
RULES = Rules("text", "topic", 0.1)
LONG = 20_000  # bytes of the longest input


class Format(NamedTuple):
    """Valid files of a format, and what reads one. `extreme` are large inputs, tried once."""

    seeds: Sequence[bytes]
    read: Reader
    extreme: Sequence[bytes] = ()


def formats(folder: Path) -> dict[str, Callable[[], Format]]:
    """Each format by name. Files are written into `folder`."""

    def source(name: str, content: bytes, extreme: Sequence[bytes] = ()) -> Format:
        def read(data: bytes) -> None:
            (folder / name).write_bytes(data)
            for block in read_blocks(find_sources([folder / name])[0], "text", "topic"):
                for _ in read_documents(block, RULES):
                    pass

        return Format([content], read, extreme)

    def index() -> Format:
        prefix = _corpus(folder).folder / "train" / "law"
        whole = shards.idx_path(prefix).read_bytes()
        size = shards.bin_path(prefix).stat().st_size

        def read(data: bytes) -> None:
            shards.idx_path(prefix).write_bytes(data)
            pool = shards.open_shard(prefix, "law")
            starts = pool.document_starts
            assert starts[0] == 0
            assert (starts[1:] > starts[:-1]).all()
            assert starts[-1] < len(pool)
            assert len(pool) * pool.tokens.itemsize == size
            pool.tokens.sum()

        return Format([whole], read)

    def manifest() -> Format:
        corpus = _corpus(folder).folder

        def read(data: bytes) -> None:
            (corpus / "manifest.json").write_bytes(data)
            Corpus.open(corpus).pool("law", "train").tokens.sum()

        return Format([(corpus / "manifest.json").read_bytes()], read)

    def configuration() -> Format:
        texts = (
            "corpus: c\nmodel: llama-1m\nseed: 3\nmethod: {name: odm, smoothing: 0.8}\n"
            "train: {steps: 100, batch_size: 4, learning_rate: 1e-3}\nguard: {floor: {a: .1}}\n",
            "corpus: &a c\nname: *a\nmethod: odm\ntrain:\n  steps: 100\nplugins: []\n",
        )

        def read(data: bytes) -> None:
            (folder / "a.yaml").write_bytes(data)
            load(TrainConfig, folder / "a.yaml")

        return Format([text.encode() for text in texts], read, [b"[" * 100_000, b"a: " * 100_000])

    def crafted(stem: str, document: bytes, read_folder: Callable[[Path], object]) -> Format:
        """A folder whose hashes are always right."""
        place = folder / stem
        place.mkdir()
        arrays = save_tensors({})
        (place / f"{stem}.safetensors").write_bytes(arrays)

        def read(data: bytes) -> None:
            (place / f"{stem}.json").write_bytes(data)
            files = {f"{stem}.json": data, f"{stem}.safetensors": arrays}
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            (place / "hashes.json").write_text(json.dumps(hashes))
            read_folder(place)

        return Format([document], read, [b'{"format": 1, "state": ' + b"[" * 100_000])

    def policy() -> Format:
        for registry in (POLICIES, AGENTS, PROBES):
            registry.names()  # imports the parts, torch too: a wrong name does
        save_policy(folder / "saved", Fixed(Mixture.of({"a": 0.25, "b": 0.75})), {"run": "r"})
        return crafted("policy", (folder / "saved" / "policy.json").read_bytes(), load_policy)

    def checkpoint() -> Format:
        document = b'{"format": 1, "state": {"step": 3, "a": [1.5, null, "x"], "b": {"c": {}}}}'
        return crafted("state", document, load_state)

    def tensors() -> Format:
        state = {"step": 3, "w": np.arange(12.0).reshape(3, 4), "n": {"b": np.zeros(2, np.int64)}}
        return Format([to_bytes(state)], from_bytes)

    def table() -> Format:
        head = "run,train_a,train_b,metric/a_loss\n"
        rows = "".join(f"r{i},{i / 20},{1 - i / 20},{3 - i / 10}\n" for i in range(20))

        def read(data: bytes) -> None:
            (folder / "a.csv").write_bytes(data)
            read_runs([folder / "a.csv"])

        return Format([(head + rows).encode()], read)

    def questions() -> Format:
        rows = [{"question": "2 + 2?", "choices": ["3", "4"], "answer": i % 2} for i in range(4)]
        rows += [{"prompt": "a b", "answer": "c"}]

        def read(data: bytes) -> None:
            (folder / "q.jsonl").write_bytes(data)
            read_questions(folder / "q.jsonl")

        return Format(["".join(json.dumps(row) + "\n" for row in rows).encode()], read)

    def row() -> Format:
        run = example_run("odm", intervals=2)
        interval = Interval(1, run.trajectory.mixtures[0], run.trajectory.signals[1], {"a": 1})
        space = Space.read(interval.row()["space"], interval.space_json(), "r")

        def read(data: bytes) -> None:
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                return
            if isinstance(found, dict) and interval.row().keys() <= found.keys():
                Interval.read(found, space, "r")

        return Format([json.dumps(interval.row()).encode()], read)

    def tokenizer() -> Format:
        text = (_corpus(folder).folder / "tokenizer.json").read_bytes()
        return Format([text], lambda data: parse_tokenizer(data.decode("utf-8", "replace"), "t"))

    zstd = bytes(pa.Codec("zstd").compress(LINES, asbytes=True))
    return {
        "index": index,
        "manifest": manifest,
        "YAML": configuration,
        "JSONL": lambda: source("a.jsonl", LINES, [b'"' + b"x" * 100_000_000, b"[" * 1_000_000]),
        "gzip": lambda: source("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        "zstd": lambda: source("a.jsonl.zst", zstd),
        "CSV": lambda: source("a.csv", _csv()),
        "Parquet": lambda: source("a.parquet", _parquet(ROWS)),
        "Parquet, other columns": lambda: source("a.parquet", _parquet(_wide())),
        "Arrow": lambda: source("a.arrow", _arrow(ROWS)),
        "Arrow, other columns": lambda: source("a.arrow", _arrow(_wide())),
        "tokenizer": tokenizer,
        "checkpoint": checkpoint,
        "tensors": tensors,
        "policy": policy,
        "table of runs": table,
        "questions": questions,
        "row of a store": row,
    }


def _corpus(folder: Path) -> Corpus:
    text = "".join(json.dumps({"text": f"Document {i} is short. " * 3}) + "\n" for i in range(20))
    (folder / "law.jsonl").write_text(text)
    settings = BuildSettings(vocab_size=280)
    return build([folder / "law.jsonl"], folder / "corpus", settings, workers=1)


def _wide() -> list[dict[str, Any]]:
    """Rows with columns of many types beside the text."""
    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    more = {"n": 1, "x": 0.5, "b": True, "t": day, "l": ["a", "b"], "m": {"k": [1], "s": None}}
    return [{**row, **more, "raw": bytes([i])} for i, row in enumerate(ROWS)]


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows))
    pq.write_table(table, sink, compression="zstd", write_page_index=True, row_group_size=8)
    return bytes(sink.getvalue())


def _arrow(rows: Sequence[Mapping[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_file(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as f:
        f.write_table(table)
    return bytes(sink.getvalue())


def _csv() -> bytes:
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(pa.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue())


# --------------------------------------------------------------------------------------- mutations

TOKENS = [b"\x00", b"\xff\xff\xff\xff", b"\x7f" + b"\xff" * 7, b"-1", b"NaN", b"1e999", b"null",
          b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[", b"]", b"{", b"}", b'"', b"\\", b"\n", b"\r", b"&a ",
          b"*a", b"!!python/object/apply:os.system [id]", b"../", b"9" * 400, b"<<: ", b"\\ud800",
          b"0x", b"'", b"|", b": ", b"- ", b",", b"%", b"\x1b[31m", b"true"]  # fmt: skip
NUMBERS = [0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, -(2**63), 255]


def mutated(rng: random.Random, pool: Sequence[bytes]) -> bytes:
    data = bytearray(rng.choice(pool))
    for _ in range(1 + int(rng.expovariate(0.6))):
        at = rng.randrange(len(data) + 1)
        length = min(int(rng.expovariate(0.1)) + 1, len(data) - at)
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice([1, 1, 2, 30])
        elif kind == 4:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 5:
            size = rng.choice([4, 8])
            data[at : at + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 6:
            other = rng.choice(pool)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + max(length, 8)]
        elif rng.randrange(4) == 0:
            del data[at:]
    return bytes(data[:LONG])


def peak_mib() -> int:
    """Peak memory of this program; `getrusage` would include that of the parent before exec."""
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return int(peak[1]) >> 10


class Lines:
    """Which lines of cuvee have been reached."""

    def __init__(self) -> None:
        self.reached: set[tuple[CodeType, int]] = set()
        self._ours: dict[CodeType, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = "/cuvee/" in code.co_filename
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.reached.add((frame.f_code, frame.f_lineno))
        return self._line


class Trial:
    """Reads inputs, one after the other, and keeps the figures."""

    def __init__(self, format_: Format, folder: Path) -> None:
        self._read = format_.read
        self._canary = Canary(folder)
        self.lines = Lines()
        self.inputs = 0
        self.unnamed: dict[str, str] = {}
        self.unnamed_count = 0
        self.slowest = 0.0

    def __call__(self, data: bytes) -> None:
        begun = time.process_time()
        self._canary.watch(data)
        try:
            self._read(data)
        except CuveeError:
            pass
        except BaseException as error:  # a panic of Rust code is no Exception
            self._canary.ignore()
            if isinstance(error, KeyboardInterrupt):
                raise
            self.unnamed_count += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            self.unnamed.setdefault(key, f"{error!r:.120} from {data[:200]!r}")
        self._canary.ignore()
        self.inputs += 1
        self.slowest = max(self.slowest, time.process_time() - begun)

    def figures(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "unnamed": self.unnamed_count,
            "where": self.unnamed,
            "executions": self._canary.sung,
            "heard": [*self._canary.runs, *self._canary.connects, *self._canary.writes][:3],
            "peak_mib": peak_mib(),
            "slowest_s": round(self.slowest, 3),
            "cpu_s": round(time.process_time(), 1),
            "lines": len(self.lines.reached),
        }


def inputs(format_: Format, count: int, lines: Lines) -> Iterator[bytes]:
    """Yield seeds and mutations, of which those that reached new lines are mutated again."""
    rng, pool, known = random.Random(0), list(format_.seeds), 0
    for number in range(count):
        data = format_.seeds[number] if number < len(format_.seeds) else mutated(rng, pool)
        sys.settrace(lines)
        yield data
        sys.settrace(None)
        if len(lines.reached) > known:
            known = len(lines.reached)
            pool.append(data)


def with_atheris(trial: Trial, format_: Format, count: int, folder: Path) -> None:
    import atheris

    for number, seed in enumerate(format_.seeds):
        (folder / "seeds").mkdir(exist_ok=True)
        (folder / "seeds" / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        trial(data)
        if trial.inputs >= count:
            print(json.dumps(trial.figures()), flush=True)
            raise SystemExit

    for name, module in list(sys.modules.items()):
        if name.startswith("cuvee."):
            for key, value in vars(module).items():
                if isinstance(value, FunctionType) and value.__module__ == name:
                    setattr(module, key, atheris.instrument_func(value))
    options = [f"-runs={count + 100}", f"-max_len={LONG}", "-seed=1", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, str(folder / "seeds")], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format")
    parser.add_argument("inputs", type=int)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--plant", action="store_true", help="an index is not checked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        format_ = formats(folder)[options.format]()
        if options.plant:
            for check in ("_check_lengths", "_check_pointers", "_check_boundaries"):
                setattr(shards, check, lambda *_: None)
        for seed in format_.seeds:
            format_.read(seed)  # what is imported late is imported now
        trial = Trial(format_, folder)
        for data in format_.extreme:
            trial(data)
        if options.atheris:
            with_atheris(trial, format_, options.inputs, folder)
        for data in inputs(format_, options.inputs, trial.lines):
            trial(data)
    print(json.dumps(trial.figures()))


if __name__ == "__main__":
    main()

"""How fast is the stream? Against a plain numpy gather of the same windows, and other loaders.

    python benchmarks/stream_speed.py                                   # about 4 minutes
    python benchmarks/stream_speed.py --peers DIR                       # and the peers, installed
                                                                        # by peers/make_venv.sh DIR
    python benchmarks/stream_speed.py --tokens 4000000 --seconds 0.2    # to see that it works

The corpus is random ids in one memory-mapped file of `--tokens` tokens, cut into K domains. Their
mixture shares are drawn from a Dirichlet distribution. The limit is what one core can do if it
knows the windows beforehand: `numpy.take` of rows of that one file and a cast to int64, for any K.
Limit and stream take turns, and the best round of each counts.
All figures are of one process on one core, in processor time, so that other work on the machine
does not count. Peers are timed so too, or by the clock where that is in their favour. The last line
is one JSON object:

    limit_ratio_64, limit_ratio_2048    stream / limit, lowest over K = 4, 29 and 1,000 (all in
                                        `cases`)
    cost_1000_over_4                    time per row at K = 1,000 / at K = 4, at each length
    vs_best_dynamic_peer                stream / best peer that lets weights change (K = 4 and 29;
                                        the lower of the two)
    changing_every_step                 rows per second if the mixture changes at every step
                                        (K = 29)
    seek_us                             median time to go to a step near global sample 10^12
                                        (K = 29), and the longest
    state_bytes                         of the JSON state (K = 29)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.data.corpus.pool import TokenPool
from cuvee.data.stream.stream import MixtureStream

CASES = ((64, 1024), (2048, 256))
DOMAINS = (4, 29, 1000)
ALIGN = 2048


class OneFile:
    """A corpus of K stretches of one array, which the limit reads as a whole."""

    def __init__(self, tokens: np.ndarray[Any, Any], number: int) -> None:
        rng = np.random.default_rng(number)
        cuts = (
            np.sort(rng.choice(np.arange(1, len(tokens) // ALIGN), number - 1, replace=False))
            * ALIGN
        )
        self.starts = [0, *cuts.tolist()]
        ends = [*cuts.tolist(), len(tokens) // ALIGN * ALIGN]
        self.fingerprint = f"one file in {number}"
        self._pools = {
            f"d{k}": TokenPool(f"d{k}", tokens[begin:end], np.zeros(1, dtype=np.int64))
            for k, (begin, end) in enumerate(zip(self.starts, ends, strict=True))
        }
        self.domains = tuple(Domain(name, len(pool)) for name, pool in self._pools.items())
        self.mixture = Mixture.normalise(tuple(self._pools), rng.dirichlet(np.ones(number)))

    def pool(self, name: str, split: str = "train") -> TokenPool:
        return self._pools[name]

    def stream(self, length: int, batch: int) -> MixtureStream:
        return MixtureStream(self, self.mixture, batch_size=batch, sequence_length=length, seed=1)


def tokens_file(folder: Path, number: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    with open(folder / "tokens.bin", "wb") as file:
        for begin in range(0, number, 1 << 24):
            file.write(
                rng.integers(0, 50_000, min(1 << 24, number - begin), dtype=np.uint16).tobytes()
            )
    return np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")


def best_rates(
    runs: dict[str, Callable[[int], None]], rows_per_step: int, seconds: float, rounds: int = 5
) -> dict[str, float]:
    """Rows per processor second of each, in turns; `run(steps)` does that many steps."""
    best = dict.fromkeys(runs, 0.0)
    steps = dict.fromkeys(runs, 4)
    for _ in range(rounds + 1):  # the first round finds out how many steps fill the time
        for name, run in runs.items():
            begin = time.process_time()
            run(steps[name])
            took = time.process_time() - begin
            best[name] = max(best[name], steps[name] * rows_per_step / took)
            steps[name] = max(4, min(4096, int(best[name] * seconds / rounds / rows_per_step)))
    return best


def against_limit(
    corpus: OneFile, tokens: np.ndarray[Any, Any], length: int, batch: int, seconds: float
) -> dict[str, float]:
    flat = np.asarray(tokens)
    window_WL = flat[: len(flat) // length * length].reshape(-1, length)
    stream, recorder = corpus.stream(length, batch), corpus.stream(length, batch)
    start_K = np.array(corpus.starts) // length
    known = []
    for _ in range(
        1 << 21 if length < 512 else 1 << 17, 0, -batch
    ):  # many, so that the limit does not read from the cache
        drawn = next(recorder)
        known.append(start_K[drawn.domain_B] + drawn.origin.window_B)
    coming = itertools.cycle(known)

    def gather(steps: int) -> None:
        for window_B in itertools.islice(coming, steps):
            np.take(window_WL, window_B, axis=0, mode="clip").astype(np.int64)

    def draw(steps: int) -> None:
        for _ in range(steps):
            next(stream)

    for step in (0, 1, 63):
        recorder.seek(step)  # both read the same
        assert (
            np.take(window_WL, known[step], axis=0).astype(np.int64) == next(recorder).tokens_BL
        ).all()
    return best_rates({"limit": gather, "stream": draw}, batch, seconds)


def changing(corpus: OneFile, length: int, batch: int, seconds: float) -> float:
    """Rows per second if every step has a mixture of its own."""
    stream, rng = corpus.stream(length, batch), np.random.default_rng(2)
    names = corpus.mixture.names
    mixtures = [Mixture.normalise(names, rng.dirichlet(np.ones(len(names)))) for _ in range(64)]

    def draw(steps: int) -> None:
        for step in range(steps):
            stream.set_mixture(mixtures[step % 64])
            next(stream)

    return best_rates({"stream": draw}, batch, seconds)["stream"]


def seek_times(corpus: OneFile, length: int, batch: int, tries: int = 200) -> list[float]:
    """Microseconds of seeks to steps around global sample 10^12, with the counts of the next
    step."""
    rng, stream, times = np.random.default_rng(3), corpus.stream(length, batch), []
    for _ in range(tries):
        step = 10**12 // batch + int(rng.integers(10**6))
        begin = time.perf_counter()
        stream.seek(step)
        stream.rows_drawn()
        times.append((time.perf_counter() - begin) * 1e6)
        assert sum(stream.rows_drawn().values()) == step * batch
        stream = corpus.stream(length, batch)
    return times


def peer_rates(venv: Path, length: int, domains: int, seconds: float) -> dict[str, Any]:
    script = Path(__file__).with_name("peers") / "rates.py"
    command = [str(venv / "bin" / "python"), "-W", "ignore", str(script)]
    command += ["--length", str(length), "--domains", str(domains), "--seconds", str(seconds)]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=int, default=1 << 29, help="size of the corpus; twice that in bytes"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time of each case")
    parser.add_argument("--peers", type=Path, help="virtual environment of the peers")
    parser.add_argument(
        "--peer-seconds", type=float, default=5.0, help="measuring time of each peer"
    )
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "stream_speed", "tokens": arguments.tokens, "cases": []}
    with tempfile.TemporaryDirectory(prefix="stream-speed-") as folder:
        tokens = tokens_file(Path(folder), arguments.tokens)
        corpora = {number: OneFile(tokens, number) for number in DOMAINS}
        rate: dict[tuple[int, int], float] = {}
        for length, batch in CASES:
            for number, corpus in corpora.items():
                rates = against_limit(corpus, tokens, length, batch, arguments.seconds)
                rate[length, number] = rates["stream"]
                case: dict[str, Any] = {
                    "length": length,
                    "batch": batch,
                    "domains": number,
                    **{k: round(v) for k, v in rates.items()},
                }
                case["ratio"] = round(rates["stream"] / rates["limit"], 3)
                figures["cases"].append(case)
                print(json.dumps(case), file=sys.stderr, flush=True)
        for length, _ in CASES:
            figures[f"limit_ratio_{length}"] = min(
                case["ratio"] for case in figures["cases"] if case["length"] == length
            )
        figures["cost_1000_over_4"] = {
            length: round(rate[length, 4] / rate[length, 1000], 2) for length, _ in CASES
        }
        figures["changing_every_step"] = {
            length: round(changing(corpora[29], length, batch, arguments.seconds))
            for length, batch in CASES
        }
        seeks = seek_times(corpora[29], *CASES[0])
        figures["seek_us"] = round(statistics.median(seeks), 1)
        figures["seek_us_longest"] = round(max(seeks), 1)
        figures["state_bytes"] = len(json.dumps(corpora[29].stream(*CASES[0]).state_dict()))
    figures["vs_best_dynamic_peer"] = None
    if arguments.peers:
        figures["peers"] = [
            peer_rates(arguments.peers, 64, number, arguments.peer_seconds) for number in (4, 29)
        ]
        best = {
            row["domains"]: max(
                r
                for n, r in row["rows_per_s"].items()
                if n in row["dynamic"] and not isinstance(r, str)
            )
            for row in figures["peers"]
        }
        figures["vs_best_dynamic_peer"] = round(
            min(rate[64, number] / best[number] for number in best), 1
        )
    figures.update(
        python=platform.python_version(), numpy=np.__version__, machine=platform.machine()
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

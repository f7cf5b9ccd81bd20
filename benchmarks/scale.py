"""The sizes of a large run, on this machine: 10⁴ domains, 10¹³ tokens, 10⁴ ranks, 10⁵ intervals.

    python benchmarks/scale.py                     the sizes above, about 10 minutes
    python benchmarks/scale.py --fast              a hundredth of the domains and intervals
    python benchmarks/scale.py --only stream       one part: stream, decisions, store or report

The product's own code runs, on synthetic facts:

- **stream**: a real corpus folder whose shards are sparse files. They have the sizes of 10¹³ tokens
  but take no space, and every token is 0. A rank of 10⁴ reads its rows from them. Ranks exchange
  nothing to know their rows, so one process stands for any of them; the rows of all ranks are
  compared with the global batch at some steps. The network is not measured.
- **decisions**: the policy and the guard at interval 10⁵ of a run over 10⁴ domains. The history
  has 10⁵ intervals, but only a hundred different ones, because different ones do not fit in memory
  (`history_gigabytes_on_paper`). `first_s` is the first decision after a resume, which reads the
  history once, and `next_s` is the median of a decision with its lesson after it. The networks of
  AC-ODM and HDS do not learn within so few decisions; `learning` has them at a tenth of the domains,
  after as many decisions as they need to begin.
- **store**: intervals of 10⁴ domains, written durably and read back.
- **report**: a page over many domains, and one over many intervals.

The last line is one JSON object. Seconds are processor time, because the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.errors import CuveeError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.registry import policy_without_proxies
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost, Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.data.corpus.manifest import (
    DomainEntry,
    Manifest,
    ShardEntry,
    TokenizerEntry,
    write_manifest,
)
from cuvee.data.corpus.shards import bin_path, idx_path, write_index
from cuvee.data.stream.stream import MixtureStream
from cuvee.fleet.store.store import Store, worker_name
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.report.page import write_report
from cuvee.testing.runs import example_run

DOMAINS, TOKENS, RANKS, INTERVALS = 10_000, 10**13, 10_000, 100_000
SEQUENCE = 8192
LARGEST_DOCUMENT = 2**31 - 1
DIFFERENT = 100
METHODS = ("natural", "odm", "ado", "gain", "ac_odm", "hds", "history")
LEARNS = ("ac_odm", "hds")


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of `work`, in seconds, to four digits."""
    began = time.process_time()
    work()
    return rounded(time.process_time() - began)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def domains_of(K: int, tokens: int) -> tuple[Domain, ...]:
    """K domains in Zipf sizes that sum to about `tokens`; every tenth is a target."""
    share_K = 1 / (np.arange(K) + 10)
    sizes = np.maximum(tokens * share_K / share_K.sum(), 1000).astype(int).tolist()
    return tuple(
        Domain(f"domain-{k:05d}", size, "target" if k % 10 == 9 else "source", {"mtld": 50.0})
        for k, size in enumerate(sizes)
    )


def sparse_corpus(folder: Path, domains: tuple[Domain, ...]) -> None:
    """Write a corpus whose token files are sparse. Its hashes are made up."""
    (folder / "train").mkdir(parents=True)
    entries = []
    for domain in domains:
        prefix = folder / "train" / domain.name
        whole, rest = divmod(domain.tokens, LARGEST_DOCUMENT)
        lengths_D = np.array([LARGEST_DOCUMENT] * whole + [rest] * (rest > 0), dtype=np.int32)
        write_index(prefix, lengths_D, np.dtype(np.uint16))
        with open(bin_path(prefix), "wb") as file:
            file.truncate(2 * domain.tokens)
        shard = ShardEntry(
            path=f"train/{domain.name}",
            documents=len(lengths_D),
            tokens=domain.tokens,
            text_bytes=4 * domain.tokens,
            bin_bytes=2 * domain.tokens,
            idx_bytes=idx_path(prefix).stat().st_size,
            bin_sha256="0" * 64,
            idx_sha256="0" * 64,
        )
        entries.append(
            DomainEntry(
                name=domain.name,
                role=domain.role,
                scores=dict(domain.scores),
                train=shard,
                valid=None,
            )
        )
    manifest = Manifest(
        dtype="uint16",
        tokenizer=TokenizerEntry(sha256=None, vocab_size=65_536, end_of_text=0),
        domains=tuple(entries),
        sources=(),
        bad_rows=0,
        built_from="0" * 64,
    )
    write_manifest(folder, manifest)


def stream_part(folder: Path, K: int, tokens: int, ranks: int, intervals: int) -> dict[str, Any]:
    """Opening, state, seeking, changing and reading, for one rank; and all ranks against one."""
    domains = domains_of(K, tokens)
    made = seconds(lambda: sparse_corpus(folder, domains))
    began = time.process_time()
    corpus = Corpus.open(folder)
    opened = rounded(time.process_time() - began)
    caps = dict.fromkeys(corpus.names, 4.0)
    natural = Mixture.natural(domains)

    def at_rank(rank: int, of: int = ranks) -> MixtureStream:
        return MixtureStream(
            corpus,
            natural,
            batch_size=ranks,
            sequence_length=SEQUENCE,
            seed=1,
            epoch_caps=caps,
            rank=rank,
            world_size=of,
        )

    began = time.process_time()
    stream = at_rank(ranks // 2)
    built = rounded(time.process_time() - began)
    steps = sum(domain.tokens for domain in domains) // (ranks * SEQUENCE)
    rng = np.random.default_rng(0)
    paths = [
        Mixture.normalise(natural.names, natural.weights_K * rng.lognormal(0, 0.3, K))
        for _ in range(10)
    ]
    changes, reads = [], []
    for change, mixture in enumerate(paths):
        stream.seek(change * steps // intervals)
        changes.append(seconds(partial(stream.set_mixture, mixture)))
        reads.append(seconds(lambda: next(stream)))
    stream.set_mixture(paths[0], at_step=steps // 2)
    sought = seconds(lambda: stream.seek(steps - 2))
    state = stream.state_dict()
    text = json.dumps(state, separators=(",", ":"))
    saved = seconds(lambda: json.dumps(stream.state_dict()))
    resumed = at_rank(0, 1)
    loaded = seconds(lambda: resumed.load_state_dict(json.loads(text)))
    whole = next(resumed)
    shares = 0
    for rank in rng.choice(ranks, min(ranks, 3), replace=False).tolist():
        part = at_rank(rank)
        part.load_state_dict(state)
        mine = next(part)
        size = ranks // ranks
        rows = slice(rank * size, (rank + 1) * size)
        assert (mine.domain_B == whole.domain_B[rows]).all()
        assert (mine.origin.window_B == whole.origin.window_B[rows]).all()
        shares += 1
    return {
        "domains": K,
        "tokens": sum(domain.tokens for domain in domains),
        "ranks": ranks,
        "steps": steps,
        "make_s": made,
        "open_corpus_s": opened,
        "open_stream_s": built,
        "state_megabytes": rounded(len(text) / 1e6),
        "save_state_s": saved,
        "load_state_s": loaded,
        "seek_s": sought,
        "set_mixture_s": rounded(float(np.median(changes))),
        "batch_after_a_change_s": rounded(float(np.median(reads))),
        "ranks_equal_the_global_batch": shares,
    }


def history(K: int, intervals: int, tokens: int) -> tuple[Trajectory, Signals]:
    """A run of `intervals` with `DIFFERENT` different ones, and the signals that follow it."""
    domains = domains_of(K, tokens)
    rng = np.random.default_rng(0)
    natural_K = Mixture.natural(domains).weights_K
    per_interval = tokens / intervals
    validated = {"valid_loss": Measured.all(rng.uniform(2, 4, K))}

    def at(t: int, step: int) -> Signals:
        drawn_K = (natural_K * per_interval).astype(np.int64)
        loss_K = 2 + (1 + t) ** -0.2 + rng.normal(0, 0.01, K)
        rows_K = np.maximum(drawn_K // SEQUENCE, 1.0)
        probes = {
            "target_gain": Measured.all(rng.normal(0, 1, K)),
            "target_gain_square": Measured.all(rng.uniform(1, 2, K)),
            "target_gain_rows": Measured.all(rows_K),
            "weight_norms": Measured.all(rng.uniform(1, 2, 24)),
        }
        loss = Measured(loss_K, drawn_K > 0)
        share = min(0.9 * step / intervals, 1.0)
        return Signals(domains, step, share, drawn_K, loss, {**probes, **validated})

    different = [at(t, t * intervals // DIFFERENT) for t in range(DIFFERENT)]
    paths = [
        Mixture.normalise(natural_names(domains), natural_K * rng.lognormal(0, 0.1, K))
        for _ in range(DIFFERENT)
    ]
    order = [i * DIFFERENT // intervals for i in range(intervals)]
    start = Signals(domains, 0, 0.0, np.zeros(K, dtype=np.int64), Measured.absent(K), validated)
    run = Trajectory([start, *(different[i] for i in order)], [paths[i] for i in order])
    return run, at(DIFFERENT, intervals)


def natural_names(domains: tuple[Domain, ...]) -> tuple[str, ...]:
    return tuple(domain.name for domain in domains)


def policy_of(method: str, run: Trajectory) -> Policy:
    """The policy of an online method, or the history agent without training."""
    if method == "history":
        from cuvee.policies.history.policy import HistoryPolicy

        return HistoryPolicy("small")

    class Described:
        domains = run.domains

    return policy_without_proxies(method, Described())


def decisions_part(K: int, intervals: int, tokens: int) -> dict[str, Any]:
    """Seconds of the guard and its policy at the end of a long run, by method."""
    import torch

    torch.set_num_threads(1)
    run, after = history(K, intervals, tokens)
    size = sum(
        one.nbytes
        for one in (
            after.tokens_K,
            after.loss.values,
            after.loss.present,
            run.mixtures[0].weights_K,
            *(measured.values for measured in after.probes.values()),
        )
    )
    found: dict[str, Any] = {"history_gigabytes_on_paper": rounded(size * intervals / 1e9)}
    for method in METHODS:
        # The history agent computes a timestep's attention over all domains when it resumes.
        so_far = run if method != "history" else Trajectory([run.signals[0]])
        guarded = Guard(policy_of(method, run), Limits(epochs=4.0), int(tokens / intervals))
        try:
            found[method] = decided(guarded, so_far, after)
        except CuveeError as error:
            found[method] = {"refused": str(error)[:200]}
        print(method, found[method], file=sys.stderr, flush=True)
    few, following = history(K // 10, DIFFERENT, tokens)
    found["learning"] = {"domains": K // 10}
    for method in LEARNS:
        guarded = Guard(policy_of(method, few), first_interval=tokens // DIFFERENT)
        found["learning"][method] = decided(guarded, few, following, 12)
        print(method, "learning", found["learning"][method], file=sys.stderr, flush=True)
    return found


def decided(
    guarded: Guard, so_far: Trajectory, after: Signals, decisions: int = 4
) -> dict[str, float]:
    spent = []
    first = seconds(lambda: guarded.mixture(so_far))
    for _ in range(decisions):
        began = time.process_time()
        mixture = guarded.mixture(so_far)
        thought = time.process_time() - began
        so_far = so_far.append(mixture, after)
        began = time.process_time()
        metrics = guarded.learn(so_far)
        spent.append(thought + time.process_time() - began)
    record = metrics["guard"]
    if record["reason"] or record["lesson"] != "learned":
        print("refused:", record["reason"], record["lesson"], file=sys.stderr)
    return {
        "first_s": first,
        "next_s": rounded(float(np.median(spent[-3:]))),
        "audit_megabytes": rounded(len(json.dumps(record, default=str)) / 1e6),
    }


def store_part(folder: Path, K: int, rows: int) -> dict[str, Any]:
    """Durable intervals of K domains a second, their size, and how fast they are read."""
    run, _ = history(K, max(rows, DIFFERENT), 10**9 * max(rows, DIFFERENT))
    place = folder / "store.db"
    with Store.open(place) as store:
        store.create("scale", 0, {}, run_id="scale")
        claim = store.claim_run("scale", worker_name())
        claim.append(0, None, run.signals[0])
        began = time.process_time()
        for t in range(1, rows + 1):
            claim.append(t, run.mixtures[t - 1], run.at(t), {}, Cost(t))
        written = time.process_time() - began
        claim.finish(Cost(rows))
        began = time.process_time()
        store.trajectory("scale")
        read = time.process_time() - began
    return {
        "domains": K,
        "rows_written_a_second": rounded(rows / written),
        "rows_read_a_second": rounded(rows / read),
        "megabytes_a_row": rounded(place.stat().st_size / rows / 1e6),
    }


def report_part(folder: Path, K: int, intervals: int, runs: int) -> dict[str, Any]:
    """A page over `runs` runs of K domains and some intervals, of two methods."""
    targets = max(1, K // 10)
    domains = [Domain(f"domain-{k}", 400_000 // (k + 1) + 1000) for k in range(K - targets)]
    domains += [Domain(f"target-{k}", 100_000, "target") for k in range(targets)]
    made = [
        example_run(("natural", "odm")[i % 2], i // 2, domains=domains, intervals=intervals)
        for i in range(runs)
    ]
    page = folder / "page.html"
    spent = seconds(lambda: write_report(made, page))
    return {
        "domains": K,
        "intervals": intervals,
        "runs": runs,
        "seconds": spent,
        "megabytes": rounded(page.stat().st_size / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="small enough for CI")
    parser.add_argument(
        "--only", action="append", choices=("stream", "decisions", "store", "report"), default=[]
    )
    options = parser.parse_args()
    by = 100 if options.fast else 1
    K, intervals, ranks = DOMAINS // by, INTERVALS // by, RANKS // by
    tokens = TOKENS // by**2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: Mapping[str, Callable[[], Any]] = {
            "stream": lambda: stream_part(folder / "corpus", K, tokens, ranks, intervals),
            "decisions": lambda: decisions_part(K, intervals, tokens),
            "store": lambda: [store_part(folder, K, max(20 // by, 5))],
            "report": lambda: [
                report_part(folder, K, max(20 // by, 4), 4),
                report_part(folder, 22, intervals, 2),
            ],
        }
        found: dict[str, Any] = {}
        for part, measure in parts.items():
            if not options.only or part in options.only:
                began = time.process_time()
                found[part] = measure()
                print(part, f"{time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
        found["peak_gigabytes"] = rounded(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

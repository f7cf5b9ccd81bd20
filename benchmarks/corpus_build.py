"""Time and memory of `cuvee corpus build` on raw text.

    python benchmarks/corpus_build.py --corpus DIR [--workers 2]

The last line is one JSON object: seconds, megabytes of text per second, and the peak of resident
memory summed over the process and its workers (RSS, which counts shared pages once per process, and
PSS, which counts them once).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cuvee.data.corpus.corpus import Corpus


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def memory(root: int) -> tuple[int, int]:
    """(RSS, PSS) in KiB of a process and all its descendants."""
    rss = pss = 0
    for process in family(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        fields = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        rss += fields.get("Rss:", 0)
        pss += fields.get("Pss:", 0)
    return rss, pss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder of raw text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=4096)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-c",
            "from cuvee.cli import main; main()",
            "corpus",
            "build",
            str(arguments.corpus),
        ]
        command += ["-o", f"{scratch}/corpus", "--workers", str(arguments.workers), "--quiet"]
        command += ["--vocab-size", str(arguments.vocab_size)]
        began = time.monotonic()
        process = subprocess.Popen(command)
        peak_rss = peak_pss = 0
        while process.poll() is None:
            rss, pss = memory(process.pid)
            peak_rss, peak_pss = max(peak_rss, rss), max(peak_pss, pss)
            time.sleep(0.1)
        seconds = time.monotonic() - began
        if process.returncode:
            sys.exit(process.returncode)
        corpus = Corpus.open(f"{scratch}/corpus")
        shards = [
            shard
            for entry in corpus.manifest.domains
            for shard in (entry.train, entry.valid)
            if shard
        ]
        text = sum(shard.text_bytes or 0 for shard in shards) / 1e6
        result = {
            "seconds": round(seconds, 1),
            "text_mb": round(text, 1),
            "text_mb_per_s": round(text / seconds, 2),
            "tokens": sum(shard.tokens for shard in shards),
            "domains": len(corpus.names),
            "workers": arguments.workers,
            "peak_rss_mib": peak_rss >> 10,
            "peak_pss_mib": peak_pss >> 10,
            "fingerprint": corpus.fingerprint,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

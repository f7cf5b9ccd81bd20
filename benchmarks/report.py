"""Writes a report of many runs over many domains and measures its time and size.

    python benchmarks/report.py --methods 40 --seeds 5 --domains 52

The runs are synthetic (`cuvee.testing.runs`) and are made before the clock starts. The last line is
one JSON object: seconds of wall clock and of processor, and megabytes (10⁶ bytes) of the page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from cuvee.report.page import write_report
from cuvee.testing.runs import example_domains, example_run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--domains", type=int, default=52)
    parser.add_argument("--intervals", type=int, default=100)
    given = parser.parse_args()
    targets = given.domains // 6
    domains = example_domains(given.domains - targets, targets)
    runs = [
        example_run(f"method-{method}", seed, domains=domains, intervals=given.intervals)
        for seed in range(given.seeds)
        for method in range(given.methods)
    ]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        busy = time.process_time()
        page = write_report(runs, Path(folder) / "report.html")
        result = {
            "runs": len(runs),
            "domains": given.domains,
            "seconds": round(time.perf_counter() - start, 2),
            "cpu_seconds": round(time.process_time() - busy, 2),
            "megabytes": round(page.stat().st_size / 1e6, 3),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

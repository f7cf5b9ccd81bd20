"""Measure what cuvee promises, with planted faults.

    PYTHONPATH=src:benchmarks:tests python -m reliability --only 3 7 8   # fast size
    PYTHONPATH=src:benchmarks:tests python -m reliability --full         # nightly size: hours

Prints `test | n | figure | bar | planted faults caught`. The last line is one JSON object. The exit
status is 1 if a test misses its bar or does not notice a planted fault.

Each test has a process of its own, so that what one has imported or allocated does not count for
another. `--workers` of them run at once.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from reliability.ending import end_all_on_signals
from reliability.isolated import alone
from reliability.measure import TESTS, Result

HEAD = "| test | n | figure | bar | planted faults caught |\n|---|---|---|---|---|"


def row(number: int, result: Result) -> str:
    name, caught = TESTS[number][0], f"{sum(result.caught.values())}/{len(result.caught)}"
    missed = [fault for fault, was_caught in result.caught.items() if not was_caught]
    caught += f" (missed: {', '.join(missed)})" if missed else ""
    figure = result.figure if result.met else f"**{result.figure}**"
    return f"| {number} {name} | {result.n} | {figure} | {result.bar} | {caught} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="*", type=int, default=sorted(TESTS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    end_all_on_signals()
    print(HEAD, flush=True)
    results: dict[int, Result] = {}
    seconds: dict[int, float] = {}
    began = time.monotonic()
    with ThreadPoolExecutor(options.workers) as pool:
        running = {number: pool.submit(alone, number, options.full) for number in options.only}
        for number, test in running.items():
            results[number], seconds[number] = test.result()
            print(row(number, results[number]), flush=True)
    document = {
        "benchmark": "reliability",
        "size": "full" if options.full else "fast",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "tests": len(results),
        "hold": sum(result.holds for result in results.values()),
        "planted": sum(len(result.caught) for result in results.values()),
        "caught": sum(sum(result.caught.values()) for result in results.values()),
        "wall_seconds": round(time.monotonic() - began, 1),
        "seconds": seconds,
        "results": {number: vars(result) for number, result in results.items()},
    }
    print(json.dumps(document))
    sys.exit(document["hold"] != document["tests"])


if __name__ == "__main__":
    main()

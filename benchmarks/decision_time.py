"""The decision time of the history policy: one thread, 52 and 104 domains, after 80 intervals.

    python benchmarks/decision_time.py

Each decision observes the newest timestep, encodes it with cached keys and values, and computes a
mixture. Two further figures: the critic's value of the decision (`learn`), which is logged after
the decision, and the first decision after a resume, which encodes 80 timesteps again. `cpu_median`
is processor time, which is the decision time on an otherwise idle core. The last line is one JSON
object, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.history.policy import HistoryPolicy


def run_of(K: int, seed: int = 0) -> Callable[[int], Signals]:
    """Signals of a run of 200 intervals over K domains, half of them targets."""
    domains = tuple(
        Domain(f"d{k}", 10**6 * (k + 1), "target" if k % 2 else "source") for k in range(K)
    )

    def at(t: int) -> Signals:
        rng = np.random.default_rng([seed, t])
        loss = Measured(rng.uniform(2, 4, K), rng.random(K) < 0.9)
        probes = {"evaluation": Measured.all(-rng.uniform(2, 4, 2))}
        return Signals(domains, t, t / 200, rng.integers(0, 10**6, K), loss, probes)

    return at


def measured(preset: str, K: int, after: int, decisions: int) -> dict[str, float]:
    """Median and p99 of `decisions` decisions that follow `after` intervals."""
    policy, at = HistoryPolicy(preset), run_of(K)
    so_far = Trajectory.start(at(0))
    decide, busy, value = [], [], []
    for t in range(after + decisions):
        began, began_cpu = time.perf_counter(), time.process_time()
        mixture = policy.mixture(so_far)
        decided = time.perf_counter()
        busy.append(time.process_time() - began_cpu)
        so_far = so_far.append(mixture, at(t + 1))
        appended = time.perf_counter()
        policy.learn(so_far)
        value.append(time.perf_counter() - appended)
        decide.append(decided - began)
    resumed = Trajectory(so_far.signals[: after + 1], so_far.mixtures[:after])
    began = time.perf_counter()
    HistoryPolicy(preset).mixture(resumed)
    told = {
        "median": float(np.median(decide[after:])),
        "p99": float(np.quantile(decide[after:], 0.99)),
    }
    told |= {
        "cpu_median": float(np.median(busy[after:])),
        "learn_median": float(np.median(value[after:])),
        "first_after_resume": time.perf_counter() - began,
    }
    return {name: round(1e3 * seconds, 3) for name, seconds in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--after", type=int, default=80)
    parser.add_argument("--decisions", type=int, default=100)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "after": arguments.after,
        "decisions": arguments.decisions,
        "cpus": os.cpu_count(),
    }
    for preset in ("small", "full"):
        for K in (52, 104):
            result[f"{preset}_{K}"] = measured(preset, K, arguments.after, arguments.decisions)
            print(preset, K, result[f"{preset}_{K}"], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""How accurate is off-policy evaluation, and which policies does it support? Simulated runs.

    python benchmarks/off_policy.py       12 seeds of 5 and 12 domains, 28 and 64 runs; ten minutes
    python benchmarks/off_policy.py --tasks 5 --runs 28 --seeds 2
    python benchmarks/off_policy.py --judge     only whether the judge is calibrated
    python benchmarks/off_policy.py --prior     only what rules for leaving the prior are worth

Runs are trajectories of the scoring sampler in simulated continual pre-training
(`cuvee.simulation.continual`), of 20 intervals each. The true results are known.

    unseen    error of the dynamics model on each run, fitted to the others, and on 100 paths of
              other kinds, relative to their deviation; with the features of two fields, of one
              field that holds all domains, and the paired difference
    steers    policies are 60 other trajectories, as they are, and moved half and four fifths of the
              way to the mean of the best ones. Of those that are estimated to be above behaviour,
              and of those that are supported: how many, which share of them truly ends below the
              fallback mixture, and by how much what is played (policy or fallback) ends above the
              fallback, in points of feedback over all policies

    judge     of decisions on 10 other trajectories, as they are, and moved half and four fifths of
              the way to the mean of the best ones, if within reach: how often the 95 % interval of
              the gain over the fallback covers the truth, and how often a supported policy is truly
              better (null if none is supported)

    prior     static mixtures in default worlds and in drawn ones: what is played if a candidate
              must be better than the prior with that many looks, or if it has the highest estimate
              ("highest"). In points of e: the mean above the prior, how often it is not the prior,
              how often it truly ends below, and the worst

Intervals are 95 %, over seeds. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from cuvee.core.arrays import FloatArray
from cuvee.core.trajectory import Trajectory
from cuvee.evaluation.statistics import paired_difference
from cuvee.learning.off_policy import OffPolicyEstimate, OffPolicyEvaluator, static_candidates
from cuvee.loop import run
from cuvee.policies.feedback import Feedback
from cuvee.policies.fixed import Scheduled
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.continual import WorldParams, continual, feedback_gain
from cuvee.simulation.dynamics_model import Regression, as_logged
from cuvee.simulation.simulator import Simulator

TASKS = {5: (3, 2), 12: (9, 3), 22: (21, 1)}
"""K → source and target domains."""
INTERVALS = 20
FITS = {"two fields": True, "one field": False}
QUESTIONS = {"general": ["simulated"], "target": ["simulated"]}
Truth = Callable[[FloatArray], float]


World = tuple[list[Trajectory], list[FloatArray], Truth]
LOOKS: dict[str, float | None] = {"all looks": None, "one look": 1, "a quarter of a look": 0.25}
"""Rules of `--prior`: how many comparisons the interval allows for (0.25: confidence 0.8)."""


def world(
    K: int,
    seed: int,
    runs: int,
    others: int,
    params: WorldParams | None = None,
    noise: float = 0.02,
) -> World:
    """Simulated runs, the paths (T, K) of `others` more, and the truth about any path."""
    laws, domains = continual(*TASKS[K], seed, INTERVALS, params or WorldParams())

    def walk(number: int) -> Trajectory:
        simulator = Simulator(laws, seed=1000 * seed + number, domains=domains, noise=noise)
        return run(simulator, ScoringSampler(seed, number, evaluation=QUESTIONS))

    def truth(weights_TK: FloatArray) -> float:
        return feedback_gain(laws, torch.from_numpy(np.ascontiguousarray(weights_TK)))

    walks = [walk(number) for number in range(runs)]
    paths = [walk(number).weights_TK() for number in range(1000, 1000 + others)]
    return walks, paths, truth


def one(K: int, seed: int, runs: int) -> dict[str, Any]:
    walks, others, truth = world(K, seed, runs, 60)
    return {"unseen": unseen(walks, truth, seed), "steers": steers(walks, others, truth)}


def unseen(walks: Sequence[Trajectory], truth: Truth, seed: int) -> dict[str, float]:
    """Errors relative to the deviation of the target: measured for trajectories, else the truth."""
    logged, paths = [as_logged(one) for one in walks], no_walks(walks[0], seed)
    base_2 = np.abs(np.mean([one.measured_TY[0, :2] for one in logged], axis=0))
    returns_N = np.array(
        [(one.measured_TY[-1] - one.measured_TY[0])[:2] @ (0.5 / base_2) for one in logged]
    )
    worth_M, found = np.array([truth(path) for path in paths]), {}
    for name, two in FITS.items():
        known = [
            one if two else replace(one, target_K=np.zeros_like(one.target_K)) for one in logged
        ]

        def said(regression: Regression, weights_TK: FloatArray) -> float:
            return float(regression.at_end(weights_TK)[:2] @ (0.5 / base_2))

        left_out = [Regression([*known[:n], *known[n + 1 :]]) for n in range(len(known))]
        missed_N = [
            said(*pair) for pair in zip(left_out, (one.weights_TK for one in logged), strict=True)
        ] - returns_N
        whole = Regression(known)
        missed_M = [said(whole, path) for path in paths] - worth_M
        found[f"walks {name}"] = float(np.sqrt(np.square(missed_N).mean()) / returns_N.std(ddof=1))
        found[f"paths {name}"] = float(np.sqrt(np.square(missed_M).mean()) / worth_M.std())
    return found


def no_walks(example: Trajectory, seed: int) -> list[FloatArray]:
    """100 paths (T, K): constant or linear target shares, and log-normal factors within each
    field."""
    rng, paths = np.random.default_rng(seed), []
    tokens_K = np.array([float(domain.tokens) for domain in example.domains])
    target_K = np.array([domain.is_target for domain in example.domains])
    for _ in range(100):
        drawn_K = tokens_K * np.exp(rng.uniform(0, 1.5) * rng.normal(size=len(tokens_K)))
        start, end = rng.uniform(0.05, 1, 2)
        share_T1 = np.linspace(start, start if rng.random() < 0.5 else end, INTERVALS)[:, None]
        source_K, of_target_K = (
            drawn_K * part_K / (drawn_K @ part_K) for part_K in (~target_K, target_K)
        )
        paths.append((1 - share_T1) * source_K + share_T1 * of_target_K)
    return paths


def estimates(
    walks: Sequence[Trajectory], others: Sequence[FloatArray], truth: Truth
) -> list[tuple[OffPolicyEstimate, float]]:
    """The estimate of each policy, and by how much it truly ends above the fallback."""
    held = round(0.25 * len(walks))
    learned_from, names = walks[held:], walks[0].names
    returns = [float(Feedback()(one).values[-1]) for one in learned_from]
    evaluator = OffPolicyEvaluator(walks, static_candidates(learned_from, returns, 0.2))
    best = np.argsort(returns)[-len(returns) // 5 :]
    best_TK = np.mean([learned_from[int(n)].weights_TK() for n in best], axis=0)
    static = truth(evaluator.held(evaluator.static_K))
    rows = []
    for path_TK in (
        (1 - share) * other + share * best_TK for other in others for share in (0.0, 0.5, 0.8)
    ):
        points = [
            (t / INTERVALS, dict(zip(names, mixture, strict=True)))
            for t, mixture in enumerate(path_TK.tolist())
        ]
        rows.append((evaluator(Scheduled(points)), truth(path_TK) - static))
    return rows


def steers(
    walks: Sequence[Trajectory], others: Sequence[FloatArray], truth: Truth
) -> dict[str, float]:
    rows = []
    for estimate, over in estimates(walks, others, truth):
        above = estimate.within_reach and estimate.gain.low is not None and estimate.gain.low > 0
        rows.append((above, estimate.supported, over))
    above_N, supported_N, over_N = (
        np.array(column, dtype=float) for column in zip(*rows, strict=True)
    )
    figures = {"policies": float(len(rows))}
    for name, let_N in (("above", above_N), ("supported", supported_N)):
        figures[name] = float(let_N.sum())
        figures[f"{name}, below static"] = float((let_N * (over_N < 0)).sum())
        figures[f"{name}, played over static"] = 100 * float((let_N * over_N).mean())
    return figures


def judge(
    tasks: Sequence[int], runs: Sequence[int], seeds: Sequence[int], others: int = 10
) -> dict[str, Any]:
    """How often the judge is right, over all decisions within reach."""
    covered: list[bool] = []
    right: list[bool] = []
    for seed in seeds:
        for K in tasks:
            for count in runs:
                for estimate, over in estimates(*world(K, seed, count, others)):
                    if not estimate.within_reach:
                        continue
                    low, high = estimate.over_static.low, estimate.over_static.high
                    assert low is not None
                    assert high is not None
                    covered.append(low <= over <= high)
                    if estimate.supported:
                        right.append(over > 0)
        print(seed, len(covered), np.mean(covered), len(right), sum(right), flush=True)
    return {
        "coverage": float(np.mean(covered)),
        "right_when_sure": float(np.mean(right)) if right else None,
        "sure": len(right),
        "n": len(covered),
    }


def prior(tasks: Sequence[int], runs: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """What rules for leaving the prior are worth, over all worlds."""
    over: dict[str, list[float]] = {}
    for seed in seeds:
        for K, count, drawn in product(tasks, runs, (False, True)):
            params = WorldParams.draw(seed) if drawn else WorldParams()
            walks, _, truth = world(K, seed, count, 0, params, noise=0.2 if seed % 2 else 0.02)
            for rule, gained in over_prior(walks, truth).items():
                over.setdefault(rule, []).append(gained)
        print(
            seed, json.dumps({rule: float(np.mean(one)) for rule, one in over.items()}), flush=True
        )
    return {
        rule: {
            "above": 100 * float(np.mean(one)),
            "played": float(np.mean([gained != 0 for gained in one])),
            "below": float(np.mean([gained < 0 for gained in one])),
            "worst": 100 * min(one),
            "worlds": len(one),
        }
        for rule, one in over.items()
    }


def over_prior(walks: Sequence[Trajectory], truth: Truth) -> dict[str, float]:
    """By how much what a rule plays truly ends above the prior."""
    learned_from = walks[round(0.25 * len(walks)) :]
    returns = [float(Feedback()(one).values[-1]) for one in learned_from]
    evaluator = OffPolicyEvaluator(walks, static_candidates(learned_from, returns, 0.2))
    near = [one for one in evaluator.candidates.values() if evaluator.near(one)]
    base = truth(evaluator.held(evaluator.prior_K))
    gains = [truth(evaluator.held(one)) - base for one in near]
    if not near:
        return dict.fromkeys(("best in hindsight", "highest", *LOOKS), 0.0)
    said = [evaluator.compared(one, evaluator.prior_K) for one in near]
    highest = int(np.argmax([estimate.mean for estimate in said]))
    found = {"best in hindsight": max(0.0, *gains), "highest": gains[highest]}
    for rule, looks in LOOKS.items():
        many = looks or len(evaluator.candidates)
        lows = [evaluator.compared(one, evaluator.prior_K, many).low or 0.0 for one in near]
        surest = int(np.argmax(lows))
        found[rule] = gains[surest] if lows[surest] > 0 else 0.0
    return found


def summary(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    first = next(iter(by_seed.values()))
    mean: dict[str, dict[str, Any]] = {
        part: {
            key: float(np.mean([result[part][key] for result in by_seed.values()]))
            for key in first[part]
        }
        for part in ("unseen", "steers")
    }
    for kind in ("walks", "paths"):
        ours, theirs = (
            {seed: one["unseen"][f"{kind} {name}"] for seed, one in by_seed.items()}
            for name in FITS
        )
        estimate = paired_difference(ours, theirs)
        assert estimate is not None
        mean["unseen"][f"{kind} difference"] = [estimate.mean, estimate.low, estimate.high]
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tasks", default="5,12", help=f"numbers of domains, of {', '.join(map(str, TASKS))}"
    )
    parser.add_argument("--runs", default="28,64")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--judge", action="store_true", help="only the calibration of the judge")
    parser.add_argument("--prior", action="store_true", help="only rules for leaving the prior")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.judge or given.prior:
        tasks, counts = (
            [int(one) for one in text.split(",")] for text in (given.tasks, given.runs)
        )
        seeds = range(given.first, given.first + given.seeds)
        name, part = ("judge", judge) if given.judge else ("prior", prior)
        print(json.dumps({name: part(tasks, counts, seeds)}))
        return
    results: dict[str, Any] = {}
    for K in map(int, given.tasks.split(",")):
        for runs in map(int, given.runs.split(",")):
            by_seed = {}
            for seed in range(given.first, given.first + given.seeds):
                by_seed[seed] = one(K, seed, runs)
                print(K, runs, seed, json.dumps(by_seed[seed]), flush=True)
            results[f"{K} domains, {runs} runs"] = summary(by_seed)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Does `cuvee recommend` pick good mixtures, from few runs, and does it know when stages help?

    python benchmarks/recommend.py --tables DIR          about 20 minutes on one core

DIR holds RegMix's published tables: `train_mixture_1m.csv`, `train_pile_loss_1m.csv` and the same
two of `test`, 512 and 256 runs of a 1M-parameter model on The Pile. The objective is the mean of 13
validation losses.

ranks        fitted to the 512 runs, Spearman's ρ on the 256: of RegMix's target Pile-CC, and the
             mean over 13 metrics
regret       fitted to 32 to 512 of them, ten draws each (one of 512), paired: by how much the
             mixture chosen among the 256 is worse than the best of the 256. Against RegMix's
             published procedure, LightGBM on the objective itself, and against a random choice.
             Real losses throughout.
top128       the mixture recommended from 128 runs against the mean of the best 128 of 100,000 draws
             (RegMix's), five draws. Neither was trained, so the value is that of a Gaussian process
             fitted to all 768 runs: a simulated figure.
next         16 runs at random, then 16 at a time: at random among the 512, or those that `--next`
             proposes, up to half as many. Values are those of the same process with noise of 2 % of
             each metric's deviation, because the proposed mixtures were never trained. After each
             round: the regret of the recommended mixture. Reported is how many runs `--next` needs
             for the regret that random designs have at 128.
stages       100 simulated worlds of two phases (`simulation.simulator`): 50 without forgetting,
             where order cannot matter, and 50 with forgetting whose best two stages beat the best
             single mixture by ten standard deviations of a run's noise.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cuvee.core.domain import Domain
from cuvee.evaluation.ranks import rank_correlation
from cuvee.evaluation.statistics import bootstrap_mean
from cuvee.methods.regmix.fit import FITS, fit_lightgbm
from cuvee.methods.regmix.method import draw
from cuvee.recommend.choose import Bounds, choose, optimise
from cuvee.recommend.design import propose_next
from cuvee.recommend.fits import Surrogate, fit_surrogate
from cuvee.recommend.reading import Columns, read_runs
from cuvee.recommend.table import Runs
from cuvee.simulation.simulator import ScalingLaws

COLUMNS = Columns("train_the_pile_{}", ("metric/the_pile_{}_val_loss",), key="index")
HEADLINE = "pile_cc"
SIZES = (32, 64, 128, 256, 512)
DRAWS = 10
NEXT_STEP, NEXT_END, NEXT_DRAWS, NEXT_NOISE = 16, 128, 5, 0.02
WORLDS, WORLD_RUNS, WORLD_DOMAINS, WORLD_NOISE = 50, 96, 4, 0.005
CLEAR = 10 * WORLD_NOISE


def load(folder: Path) -> tuple[Runs, Runs]:
    parts = []
    for part in ("train", "test"):
        files = [folder / f"{part}_mixture_1m.csv", folder / f"{part}_pile_loss_1m.csv"]
        parts.append(read_runs(files, COLUMNS))
    return parts[0], parts[1]


def fitted(runs: Runs, names: list[str] | None = None) -> Surrogate:
    usable, costs = runs.usable(None)
    return fit_surrogate(usable, costs, names)


def ranks(train: Runs, test: Runs) -> dict[str, Any]:
    surrogate = fitted(train)
    means_MD = surrogate.means(test.mixtures_NPK)
    found = [
        rank_correlation(mean_M, real_M)
        for mean_M, real_M in zip(means_MD.T, test.values_ND.T, strict=True)
    ]
    headline = found[train.metrics.index(HEADLINE)]
    halves_MD = surrogate.half_widths(test.mixtures_NPK)
    inside = np.abs(means_MD - test.values_ND) <= halves_MD
    real_M = test.values_ND.mean(axis=1)
    picked = int(surrogate.objective(test.mixtures_NPK).argmin())
    return {
        "spearman": headline.value,
        "spearman_95": [headline.low, headline.high],
        "spearman_mean": float(np.mean([one.value for one in found])),
        "spearman_objective": rank_correlation(means_MD.mean(axis=1), real_M, resamples=1).value,
        "regret_at_1": float(real_M[picked] - real_M.min()),
        "coverage_90": float(inside.mean()),
    }


def regret(train: Runs, test: Runs) -> dict[str, Any]:
    """Regret@1 on the 256 by number of runs, and the difference to RegMix with a paired
    interval."""
    real_M = test.values_ND.mean(axis=1)
    found: dict[str, Any] = {}
    for size in SIZES:
        ours, theirs = [], []
        for seed in range(DRAWS if size < len(train.names) else 1):
            rows = np.random.Generator(np.random.PCG64([seed, size])).permutation(512)[:size]
            part = train.only(rows)
            mean_M = np.mean([one(test.mean_NK) for one in _processes(part)], axis=0)
            boosted = fit_lightgbm(part.mean_NK, part.values_ND.mean(axis=1))
            # LightGBM cannot split 32 runs: all its predictions are equal, so its choice is random
            shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(real_M))
            ours.append(float(real_M[mean_M.argmin()] - real_M.min()))
            at = shuffled[boosted(test.mean_NK)[shuffled].argmin()]
            theirs.append(float(real_M[at] - real_M.min()))
        paired = bootstrap_mean(np.array(ours) - np.array(theirs))
        found[str(size)] = {
            "ours": float(np.mean(ours)),
            "regmix": float(np.mean(theirs)),
            "random": float(real_M.mean() - real_M.min()),
            "ours_less_regmix": [paired.mean, paired.low, paired.high],
        }
        print(f"  {size:4} runs: {found[str(size)]}", flush=True)
    return found


def _processes(runs: Runs) -> list[Any]:
    return [FITS["gaussian_process"](runs.mean_NK, values_N) for values_N in runs.values_ND.T]


class Truth:
    """The result of any run, estimated from 768 real runs by one Gaussian process per metric."""

    def __init__(self, train: Runs, test: Runs) -> None:
        mixtures_NK = np.concatenate([train.mean_NK, test.mean_NK])
        values_ND = np.concatenate([train.values_ND, test.values_ND])
        self._fits = [FITS["gaussian_process"](mixtures_NK, values_N) for values_N in values_ND.T]

    def metrics(self, paths_MPK: Any) -> Any:
        return np.stack([fit(paths_MPK.mean(axis=1)) for fit in self._fits], axis=1)

    def objective(self, paths_MPK: Any) -> Any:
        return self.metrics(paths_MPK).mean(axis=1)


def top128(train: Runs, test: Runs) -> dict[str, float]:
    truth = Truth(train, test)
    domains = tuple(Domain(name, 1) for name in train.domains)
    ours: list[float] = []
    theirs: list[float] = []
    for seed in range(5):
        rows = np.random.Generator(np.random.PCG64([seed, 128])).permutation(512)[:128]
        part = train.only(rows)
        path_PK = _chosen(part, seed)
        boosted = [fit_lightgbm(part.mean_NK, values_N) for values_N in part.values_ND.T]
        candidates_MK = draw(domains, 100_000, np.random.Generator(np.random.PCG64([seed, 1])))
        predicted_M = np.mean([one(candidates_MK) for one in boosted], axis=0)
        mean_K = candidates_MK[np.argpartition(predicted_M, 128)[:128]].mean(axis=0)
        both = truth.objective(np.stack([path_PK, mean_K[None]]))
        ours.append(float(both[0]))
        theirs.append(float(both[1]))
    paired = bootstrap_mean(np.array(ours) - np.array(theirs))
    return {
        "ours": float(np.mean(ours)),
        "top128_of_100k": float(np.mean(theirs)),
        "ours_less_top128": paired.mean,
        "low": float(paired.low or 0.0),
        "high": float(paired.high or 0.0),
    }


def next_runs(train: Runs, test: Runs) -> dict[str, Any]:
    """Regret of the recommended mixture by number of runs for both designs.

    Also how many runs `--next` needs for the final regret of random designs.
    """
    truth = Truth(train, test)
    noise_D = np.std(train.values_ND, axis=0) * NEXT_NOISE
    best_PK = optimise(
        truth.objective, Bounds.of(train.domains), train.mixtures_NPK, np.ones(1), ((0,),)
    )
    lowest = float(truth.objective(best_PK[None])[0])
    sizes = {
        "random": list(range(NEXT_STEP, NEXT_END + 1, NEXT_STEP)),
        "next": list(range(NEXT_STEP, NEXT_END // 2 + 1, NEXT_STEP)),
    }
    curves: dict[str, list[list[float]]] = {"random": [], "next": []}
    for seed in range(NEXT_DRAWS):
        order = np.random.Generator(np.random.PCG64([seed, 7])).permutation(len(train.names))
        for name, counts in sizes.items():
            rng = np.random.Generator(np.random.PCG64([seed, 8]))
            paths = train.mixtures_NPK[order[:NEXT_STEP]]
            values = truth.metrics(paths) + noise_D * rng.normal(size=(NEXT_STEP, len(noise_D)))
            curve = []
            for count in counts:
                part = _as_runs(train, paths, values)
                surrogate = fitted(part, ["gaussian_process"])
                bounds = Bounds.of(train.domains)
                path_PK = choose(surrogate, bounds, paths, seed=seed).path_PK
                curve.append(float(truth.objective(path_PK[None])[0]) - lowest)
                more = (
                    train.mixtures_NPK[order[count : count + NEXT_STEP]]
                    if name == "random"
                    else propose_next(surrogate, bounds, paths, NEXT_STEP, seed)
                )
                measured = truth.metrics(more) + noise_D * rng.normal(
                    size=(len(more), len(noise_D))
                )
                paths, values = np.concatenate([paths, more]), np.concatenate([values, measured])
            curves[name].append(curve)
            print(f"  draw {seed} {name}: {np.round(curve, 4).tolist()}", flush=True)
    means = {name: np.mean(curve, axis=0) for name, curve in curves.items()}
    reached = np.flatnonzero(means["next"] <= means["random"][-1])
    needs = sizes["next"][int(reached[0])] if len(reached) else None
    return {
        "sizes": sizes,
        "random": means["random"].tolist(),
        "next": means["next"].tolist(),
        "random_runs": NEXT_END,
        "next_runs": needs,
        "ratio": needs / NEXT_END if needs else None,
    }


def _as_runs(like: Runs, paths_NPK: Any, values_ND: Any) -> Runs:
    names = tuple(map(str, range(len(paths_NPK))))
    return Runs(names, like.domains, like.metrics, paths_NPK, values_ND, like.shares_P)


def _chosen(runs: Runs, seed: int) -> Any:
    surrogate = fitted(runs, ["gaussian_process"])
    return choose(surrogate, Bounds.of(runs.domains), runs.mixtures_NPK, seed=seed).path_PK


def stages() -> dict[str, Any]:
    names = tuple(f"d{k}" for k in range(WORLD_DOMAINS))
    shares_P, bounds = np.array([0.5, 0.5]), Bounds.of(names)
    right = {"tied": 0, "phased": 0}
    done = {"tied": 0, "phased": 0}
    worse, skipped, seed = [], 0, 0
    while min(done.values()) < WORLDS:
        kind = "tied" if done["tied"] <= done["phased"] else "phased"
        seed += 1
        laws = ScalingLaws.draw(
            WORLD_DOMAINS, seed, intervals=20, forgetting=0.3 if kind == "phased" else 0.0
        )
        values_K = laws.value_K.numpy()

        def truth(paths_MPK: Any, laws: Any = laws, values_K: Any = values_K) -> Any:
            return _losses(laws, paths_MPK) @ values_K

        rng = np.random.Generator(np.random.PCG64([seed, 11]))
        paths = rng.dirichlet(np.ones(WORLD_DOMAINS), (WORLD_RUNS, 2))
        best = [
            float(truth(optimise(truth, bounds, paths, shares_P, split)[None])[0])
            for split in (((0, 1),), ((0,), (1,)))
        ]
        if kind == "phased" and best[0] - best[1] < CLEAR:
            skipped += 1
            continue
        measured = _losses(laws, paths) + WORLD_NOISE * rng.normal(size=(WORLD_RUNS, WORLD_DOMAINS))
        runs = Runs(tuple(map(str, range(WORLD_RUNS))), names, names, paths, measured, shares_P)
        usable, costs = runs.usable(dict(zip(names, values_K.tolist(), strict=True)))
        surrogate = fit_surrogate(usable, costs, ["gaussian_process"])
        choice = choose(surrogate, bounds, usable.mixtures_NPK)
        done[kind] += 1
        right[kind] += choice.is_tied == (kind == "tied")
        worse.append(float(truth(choice.path_PK[None])[0] - best[kind == "phased"]))
    return {
        "worlds": sum(done.values()),
        "right": sum(right.values()) / sum(done.values()),
        "phased_right": right["phased"] / done["phased"],
        "false_phases": 1 - right["tied"] / done["tied"],
        "regret": float(np.mean(worse)),
        "unclear_worlds_skipped": skipped,
    }


def _losses(laws: ScalingLaws, paths_MPK: Any) -> Any:
    """(M, K) final losses of runs whose first half is under the first mixture."""
    effective = laws.start_K.expand(len(paths_MPK), -1)
    for t in range(laws.intervals):
        phase = 2 * t // laws.intervals
        effective = laws.step(effective, torch.from_numpy(paths_MPK[:, phase].copy()), t)
    return laws.loss(effective).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True)
    parts = ("ranks", "regret", "top128", "next", "stages")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load(chosen.tables)
    work = {
        "ranks": lambda: ranks(train, test),
        "regret": lambda: regret(train, test),
        "top128": lambda: top128(train, test),
        "next": lambda: next_runs(train, test),
        "stages": stages,
    }
    figures: dict[str, Any] = {}
    for part in chosen.parts:
        began = time.perf_counter()
        print(part, flush=True)
        figures[part] = work[part]()
        print(f"  {figures[part]}  ({time.perf_counter() - began:.0f} s)", flush=True)
    found = figures.get("ranks", {})
    print(
        json.dumps(
            {
                "regmix_1m_spearman": found.get("spearman"),
                "regmix_1m_spearman_95": found.get("spearman_95"),
                "regmix_1m_spearman_mean": found.get("spearman_mean"),
                "regmix_regret_at_1": found.get("regret_at_1"),
                "vs_top128_of_100k": figures.get("top128", {}).get("ours_less_top128"),
                "runs_to_same_regret": figures.get("next", {}).get("ratio"),
                "tied_or_phased_right": figures.get("stages", {}).get("right"),
                "false_phases": figures.get("stages", {}).get("false_phases"),
                **figures,
            }
        )
    )


if __name__ == "__main__":
    main()

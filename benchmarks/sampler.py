"""How diverse are the scoring sampler's trajectories, against random walks and static mixtures?

    python benchmarks/sampler.py                          64 runs of 40 intervals each, at K = 2,
                                                          12 and 52; a minute
    python benchmarks/sampler.py --out trajectories.html  the same, and a picture of them

Runs are simulated (`cuvee.simulation.continual`: source domains are forgotten, target domains begin
unknown), all from one base model. For each kind of trajectory: the figures of
`cuvee.learning.coverage`, and the spread of the runs' results, e_T of `cuvee.policies.feedback` in
percent, without noise. A policy can only learn which paths are good from data with good and bad
ones. For comparison: the best constant mixture that divides each field by its tokens, of 21 target
shares.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Trajectory
from cuvee.learning.coverage import coverage
from cuvee.loop import run
from cuvee.methods.baselines.random_walk import RandomWalkPolicy
from cuvee.policies.fixed import Fixed
from cuvee.policies.history.heuristics import role_shares
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.report.figures.trajectories import trajectories_figure
from cuvee.simulation.continual import continual, feedback_gain
from cuvee.simulation.simulator import ScalingLaws, Simulator

SPACES = {2: (1, 1), 12: (9, 3), 52: (26, 26)}
"""K → source and target domains."""
QUESTIONS = {"general": ["simulated"], "target": ["simulated"]}


def kinds(domains: Sequence[Domain]) -> dict[str, Callable[[int], Policy]]:
    names = [domain.name for domain in domains]

    def constant(n: int) -> Policy:
        return Fixed(
            Mixture.normalise(
                names, np.random.default_rng([n, len(names)]).dirichlet(np.ones(len(names)))
            )
        )

    return {
        "scoring sampler": lambda n: ScoringSampler(0, n, evaluation=QUESTIONS),
        "random walk": lambda n: RandomWalkPolicy(n),
        "constant Dirichlet": constant,
    }


def best_constant(laws: ScalingLaws, domains: tuple[Domain, ...]) -> dict[str, float]:
    source_K, target_K = role_shares(domains, "source"), role_shares(domains, "target")
    found = {}
    for share in np.linspace(0.0, 1.0, 21):
        weights_K = torch.from_numpy((1 - share) * source_K + share * target_K)
        found[float(share)] = feedback_gain(laws, weights_K.expand(laws.intervals, -1))
    share, gain = max(found.items(), key=lambda item: item[1])
    return {"target_share": share, "percent": 100 * gain}


def figures(made: Sequence[Trajectory], laws: ScalingLaws) -> dict[str, Any]:
    found = coverage(made)
    ends = [
        100 * feedback_gain(laws, torch.from_numpy(trajectory.weights_TK())) for trajectory in made
    ]
    return {
        **{
            name: round(value, 4)
            for name, value in asdict(found).items()
            if isinstance(value, float)
        },
        "target_share_Q5": found.target_share_Q5.round(3).tolist(),
        "entropy": [round(value, 3) for value in found.entropy],
        "feedback_percent": np.quantile(ends, [0.0, 0.1, 0.5, 0.9, 1.0]).round(2).tolist(),
    }


def show(K: int, found: dict[str, Any]) -> None:
    best = found["best_constant"]
    print(
        f"K = {K}: best constant target share {best['target_share']:.2f}, "
        f"which ends at {best['percent']:+.2f} %"
    )
    for kind, said in found.items():
        if kind == "best_constant":
            continue
        print(
            f"  {kind:19} distance {said['distance']:.3f} (target {said['target_distance']:.3f}, "
            f"source {said['source_distance']:.3f}), change {said['change']:.3f}, "
            f"emphasised {said['emphasised']:.2f} of {said['ever_emphasised']:.2f}, "
            f"entropy {said['entropy']}"
        )
        rows = (
            f"{low:.2f} {middle:.2f} {high:.2f}"
            for low, _, middle, _, high in said["target_share_Q5"]
        )
        print(f"{'':21} target share 10, 50, 90 % at each quarter: {' | '.join(rows)}")
        print(
            f"{'':21} ends, 0, 10, 50, 90, 100 %: "
            f"{' '.join(f'{end:+.2f}' for end in said['feedback_percent'])}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--domains", type=int, nargs="+", default=list(SPACES), choices=list(SPACES)
    )
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--intervals", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the simulated world")
    parser.add_argument("--out", type=Path, help="FILE.html for the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    drawn: dict[str, list[Trajectory]] = {}
    for K in options.domains:
        laws, domains = continual(*SPACES[K], options.seed, intervals=options.intervals)
        found[str(K)] = {"best_constant": best_constant(laws, domains)}
        for kind, policy in kinds(domains).items():
            made = [
                run(Simulator(laws, options.seed, domains=domains), policy(n))
                for n in range(options.runs)
            ]
            found[str(K)][kind] = figures(made, laws)
            drawn[f"{kind}, K = {K}"] = made
        show(K, found[str(K)])
    if options.out:
        trajectories_figure(drawn).write_html(options.out)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

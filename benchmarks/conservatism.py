"""Where does the conservative term of Q-learning start to matter? Simulated runs.

    python benchmarks/conservatism.py                  5 seeds, 5 ratios, two kinds of logs
    python benchmarks/conservatism.py --seeds 1 --ratios 0 0.3 --updates 200

Logs are trajectories of the scoring sampler in simulated continual pre-training
(`cuvee.simulation.continual`), 3 source and 2 target domains, 10 intervals. A small agent is cloned and
then learns with each `cql_ratio`, from the same logs, networks and batches. No evaluation chooses
among its actors: the last one is played, and its true result is known.

    plain     logs and truth are those of the simulator
    planted   overestimation is planted: no log has a target share above 0.3, and truly every point
              above 0.35 costs. In the logs, more target text is always better, so that whoever
              trusts the critics beyond the data falls

    gain      true e of the last actor above that of the cloned one, in points
    promised  e that the critics expect at the beginning, above the truth, in points
    share     target share of the actor, mean over the run
    achieved  the ratio of the gradients that was reached

Intervals are 95 %, over seeds; gains are paired with ratio 0. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Run, Trajectory
from cuvee.evaluation.statistics import paired_difference
from cuvee.learning.episodes import ReturnScale
from cuvee.learning.history_learning import Learned, LearnProgress, learn
from cuvee.learning.learn_settings import LearnSettings
from cuvee.learning.logged_runs import as_episode
from cuvee.loop import run
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.continual import continual, feedback_gain
from cuvee.simulation.simulator import Simulator

SOURCES, TARGETS, INTERVALS = 3, 2, 10
KINDS = ("plain", "planted")
RATIOS = (0.0, 0.01, 0.03, 0.1, 0.3)
AGENT = {
    "architecture": {"hidden": 16, "layers": 1, "heads": 2, "action": 8},
    "critic_warmup_steps": 60,
}
MOST, EDGE, COST = 0.3, 0.35, 1.0
QUESTIONS = {"general": ["simulated"], "target": ["simulated"]}


class Timid(ScoringSampler):
    """A sampler whose target share is at most `MOST`."""

    def mixture(self, so_far: Trajectory) -> Mixture:
        found = super().mixture(so_far)
        target_K = np.array([domain.is_target for domain in so_far.domains])
        share = float(found.weights_K[target_K].sum())
        if share <= MOST:
            return found
        factor_K = np.where(target_K, MOST / share, (1 - MOST) / (1 - share))
        return Mixture.normalise(found.names, found.weights_K * factor_K)


class Planted:
    """Logs and truth of one seed."""

    def __init__(self, seed: int, count: int, planted: bool) -> None:
        self.laws, self.domains = continual(SOURCES, TARGETS, seed, INTERVALS)
        self.planted = planted
        self.runs = []
        for number in range(count):
            sampler = (Timid if planted else ScoringSampler)(seed, number, evaluation=QUESTIONS)
            walk = self.play(sampler, 1000 * seed + number)
            self.runs.append(Run(f"walk-{number}", number, {}, walk))

    def play(self, policy: Any, seed: int) -> Trajectory:
        return run(Simulator(self.laws, seed=seed, domains=self.domains), policy)

    def truth(self, path: Trajectory) -> float:
        e = feedback_gain(self.laws, torch.from_numpy(path.weights_TK()))
        share_T = path.weights_TK()[:, SOURCES:].sum(1)
        return e - self.planted * COST * float(np.maximum(share_T - EDGE, 0).mean())


def promised(learned: Learned, runs: Sequence[Run], path: Trajectory) -> float:
    """e at the end, as the critics see it at the beginning of `path`."""
    feedback = Feedback()
    episodes = [as_episode(one.trajectory, feedback) for one in runs]
    scale = ReturnScale.of(episodes, 1.0)
    start = as_episode(path, feedback)
    critic = learned.policy.critic
    with torch.no_grad():
        tokens = critic.encode(
            torch.from_numpy(start.domains_TKF[None]), torch.from_numpy(start.globals_TG[None])
        )
        values = critic.values(tokens[:, 0], torch.from_numpy(start.actions_TK[None, 0]))
    q = float(torch.stack(values).mean())
    return q * scale.scale + float(scale.potential[SOURCES + TARGETS][0])


def one(planted: bool, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    world = Planted(seed, options.runs, planted)
    found: dict[str, Any] = {}
    cloned = 0.0
    for ratio in ("sft", *options.ratios):
        seen: list[LearnProgress] = []
        settings = LearnSettings.of(
            {
                "held_out": 0.0,
                "coarse": False,
                "bc_updates": options.clones,
                "updates": 0 if ratio == "sft" else options.updates,
                "cql_ratio": 0.0 if ratio == "sft" else ratio,
                **AGENT,
                **options.agent,
            }
        )
        learned = learn(world.runs, Feedback(), settings, seed, observer=seen.append)
        learned.policy.probes = ScoringSampler(evaluation=QUESTIONS).probes
        path = world.play(learned.policy, 10**6 + seed)
        e = world.truth(path)
        cloned = e if ratio == "sft" else cloned
        found[str(ratio)] = {
            "e": 100 * e,
            "gain": 100 * (e - cloned),
            "share": float(path.weights_TK()[:, SOURCES:].sum(1).mean()),
        }
        if ratio != "sft":
            said = seen[-1].metrics
            found[str(ratio)] |= {
                "promised": 100 * (promised(learned, world.runs, path) - e),
                "achieved": said["cql_ratio"],
                "alpha": said["cql_alpha"],
                "gap": said["conservative_gap"],
            }
    return found


def summary(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for ratio, row in next(iter(by_seed.values())).items():
        table[ratio] = {
            key: float(np.mean([one[ratio][key] for one in by_seed.values()])) for key in row
        }
        ours, none = ({s: one[r]["e"] for s, one in by_seed.items()} for r in (ratio, "0.0"))
        estimate = paired_difference(ours, none)
        if estimate is not None:
            table[ratio]["over_0"] = [estimate.mean, estimate.low, estimate.high]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=48)
    parser.add_argument("--clones", type=int, default=60)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--agent", type=json.loads, default={}, help="more settings, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name in options.logs:
        by_seed = {}
        for seed in range(options.first, options.first + options.seeds):
            by_seed[seed] = one(name == "planted", seed, options)
            print(name, seed, json.dumps(by_seed[seed]), flush=True)
        result[name] = summary(by_seed)
    print(json.dumps({"benchmark": "conservatism", **result}))


if __name__ == "__main__":
    main()

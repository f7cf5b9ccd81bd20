"""Does learning from logged runs help? Simulated continual pre-training with known true rewards.

    python benchmarks/learn.py                      5 seeds of 5 and 12 domains, an hour on one core
    python benchmarks/learn.py --seeds 1 --tasks 5x20
    python benchmarks/learn.py --full-size          the time for 27,266 transitions of 52 domains,
                                                    extrapolated from a part
    python benchmarks/learn.py --full-size --whole  the same without extrapolating

Tasks are DOMAINSxINTERVALS (`cuvee.simulation.continual`). `--runs` trajectories of the scoring
sampler are logged. A policy is learned from them as `cuvee learn` does, and steers a run with
another seed. Figures are the true feedback at the end, without noise:

    behaviour      mean of the logged trajectories
    top_quantile   mean of their best fifth, which is imitated
    sft            the policy after behaviour cloning
    learned        the policy that is kept
    best_logged    the best trajectory, known only in hindsight
    best_static    the best constant mixture, by gradient ascent on the truth
    best_schedule  the best path of mixtures, likewise
    fallback       the static mixture fitted to the logs, played where the policy lacks support

`judged` is the off-policy estimate of the learned policy's gain over behaviour, with its interval.
`truth` is that gain. The last line printed is one JSON object with every seed, and means with 95 %
bootstrap intervals over seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from cuvee.core.trajectory import Run, Trajectory
from cuvee.evaluation.statistics import paired_difference
from cuvee.learning.episodes import Episode
from cuvee.learning.history_learning import learn
from cuvee.learning.learn_settings import LearnSettings
from cuvee.learning.offline import OfflineLearner
from cuvee.loop import run
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.features import HISTORY_FEATURES, HISTORY_GLOBALS
from cuvee.policies.history.scoring_sampler import ScoringSampler
from cuvee.simulation.continual import continual, feedback_gain
from cuvee.simulation.simulator import Simulator

TASKS = {"5x20": (3, 2, 20), "12x20": (9, 3, 20), "12x40": (8, 4, 40)}
TRANSITIONS, DOMAINS, INTERVALS = 27_266, 52, 80


class _Evaluation:
    name = "evaluation"


def one(task: str, seed: int, runs: int, options: dict[str, Any]) -> dict[str, Any]:
    sources, targets, intervals = TASKS[task]
    laws, domains = continual(sources, targets, seed, intervals)

    def played(policy: Any, number: int) -> Trajectory:
        policy.probes = (_Evaluation(),)
        return run(Simulator(laws, seed=number, domains=domains), policy)

    def truth(trajectory: Trajectory) -> float:
        return feedback_gain(laws, torch.from_numpy(trajectory.weights_TK()))

    walks = [played(ScoringSampler(seed, number), 1000 * seed + number) for number in range(runs)]
    logged = [Run(f"walk-{number}", number, {}, walk) for number, walk in enumerate(walks)]
    earned = np.array([truth(walk) for walk in walks])
    started = time.process_time()
    learned = learn(logged, Feedback(), LearnSettings.of(options), seed)
    seconds = time.process_time() - started
    cloned = learn(logged, Feedback(), LearnSettings.of({**options, "updates": 0}), seed)
    estimate = next(iter(learned.estimates.values()))
    own = truth(played(_actor(learned.policy), 10**6 + seed))
    static_K = laws.best_static()
    return {
        "behaviour": earned.mean(),
        "top_quantile": np.sort(earned)[-runs // 5 :].mean(),
        "sft": truth(played(_actor(cloned.policy), 10**6 + seed)),
        "learned": own,
        "fallback": feedback_gain(
            laws, torch.from_numpy(np.tile(estimate.static_K, (intervals, 1)))
        ),
        "best_logged": earned.max(),
        "best_static": feedback_gain(laws, static_K.expand(intervals, -1)),
        "best_schedule": feedback_gain(laws, laws.best_schedule()),
        "judged": [estimate.gain.mean, estimate.gain.low, estimate.gain.high],
        "truth": own - earned.mean(),
        "supported": estimate.supported,
        "update": learned.provenance["support"]["update"],
        "seconds": seconds,
    }


def _actor(policy: Any) -> Any:
    """The learned policy itself, whatever off-policy evaluation said of it."""
    bare = type(policy)(**{**policy.settings(), "support": None})
    bare.load_state_dict(policy.state_dict())
    return bare


def full_size(whole: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each preset at the paper's data size.

    The memory for all of the data is held while some of the updates are timed.
    """
    rng, count = np.random.default_rng(0), round(TRANSITIONS / INTERVALS)
    T, K = INTERVALS, DOMAINS
    episodes = [
        Episode(
            rng.normal(size=(T + 1, K, len(HISTORY_FEATURES))).clip(-3, 3).astype(np.float32),
            rng.normal(size=(T + 1, len(HISTORY_GLOBALS))).clip(-3, 3).astype(np.float32),
            rng.dirichlet(np.ones(K), size=T).astype(np.float32),
            rng.normal(size=T).astype(np.float32),
        )
        for _ in range(count)
    ]
    found: dict[str, Any] = {
        "transitions": count * T,
        "domains": K,
        "threads": torch.get_num_threads(),
    }
    for preset in ("small", "full"):
        settings = LearnSettings.of({**options, "architecture": preset, "critic_warmup_steps": 0})
        agent = OfflineLearner(episodes, settings, seed=0)
        parameters = sum(
            p.numel() for net in (agent.actor.net, agent.critic.net) for p in net.parameters()
        )
        parts = {
            "clone": (agent.clone, settings.bc_updates),
            "update": (agent.update, settings.updates),
        }
        timed: dict[str, float] = {}
        for name, (step, planned) in parts.items():
            step()
            slice_ = planned if whole else 3
            started, used = time.perf_counter(), time.process_time()
            for _ in range(slice_):
                step()
            timed[name] = (time.perf_counter() - started) / slice_
            timed[f"{name}_processor"] = (time.process_time() - used) / slice_
        minutes, busy = (
            (
                timed[f"clone{kind}"] * settings.bc_updates
                + timed[f"update{kind}"] * settings.updates
            )
            / 60
            for kind in ("", "_processor")
        )
        found[preset] = {
            "parameters": parameters,
            "extrapolated": not whole,
            "minutes": minutes,
        } | timed
        found[preset]["processor_minutes"] = busy
        print(preset, found[preset], flush=True)
    return found


def summary(results: dict[str, dict[int, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for task, by_seed in results.items():
        columns = (
            *("behaviour", "top_quantile", "sft", "learned", "fallback"),
            *("best_logged", "best_static", "best_schedule"),
        )
        said[task] = {
            name: float(np.mean([result[name] for result in by_seed.values()])) for name in columns
        }
        for rival in ("behaviour", "sft", "top_quantile", "fallback", "best_static"):
            ours, theirs = (
                {seed: result[name] for seed, result in by_seed.items()}
                for name in ("learned", rival)
            )
            estimate = paired_difference(ours, theirs)
            assert estimate is not None
            said[task][f"over_{rival}"] = [estimate.mean, estimate.low, estimate.high]
        within = [
            result["judged"][1] <= result["truth"] <= result["judged"][2]
            for result in by_seed.values()
        ]
        said[task] |= {
            "interval_holds_truth": float(np.mean(within)),
            "seeds": {str(k): v for k, v in by_seed.items()},
        }
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="5x20,12x20", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=256)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="a setting of the agent"
    )
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    if given.full_size:
        print(json.dumps(full_size(given.whole, options)))
        return
    results: dict[str, dict[int, Any]] = {}
    for task in given.tasks.split(","):
        for seed in range(given.seeds):
            results.setdefault(task, {})[seed] = one(task, seed, given.runs, options)
            print(task, seed, json.dumps(results[task][seed]), flush=True)
    print(json.dumps({"runs": given.runs, "options": options, **summary(results)}))


if __name__ == "__main__":
    main()

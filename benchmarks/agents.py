"""Do the agents learn? On a bandit with a known best mixture, a simulator, and a changing optimum.

    python benchmarks/agents.py                       10 seeds, minutes a task on one core
    python benchmarks/agents.py --processes 2         the same figures, sooner
    python benchmarks/agents.py --seeds 2 --tasks bandit-ddpg-5

*Bandit.* Domain i pays 1 − α_i/α*_i, which falls with its use. So the mixture pays
Σ α_i (1 − α_i/α*_i) = −χ²(α, α*), which is highest at α*. An agent observes that number (or, with a
vector critic, the K payments) with noise whose deviation is 0.1 of the loss of uniform. Figure: the
loss of its mixture, without noise and exploration, as a share of the loss of uniform.

*Simulator.* 500 runs of 10 intervals over domains that are forgotten at different rates
(`ScalingLaws.draw`), ended by the token budget. The reward comes at the end: how much lower the
valued validation loss is than that of a uniform run. Figure: the share of the best schedule's gain
over uniform. The best schedule and the best constant mixture are found by gradient ascent through
the simulator.

*Halves.* Domain 0 pays in the first half of a run and domain 1 in the second, for 2,000 intervals.
Figure: the share of the best return that the agent's mixtures earn. `held` says whether it is at
least 0.95 with every seed, which is promised of five (`--tasks halves-ddpg halves-sac --seeds 5`).
The tests check two of them.

*Paper* (only with `--tasks paper-ac_odm paper-hds`). The published settings of AC-ODM and HDS in one
simulated run of 5,000 intervals, 12 domains that count alike. Figure: the share of the best constant
mixture's gain over uniform; `odm` is that of ODM, which the papers compare with.

The last line printed is one JSON object: per task the mean over seeds with a 95 % bootstrap
interval, and every seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from cuvee import loop
from cuvee.agents.base import Observation, Transition
from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.sac import SAC, SACSettings
from cuvee.core.mixture import Mixture
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.hds import HDS
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.simulation.simulator import ScalingLaws, Simulator

BANDIT_STEPS = 5_000
EPISODES = 500
INTERVALS = 10
NOISE = 0.1
FEATURES = 4


class Bandit:
    def __init__(self, domains: int, seed: int, vector: bool) -> None:
        self.rng = np.random.default_rng([seed, domains])
        self.best_K = 0.8 * self.rng.dirichlet(np.ones(domains)) + 0.2 / domains
        self.uniform = self.regret(np.full(domains, 1 / domains))
        self.vector = vector
        features_KF = self.rng.normal(size=(domains, FEATURES)).astype(np.float32)
        self.observation = Observation(features_KF, np.zeros(1, np.float32))

    def regret(self, action_K: np.ndarray) -> float:
        return float((action_K * action_K / self.best_K).sum() - 1)

    def pull(self, action_K: np.ndarray) -> Any:
        noise = NOISE * self.uniform
        if self.vector:  # independent entries, as noisy in their sum under uniform as the scalar is
            return (
                1
                - action_K / self.best_K
                + noise * np.sqrt(len(action_K)) * self.rng.normal(size=len(action_K))
            )
        return -self.regret(action_K) + noise * self.rng.normal()


def bandit(kind: str, domains: int, steps: int, seed: int) -> dict[str, float]:
    vector = kind == "ddpg-vector"
    shape = Shape(domains, FEATURES, 1, vector)
    agent: Any
    if kind == "sac":
        agent = SAC(shape, SACSettings(std=0.5, batch_size=128), seed)
    elif vector:
        agent = DDPG(
            shape, DDPGSettings(architecture=Architecture("transformer", hidden=32, layers=1)), seed
        )
    else:
        agent = DDPG(shape, seed=seed)
    task, before = Bandit(domains, seed, vector), agent.actor.state_dict()["net"]
    for _ in range(steps):
        action_K = agent.act(task.observation, explore=True)
        reward = task.pull(action_K)
        agent.observe(Transition(task.observation, action_K, reward, task.observation))
        agent.update()
    return {
        "regret": task.regret(agent.act(task.observation)) / task.uniform,
        **movement(agent, before),
    }


def movement(agent: Any, before: Any) -> dict[str, float]:
    """How far the actor has moved, and how far the next targets are from moving by τ alone."""
    after = agent.actor.state_dict()["net"]
    moved = np.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before))
    slow = agent.critic.state_dict()["target"]
    agent.update()
    state = agent.critic.state_dict()
    error = max(
        float(
            np.abs(
                state["target"][name] - old - agent.settings.tau * (state["net"][name] - old)
            ).max()
        )
        for name, old in slow.items()
    )
    return {"actor_moved": moved, "target_error": error}


class Course:
    """Episodes on one set of laws: what the agent sees of a run, and what it is paid at the end."""

    def __init__(self, domains: int, seed: int) -> None:
        self.laws = ScalingLaws.draw(domains, seed, intervals=INTERVALS)
        self.shape = Shape(domains, 2, 2)
        self.reference_TK = np.stack(self.play(lambda _: np.full(domains, 1 / domains), 77)[1])

    def play(
        self, choose: Callable[[int], np.ndarray], seed: int
    ) -> tuple[Simulator, list[np.ndarray]]:
        simulator = Simulator(self.laws, seed)
        signals = simulator.start(())
        losses = [signals.probes["valid_loss"].values]
        while not simulator.done:
            signals = simulator.advance(Mixture.normalise(signals.names, choose(len(losses) - 1)))
            losses.append(signals.probes["valid_loss"].values)
        return simulator, losses

    def observe(self, t: int, loss_K: np.ndarray, before_K: np.ndarray) -> Observation:
        """Losses and their last changes relative to the uniform run, clipped to ±3, and the
        time."""
        reference = self.reference_TK
        change_K = loss_K - before_K - (reference[t] - reference[max(t - 1, 0)])
        features_KF = np.clip(np.stack([4 * (loss_K - reference[t]), 10 * change_K], -1), -3, 3)
        progress = t / self.laws.intervals
        clock_G = np.array([2 * progress - 1, 4 * max(0.0, progress - 0.75)], np.float32)
        return Observation(features_KF.astype(np.float32), clock_G)

    def episode(self, agent: Any, seed: int, learn: bool) -> float:
        """One run under `agent`; returns the true valued loss at its end."""
        simulator = Simulator(self.laws, seed)
        signals = simulator.start(())
        loss_K = signals.probes["valid_loss"].values
        observation = self.observe(0, loss_K, loss_K)
        for t in range(1, self.laws.intervals + 1):
            action_K = agent.act(observation, explore=learn)
            before_K, signals = (
                loss_K,
                simulator.advance(Mixture.normalise(signals.names, action_K)),
            )
            loss_K = signals.probes["valid_loss"].values
            following = self.observe(t, loss_K, before_K)
            if learn:
                gain = float((self.reference_TK[-1] - loss_K) @ self.laws.value_K.numpy())
                reward = gain if simulator.done else 0.0
                agent.observe(
                    Transition(observation, action_K, reward, following, terminated=simulator.done)
                )
                agent.update()
            observation = following
        return simulator.valued_loss()


def simulator(kind: str, domains: int, seed: int) -> dict[str, float]:
    course = Course(domains, seed)
    common: dict[str, Any] = {"discount": 1.0, "tau": 0.02, "actor_lr": 3e-4, "batch_size": 64}
    agent: Any
    if kind == "sac":
        agent = SAC(course.shape, SACSettings(**common, std=0.5), seed)
    else:
        agent = DDPG(course.shape, DDPGSettings(**common, twin=True), seed)
    before = agent.actor.state_dict()["net"]
    for episode in range(EPISODES):
        course.episode(agent, 1000 * seed + episode, learn=True)
    laws = course.laws
    even = torch.full((laws.intervals, domains), 1 / domains, dtype=torch.float64)
    uniform = float(laws.objective(even))
    room = uniform - float(laws.objective(laws.best_schedule()))
    static = uniform - float(laws.objective(laws.best_static().expand(laws.intervals, -1)))
    ends = [course.episode(agent, 10**6 + run, learn=False) for run in range(3)]
    share = (uniform - float(np.mean(ends))) / room
    return {"share": share, "static_share": static / room, **movement(agent, before)}


HALVES_STEPS = 2_000
HALVES_INTERVALS = 20


def halves(kind: str, seed: int) -> dict[str, float]:
    common: dict[str, Any] = {
        "discount": 0.95,
        "tau": 0.01,
        "actor_lr": 1e-3,
        "critic_lr": 2e-3,
        "learning_starts": 50,
        "ema_rate": 0.01,
        "architecture": Architecture(hidden=32, layers=1),
    }
    shape = Shape(3, 3, 1, vector=True)
    agent: Any = (
        SAC(shape, SACSettings(**common, std=0.15), seed)
        if kind == "sac"
        else DDPG(shape, DDPGSettings(**common, noise=0.3), seed)
    )
    rng, before = np.random.default_rng(seed), agent.actor.state_dict()["net"]
    payments = np.eye(3)[[int(2 * t >= HALVES_INTERVALS) for t in range(HALVES_INTERVALS)]]
    seen = [
        Observation(np.eye(3, dtype=np.float32), np.array([progress], np.float32))
        for progress in np.linspace(-1, 1, HALVES_INTERVALS + 1)
    ]
    for step in range(HALVES_STEPS):
        t = step % HALVES_INTERVALS
        action_K = agent.act(seen[t], explore=True)
        reward_K = payments[t] + 0.2 * rng.normal(size=3)
        last = t == HALVES_INTERVALS - 1
        agent.observe(Transition(seen[t], action_K, reward_K, seen[t + 1], terminated=last))
        agent.update()
    earned = [agent.act(seen[t]) @ payments[t] for t in range(HALVES_INTERVALS)]
    return {"earned": float(np.mean(earned)), **movement(agent, before)}


PAPER_INTERVALS = 5_000
PAPER_DOMAINS = 12


def paper(kind: str, seed: int) -> dict[str, float]:
    """One run of as many tokens as `ScalingLaws.draw` gives one of 25 intervals."""
    parts = PAPER_INTERVALS / 25
    coarse = ScalingLaws.draw(PAPER_DOMAINS, seed)
    coarse = replace(coarse, value_K=torch.full((PAPER_DOMAINS,), 1 / PAPER_DOMAINS).double())
    fine = replace(
        coarse,
        intervals=PAPER_INTERVALS,
        interval=coarse.interval / parts,
        forgetting_K=1 - (1 - coarse.forgetting_K) ** (1 / parts),
    )
    simulated = Simulator(fine, seed, steps_per_interval=1)
    quality = {domain.name: 1.0 for domain in simulated.domains}
    method: Any = (
        HDS(preset="paper", quality=quality, seed=seed)
        if kind == "hds"
        else ACODM(preset="paper", seed=seed)
    )

    def end(policy: Any) -> float:
        trainer = Simulator(fine, seed, steps_per_interval=1)
        loop.run(trainer, policy)
        return trainer.valued_loss()

    names = [domain.name for domain in simulated.domains]
    uniform = end(Fixed(Mixture.normalise(names, np.ones(PAPER_DOMAINS))))
    room = uniform - end(Fixed(Mixture.normalise(names, coarse.best_static().numpy())))
    policy = method.commit(simulated, ())
    learned = uniform - end(policy)
    return {"share": learned / room, "odm": (uniform - end(Exp3())) / room, "room": room}


TASKS: dict[str, Callable[[int], dict[str, float]]] = {
    **{
        f"bandit-{kind}-{K}": partial(bandit, kind, K, BANDIT_STEPS)
        for kind in ("ddpg", "sac")
        for K in (5, 22, 52)
    },
    "bandit-ddpg-vector-52": partial(bandit, "ddpg-vector", 52, BANDIT_STEPS),
    "simulator-sac-5": partial(simulator, "sac", 5),
    "simulator-ddpg-5": partial(simulator, "ddpg", 5),
    "halves-ddpg": partial(halves, "ddpg"),
    "halves-sac": partial(halves, "sac"),
    "paper-ac_odm": partial(paper, "ac_odm"),
    "paper-hds": partial(paper, "hds"),
}
SHORT = [task for task in TASKS if not task.startswith("paper")]


def attempt(task: str, seed: int) -> dict[str, float]:
    torch.set_num_threads(1)
    started = time.perf_counter()
    result = {**TASKS[task](seed), "seconds": time.perf_counter() - started}
    print(
        f"{task} seed {seed}: " + " ".join(f"{name}={value:.4g}" for name, value in result.items()),
        flush=True,
    )
    return result


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    figure = next(name for name in ("regret", "share", "earned") if name in results[0])
    values = np.array([result[figure] for result in results])
    means = np.random.default_rng(0).choice(values, size=(10_000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    told: dict[str, Any] = {
        figure: float(values.mean()),
        "ci95": [low, high],
        "seeds": values.round(5).tolist(),
    }
    for more in ("static_share", "odm", "room"):
        if more in results[0]:
            told[more] = float(np.mean([result[more] for result in results]))
    if figure == "earned":
        told["held"] = bool(values.min() >= 0.95)
    if "actor_moved" in results[0]:
        told["actor_moved_least"] = min(result["actor_moved"] for result in results)
        told["target_error_most"] = max(result["target_error"] for result in results)
    told["seconds"] = float(np.mean([result["seconds"] for result in results]))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=SHORT)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    work = [(task, seed) for task in arguments.tasks for seed in range(arguments.seeds)]
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = list(pool.map(attempt, *zip(*work, strict=True)))
    by_task = {
        task: summary(
            [result for (name, _), result in zip(work, results, strict=True) if name == task]
        )
        for task in arguments.tasks
    }
    print(json.dumps(by_task))


if __name__ == "__main__":
    main()

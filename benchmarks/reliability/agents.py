"""Tests 16 to 19: agents and policies. The conformance suites of `tests/unit` build them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import stable_baselines3 as sb3
from stable_baselines3.common.noise import NormalActionNoise

from cuvee.agents.base import Transition
from cuvee.agents.cql import CQL, CQLSettings
from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.replay_agent import ReplayAgent
from cuvee.agents.sac import SAC, SACSettings
from cuvee.core.domain import Domain
from cuvee.core.errors import SignalError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.registry import METHODS, POLICIES
from cuvee.core.signals import Measured, Signals
from cuvee.core.state import digest, load_state, save_state
from cuvee.core.trajectory import Trajectory
from cuvee.policies.exp3 import Exp3
from cuvee.policies.guard import guard as guards
from cuvee.policies.guard import sanitizer
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.testing.agent import POISON, AgentSuite
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains
from golden.test_agents_learn import BEST, COMMON, SHAPE, STATE, UNIFORM, loss
from registered import Space, methods_that_steer_alone
from reliability.measure import Result, measured
from unit import (
    test_agent_policy,
    test_agents,
    test_doremi,
    test_history_policy,
    test_paced,
    test_policies,
    test_schedule,
    test_scoring_sampler,
)

FAMILIES = (test_agent_policy, test_agents, test_doremi, test_history_policy, test_paced,
            test_policies, test_schedule, test_scoring_sampler)  # fmt: skip
Make = Callable[[tuple[Domain, ...]], Policy]


def suites(kind: type[Any]) -> list[Any]:
    """The conformance suites of the unit tests, one for each kind of policy or agent."""
    found = (value for module in FAMILIES for value in vars(module).values())
    named = {
        value.__name__: value()
        for value in found
        if isinstance(value, type) and issubclass(value, kind) and value is not kind
    }
    return list(named.values())


def policies() -> list[Make]:
    def committed(name: str) -> Make:
        return lambda domains: METHODS.get(name)().commit(Space(domains), ())

    return [suite.make for suite in suites(PolicySuite)] + [
        committed(name) for name in methods_that_steer_alone()
    ]


def numbers(state: Any) -> Iterator[Any]:
    """Every array and number of a state, in order."""
    if isinstance(state, Mapping):
        for key in sorted(state, key=str):
            yield from numbers(state[key])
    elif isinstance(state, (list, tuple)):
        for item in state:
            yield from numbers(item)
    elif isinstance(state, (np.ndarray, float, int)) and not isinstance(state, bool):
        yield np.asarray(state)


def finite(state: Any) -> bool:
    return all(np.isfinite(array).all() for array in numbers(state) if array.dtype.kind == "f")


# ------------------------------------------------------------------------------ 16: injected values

PLACES = ("domains", "globals", "action", "reward", "next domains", "next globals")


def poison_agents(each: int) -> dict[str, int]:
    """Poisoned transitions: refused with a reason, and the agent is unchanged."""
    found = {"injections": 0, "changed": 0, "unnamed": 0}
    for suite in suites(AgentSuite):
        agent = suite.filled()
        agent.update()
        rng = np.random.default_rng(0)
        before = digest(agent.state_dict())
        for _ in range(each):
            place = str(rng.choice(PLACES))
            reason = agent.observe(suite.poisoned(place, float(rng.choice(POISON))))
            found["injections"] += 1
            found["unnamed"] += not reason or place.split()[-1] not in reason
            found["changed"] += digest(agent.state_dict()) != before
    return found


class Spoiled(ScriptedTrainer):
    """In every second interval one measurement is far too large, or missing, or a domain is."""

    def __init__(self, domains: tuple[Domain, ...], intervals: int, seed: int) -> None:
        super().__init__(domains, intervals)
        self.rng = np.random.default_rng(seed)
        self.spoilt = ""

    def _signals(self, drawn_K: Any) -> Signals:
        signals = super()._signals(drawn_K)
        self.spoilt = ""
        if self.t % 2 == 0:
            return signals
        self.spoilt = str(self.rng.choice(["1e30", "-1e30", "missing", "domain"]))
        measured = {"loss": signals.loss, **signals.probes}
        name = "loss" if self.spoilt == "domain" else str(self.rng.choice(list(measured)))
        measured[name] = self._spoil(measured[name])
        return Signals(
            signals.domains, signals.step, signals.progress, signals.tokens_K,
            measured.pop("loss"), measured,
        )  # fmt: skip

    def _spoil(self, measured: Measured) -> Measured:
        if self.spoilt == "missing":
            return Measured.absent(measured.shape)
        at = tuple(int(self.rng.integers(size)) for size in measured.shape)
        values, present = measured.values.copy(), measured.present.copy()
        present[at] = self.spoilt != "domain"
        values[at] = 0.0 if self.spoilt == "domain" else float(self.spoilt)
        return Measured(values, present)


def poison_policies(intervals: int, makers: list[Make]) -> dict[str, int]:
    """Policies under their guard: they do not learn from what cannot be, and stay finite."""
    found = {"injections": 0, "changed": 0, "unnamed": 0, "not finite": 0}
    domains = some_domains()
    for number, make in enumerate(makers):
        policy, trainer = make(domains), Spoiled(domains, intervals, number)
        guard = policy if isinstance(policy, Guard) else Guard(policy)
        so_far = Trajectory.start(trainer.start(guard.probes))
        while not trainer.done:
            mixture = guard.mixture(so_far)
            so_far = so_far.append(mixture, trainer.advance(mixture))
            before = digest(guard.policy.state_dict())
            record = guard.learn(so_far)["guard"]
            found["injections"] += bool(trainer.spoilt)
            found["not finite"] += not finite(guard.policy.state_dict())
            if trainer.spoilt.endswith("1e30"):
                found["changed"] += digest(guard.policy.state_dict()) != before
                found["unnamed"] += record["lesson"] == "learned"
    return found


def refused_numbers(each: int) -> dict[str, int]:
    """NaN and infinity cannot even be recorded."""
    found = {"injections": 0, "unnamed": 0}
    for value in [float("nan"), float("inf"), -float("inf")] * each:
        found["injections"] += 1
        try:
            Measured.all([1.0, value])
            found["unnamed"] += 1
        except SignalError:
            pass
    return found


def _checks_too_late(self: ReplayAgent, transition: Transition) -> str | None:
    self.buffer.add(transition)
    return _observe(self, transition)


_observe = ReplayAgent.observe


@measured(16, "injected values")
def injected(full: bool) -> Result:
    each, intervals = (1000, 400) if full else (100, 40)
    makers = policies()
    parts = [poison_agents(each), poison_policies(intervals, makers), refused_numbers(each)]
    wrong = {
        name: sum(part.get(name, 0) for part in parts)
        for name in ("changed", "unnamed", "not finite")
    }
    with mock.patch.object(ReplayAgent, "observe", _checks_too_late):
        late = poison_agents(5)["changed"] > 0
    with mock.patch.object(sanitizer, "clean", lambda signals, before: (signals, None)):
        believed = poison_policies(8, [lambda domains: Exp3()])["unnamed"] > 0
    kinds = len({type(make(some_domains())) for make in makers})
    return Result(
        f"{parts[0]['injections']} in {len(suites(AgentSuite))} agents, "
        f"{parts[1]['injections']} in {len(makers)} policies of {kinds} kinds "
        f"({len(POLICIES.names())} are registered)",
        ", ".join(f"{count} {name}" for name, count in wrong.items()),
        "0, 0, 0",
        not any(wrong.values()),
        {"checked after the insert": late, "no check of signals": believed},
    )


# --------------------------------------------------------------------------------- 17: agent resume


def new_agent(kind: str, seed: int) -> Any:
    small: dict[str, Any] = {"learning_starts": 16, "batch_size": 8, "capacity": 300}
    small["architecture"] = Architecture(hidden=8)
    shape = Shape(4, 3, 2)
    if kind == "ddpg":
        return DDPG(shape, DDPGSettings(**small), seed)
    if kind == "sac":
        return SAC(shape, SACSettings(**small), seed)
    return CQL(shape, CQLSettings(**small, draws=3), seed)


def after_resume(kind: str, seed: int, updates: int, forget: str = "") -> float:
    """Largest difference of two agents: one that learned without a stop, and one with a resume."""
    suite, whole, first = AgentSuite(), new_agent(kind, seed), new_agent(kind, seed)
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
    suite.play(whole, rng, updates)
    suite.play(first, again, updates // 2)
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "agent", first.state_dict())
        state = load_state(Path(folder) / "agent")
    second = new_agent(kind, seed)
    fresh = second.state_dict()
    second.load_state_dict(_without(state, fresh, forget) if forget else state)
    suite.play(second, again, updates - updates // 2)
    if digest(whole.state_dict()) == digest(second.state_dict()):
        return 0.0
    pairs = zip(numbers(whole.state_dict()), numbers(second.state_dict()), strict=False)
    return max(
        (float(np.abs(a.astype(float) - b.astype(float)).max(initial=0.0))
         if a.shape == b.shape else np.inf for a, b in pairs), default=np.inf,
    ) or np.inf  # fmt: skip


def _without(state: Any, fresh: Any, part: str) -> Any:
    """The state with every entry called `part` replaced by that of a new agent."""
    if not isinstance(state, Mapping):
        return state
    return {
        key: fresh[key] if key == part else _without(value, fresh[key], part)
        for key, value in state.items()
        if key in fresh
    }


@measured(17, "agent resume")
def agent_resume(full: bool) -> Result:
    updates, seeds = (20_000 if full else 200), 5
    kinds = ("ddpg", "sac", "cql")
    worst = max(after_resume(kind, seed, updates) for kind in kinds for seed in range(seeds))
    return Result(
        f"{', '.join(kinds)} × {seeds} seeds, {updates} updates",
        f"largest difference {worst:g} over networks, moments, buffer and generators",
        "0",
        worst == 0,
        {
            f"{part} not saved": after_resume("ddpg", 0, 60, part) > 0
            for part in ("buffer", "optimizer")
        },
    )


# ---------------------------------------------------------------------------- 18: learning, measured

MARGIN = 0.05  # of the regret of uniform mixtures, set before the first comparison


def regret_of(kind: str, steps: int, seed: int, sign: float = 1.0, frozen: bool = False) -> float:
    """Regret to the best mixture of a bandit, relative to uniform, after so many noisy rewards."""
    agent: Any = (
        DDPG(SHAPE, DDPGSettings(**COMMON), seed)
        if kind == "ddpg"
        else SAC(SHAPE, SACSettings(**COMMON, std=0.5), seed)
    )
    rng = np.random.default_rng(seed)
    critic = agent.critic.state_dict()
    for _ in range(steps):
        action_K = agent.act(STATE, explore=True)
        reward = sign * (-loss(action_K) + 0.1 * UNIFORM * rng.normal())
        agent.observe(Transition(STATE, action_K, reward, STATE))
        agent.update()
        if frozen:
            agent.critic.load_state_dict(critic)
    return loss(agent.act(STATE)) / UNIFORM


class Bandit(gymnasium.Env[Any, Any]):
    """The same bandit for an agent of stable-baselines3, whose actions go through a softmax."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (len(BEST),))

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -loss(mixture_of(action)) + 0.1 * UNIFORM * self.rng.normal()
        return np.zeros(1, np.float32), reward, False, False, {}


def mixture_of(action: Any) -> Any:
    weights_K = np.exp(3.0 * np.asarray(action, np.float64))
    return weights_K / weights_K.sum()


def reference(kind: str, steps: int, seed: int) -> float:
    common: dict[str, Any] = {"learning_rate": 1e-3, "gamma": 0.95, "batch_size": 32, "seed": seed,
                              "learning_starts": 100, "policy_kwargs": {"net_arch": [32, 32]}}  # fmt: skip
    size = len(BEST)
    model: Any = (
        sb3.DDPG(
            "MlpPolicy", Bandit(seed), train_freq=1, device="cpu",
            action_noise=NormalActionNoise(np.zeros(size), np.full(size, 0.2)), **common,
        )
        if kind == "ddpg"
        else sb3.SAC("MlpPolicy", Bandit(seed), device="cpu", **common)
    )  # fmt: skip
    model.learn(steps)
    action, _ = model.predict(np.zeros(1, np.float32), deterministic=True)
    return loss(mixture_of(action)) / UNIFORM


@measured(18, "learning")
def learning(full: bool) -> Result:
    seeds, steps, kinds = (10 if full else 3), 700, ("ddpg", "sac")
    ours = np.array([[regret_of(kind, steps, seed) for seed in range(seeds)] for kind in kinds])
    theirs = np.array([[reference(kind, steps, seed) for seed in range(seeds)] for kind in kinds])
    differences = (ours - theirs).ravel()
    draws = np.random.default_rng(0).choice(differences, (10_000, len(differences)))
    middle = np.sort(draws)[:, len(differences) // 4 : -(len(differences) // 4)].mean(1)
    low, high = np.quantile(middle, [0.025, 0.975])
    return Result(
        f"DDPG and SAC × {seeds} seeds, {steps} rewards, and those of stable-baselines3",
        f"mean regret {ours.mean():.4f} of uniform's, worst {ours.max():.4f}; minus theirs "
        f"[{low:.3f}, {high:.3f}]",
        f"worst < 0.05; interval below {MARGIN}",
        bool(ours.max() < 0.05 and high < MARGIN),
        {
            "reward of the wrong sign": regret_of("ddpg", 300, 0, sign=-1.0) > 0.05,
            "frozen critic": regret_of("ddpg", 300, 0, frozen=True) > 0.05,
        },
    )


# ------------------------------------------------------------------------------- 19: action safety


def saturated_actions(count: int, floor: float = 0.01) -> dict[str, float]:
    """Actions of agents whose networks are a million times too large, raw and behind the guard."""
    found: dict[str, float] = {"actions": 0, "off the simplex": 0, "below the floor": 0}
    kinds = suites(AgentSuite)
    names = tuple(f"d{k}" for k in range(4))
    domains = tuple(Domain(name, 10**9) for name in names)
    start = Signals(domains, 0, 0.0, np.zeros(4, np.int64), Measured.absent(4))
    for suite in kinds:
        agent = suite.filled()
        for parameter in agent.actor.net.parameters():
            parameter.data.mul_(1e6)
        rng = np.random.default_rng(1)
        for _ in range(count // len(kinds)):
            action_K = agent.act(suite.observation(rng), explore=bool(rng.integers(2)))
            weights_K = Mixture.normalise(names, action_K)
            policy = mock.Mock(mixture=lambda _, chosen=weights_K: chosen, spec=["mixture"])
            executed_K = Guard(policy, Limits(floor=floor)).mixture(Trajectory.start(start))
            found["actions"] += 1
            found["off the simplex"] += bool(
                not np.isfinite(action_K).all()
                or (action_K < 0).any()
                or abs(action_K.sum() - 1) > 1e-9
            )
            found["below the floor"] += bool((executed_K.weights_K < floor - 1e-12).any())
    return found


SERVER = """
import sys
for line in sys.stdin:
    print("0.3 0.7" if int(line) % 2 else "0.6 0.4", flush=True)
"""


class Remote:
    """A policy in another process, which may die or be stopped."""

    probes = ()

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], **pipes)

    def mixture(self, so_far: Trajectory) -> Mixture:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{len(so_far)}\n")
        self.process.stdin.flush()
        return Mixture(so_far.names, np.array(self.process.stdout.readline().split(), float))

    def learn(self, so_far: Trajectory) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@contextmanager
def remote() -> Iterator[Remote]:
    policy = Remote()
    try:
        yield policy
    finally:
        policy.process.kill()
        policy.process.wait()


LIMIT = 0.5  # seconds for a decision
LONGEST = 2 * LIMIT


def gone(times: int, limits: Limits) -> dict[str, float]:
    """A policy's process is killed, and one is stopped for 3 s: does the run go on, and is it said?"""
    found = {"trials": 0, "wrong mixtures": 0, "unlogged": 0, "longest stall": 0.0}
    for number in range(2 * times):
        with remote() as policy:
            guard, trainer = Guard(policy, limits), ScriptedTrainer(some_domains(2), 8)
            so_far = Trajectory.start(trainer.start(()))
            for t in range(4):
                if t == 2 and number % 2:
                    policy.process.kill()
                    policy.process.wait()
                elif t == 2:
                    os.kill(policy.process.pid, signal.SIGSTOP)
                    wake = threading.Timer(3.0, os.kill, (policy.process.pid, signal.SIGCONT))
                    wake.start()
                begun = time.monotonic()
                mixture = guard.mixture(so_far)
                stall = time.monotonic() - begun
                if t == 2:
                    found["longest stall"] = max(found["longest stall"], stall)
                    found["wrong mixtures"] += mixture != so_far.last_mixture
                so_far = so_far.append(mixture, trainer.advance(mixture))
                record = guard.learn(so_far)["guard"]
                found["unlogged"] += t == 2 and not record["reason"]
            if number % 2 == 0:
                wake.join()
        found["trials"] += 1
    return found


@measured(19, "action safety")
def action_safety(full: bool) -> Result:
    found = saturated_actions(1_000_000 if full else 10_000)
    ends = gone(20 if full else 3, Limits(decision_seconds=LIMIT))
    with mock.patch.object(guards, "nearest_within", lambda mixture, *_: mixture):
        unprojected = saturated_actions(60)["below the floor"] > 0
    unlimited = gone(1, Limits())["longest stall"] > LONGEST
    stall = ends["longest stall"]
    return Result(
        f"{found['actions']:.0f} saturated actions; {ends['trials']:.0f} policy processes killed or stopped",
        f"{found['off the simplex']:.0f} off the simplex, {found['below the floor']:.0f} below the floor; "
        f"{ends['wrong mixtures']:.0f} not the last mixture, {ends['unlogged']:.0f} unlogged, "
        f"longest stall {1000 * stall:.0f} ms",
        f"0, 0; 0, 0, ≤ {1000 * LONGEST:.0f} ms (limit {1000 * LIMIT:.0f} ms)",
        found["off the simplex"] == found["below the floor"] == 0
        and ends["wrong mixtures"] == ends["unlogged"] == 0
        and stall <= LONGEST,
        {"no projection": unprojected, "no time limit": unlimited},
    )

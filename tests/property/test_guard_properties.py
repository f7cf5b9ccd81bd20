"""Whatever a policy returns, the guard executes a mixture within its limits or raises the
exception that it documents."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.core.domain import Domain
from cuvee.core.epochs import allowed, epochs_K
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.guard.alarms import AlarmSettings
from cuvee.policies.guard.epochs import EpochBudget, capped_ceilings
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.limits import nearest_within

TOKENS = 10_000
ANSWERS = st.sampled_from(
    [
        "mixture",
        "corner",
        "nan",
        "negative",
        "names",
        "other order",
        "more",
        "none",
        "array",
        "raises",
        "assert",
        "policy",
    ]
)
LESSONS = st.sampled_from(["learns", "raises", "nan metrics", "none"])


class Anything:
    """Answers and learns as it is told, one entry an interval."""

    probes = ()

    def __init__(self, script: list[tuple[str, str]], seed: int) -> None:
        self.script, self.rng, self.lessons = script, np.random.default_rng(seed), 0

    def mixture(self, so_far: Trajectory) -> Any:
        answer, names = self.script[len(so_far)][0], so_far.names
        weights_K = self.rng.dirichlet(np.full(len(names), 0.3))
        match answer:
            case "corner":
                weights_K = np.eye(len(names))[len(so_far) % len(names)]
            case "nan" | "negative":
                weights_K = weights_K * (np.nan if answer == "nan" else -1.0)
            case "names":
                names = tuple(f"x{k}" for k in range(len(names)))
            case "other order":
                names = names[::-1]
            case "more":
                names, weights_K = (*names, "new"), np.append(weights_K, 0.0)
            case "none" | "array":
                return None if answer == "none" else weights_K
            case "raises" | "assert" | "policy":
                raise {"raises": ValueError, "assert": AssertionError, "policy": PolicyError}[
                    answer
                ]("planted")
        return Mixture(names, weights_K)

    def learn(self, so_far: Trajectory) -> Any:
        self.lessons += 1
        match self.script[len(so_far) - 1][1]:
            case "raises":
                raise RuntimeError("planted")
            case "nan metrics":
                return {"agent": {"critic_loss": float("nan")}}
            case "none":
                return None
        return {"reward": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"lessons": self.lessons}

    def load_state_dict(self, state: Any) -> None:
        self.lessons = state["lessons"]


def signals(domains: tuple[Domain, ...], t: int, of: int, tokens_K: np.ndarray) -> Signals:
    return Signals(domains, t, t / of, tokens_K, Measured(np.full(len(domains), 3.0), tokens_K > 0))


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[Domain, ...], Limits, Anything, int]:
    K, intervals = draw(st.integers(2, 7)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens_K = rng.integers(1, 8 * TOKENS, K)
    domains = tuple(
        Domain(f"d{k}", int(tokens_K[k]), "target" if k == 0 else "source") for k in range(K)
    )
    floor_K = rng.dirichlet(np.ones(K)) * draw(st.sampled_from([0.0, 0.3, 0.9]))
    ceiling_K = np.minimum(1.0, floor_K + rng.uniform(draw(st.sampled_from([0.5, 1.0])), 1.0, K))
    caps = draw(st.sampled_from(["none", "some", "all"]))
    least = intervals * TOKENS / tokens_K.sum()
    epochs: Any = {
        "none": None,
        "all": 1.2 * least + 0.1,
        "some": {f"d{k}": rng.uniform(0.2, 3) for k in range(1, K)},
    }
    if caps == "all":
        ceiling_K = np.ones(K)
    elif caps == "some":
        ceiling_K[0] = 1.0
    limits = Limits(
        floor={f"d{k}": float(floor_K[k]) for k in range(K)},
        ceiling={f"d{k}": float(ceiling_K[k]) for k in range(K)},
        max_change=draw(st.sampled_from([1.0, 0.2, 0.01])),
        epochs=epochs[caps],
        shadow=draw(st.booleans()),
        cooldown=draw(st.sampled_from([None, 1, 3])),
        alarms=AlarmSettings(patience=2),
    )
    script = draw(st.lists(st.tuples(ANSWERS, LESSONS), min_size=intervals, max_size=intervals))
    if script[0][0] == "policy":
        script[0] = ("raises", script[0][1])
    return domains, limits, Anything(script, int(rng.integers(2**31))), intervals


@settings(max_examples=60)
@given(cases())
def test_what_is_executed_is_within_limits_whatever_a_policy_does(case: Any) -> None:
    domains, limits, policy, intervals = case
    names = tuple(domain.name for domain in domains)
    floor_K, ceiling_K = limits.bounds(names)
    allowed_K = allowed(epochs_K(limits.epochs, names), [domain.tokens for domain in domains])
    # Without the size of the first interval, the guard assumes at most the whole corpus.
    first = TOKENS if sum(domain.tokens for domain in domains) < TOKENS else None
    guard, drawn_K = Guard(policy, limits, first), np.zeros(len(domains))
    so_far = Trajectory.start(signals(domains, 0, intervals, np.zeros(len(domains), np.int64)))
    for t in range(intervals):
        last, mixture = so_far.last_mixture, guard.mixture(so_far)
        lowered_K = capped_ceilings(
            epochs_K(limits.epochs, names), so_far, EpochBudget(first).forecast(so_far), ceiling_K
        )
        tokens_K = np.floor(mixture.weights_K * TOKENS).astype(np.int64)
        so_far = so_far.append(mixture, signals(domains, t + 1, intervals, tokens_K))
        record = guard.learn(so_far)["guard"]
        json.dumps(record, allow_nan=False)
        weights_K = mixture.weights_K
        drawn_K += tokens_K
        assert mixture.names == names
        assert (drawn_K <= allowed_K + 1.0).all(), "no epoch cap is passed"
        assert (lowered_K <= ceiling_K).all()
        assert (weights_K <= lowered_K + 1e-9).all()
        assert (weights_K >= np.minimum(floor_K, lowered_K) - 1e-9).all()
        if limits.epochs is None:
            assert last is None or mixture.total_variation(last) <= limits.max_change + 1e-9
        elif (
            last is not None
        ):  # a cap may force a larger change than is allowed, and then only as much as it takes
            held = nearest_within(last, np.minimum(floor_K, lowered_K), lowered_K)
            assert (
                mixture.total_variation(last)
                <= max(limits.max_change, held.total_variation(last)) + 1e-9
            )
        assert record["executed"] == mixture.as_dict()
        if limits.shadow:
            assert record["verdict"] == "shadow"


@given(st.integers(2, 30), st.integers(0, 2**32 - 1), st.floats(0.001, 1.0))
def test_a_step_towards_a_far_proposal_goes_as_far_as_it_may(
    K: int, seed: int, max_change: float
) -> None:
    rng = np.random.default_rng(seed)
    domains = tuple(Domain(f"d{k}", 1000) for k in range(K))
    first, second = (
        Mixture.normalise([d.name for d in domains], rng.dirichlet(np.ones(K))) for _ in range(2)
    )

    class Two(Anything):
        def mixture(self, so_far: Trajectory) -> Mixture:
            return second if len(so_far) else first

    guard = Guard(Two([("mixture", "learns")] * 2, 0), Limits(max_change=max_change))
    so_far = Trajectory.start(signals(domains, 0, 2, np.zeros(K, np.int64)))
    so_far = so_far.append(guard.mixture(so_far), signals(domains, 1, 2, np.full(K, 10)))
    moved = guard.mixture(so_far)
    asked = second.total_variation(first)
    assert abs(moved.total_variation(first) - min(asked, max_change)) < 1e-9
    assert (moved == second) == (asked <= max_change)

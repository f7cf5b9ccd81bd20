"""The guard beyond its limits: signal checks, refused lessons, alarms and fallback, shadow
mode, audit records."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.epochs import EpochCaps
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.signals import Measured, Signals
from cuvee.core.state import digest
from cuvee.core.trajectory import Trajectory
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.alarms import AlarmSettings
from cuvee.policies.guard.deadline import Deadline, TooLate
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.sanitizer import clean
from cuvee.simulation.simulator import ScalingLaws, Simulator
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains

SMALL = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 2},
    "learning_starts": 2,
    "batch_size": 4,
    "capacity": 50,
}


class Scripted:
    """Proposes `weights(t)`, and counts its lessons; `lesson(t)` may raise."""

    probes = ()

    def __init__(
        self, weights: Callable[[int], Any], lesson: Callable[[int], Any] = lambda t: {}
    ) -> None:
        self.weights, self.lesson, self.lessons = weights, lesson, 0

    def mixture(self, so_far: Trajectory) -> Mixture:
        return Mixture(so_far.names, np.array(self.weights(len(so_far))))

    def learn(self, so_far: Trajectory) -> dict[str, Any]:
        self.lessons += 1
        return self.lesson(len(so_far)) or {}

    def state_dict(self) -> dict[str, Any]:
        return {"lessons": self.lessons}

    def load_state_dict(self, state: Any) -> None:
        self.lessons = state["lessons"]


def leaning(t: int) -> list[float]:
    """Collapses onto the second domain from the fourth decision on."""
    return [0.5, 0.5] if t < 3 else [0.005, 0.995]


def play(
    guard: Guard, trainer: Any, so_far: Trajectory | None = None
) -> tuple[Trajectory, list[dict[str, Any]]]:
    so_far = so_far or Trajectory.start(trainer.start(guard.probes))
    records = []
    while not trainer.done:
        mixture = guard.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        records.append(dict(guard.learn(so_far)["guard"]))
    return so_far, records


class Spoiled(ScriptedTrainer):
    """Signals are altered by `spoil(t, signals)`."""

    def __init__(
        self,
        domains: tuple[Domain, ...],
        spoil: Callable[[int, Signals], Signals],
        intervals: int = 8,
    ) -> None:
        super().__init__(domains, intervals)
        self.spoil = spoil

    def _signals(self, drawn_K: Any) -> Signals:
        return self.spoil(self.t, super()._signals(drawn_K))


def spoiled(signals: Signals, **changes: Any) -> Signals:
    fields = {
        name: getattr(signals, name)
        for name in ("domains", "step", "progress", "tokens_K", "loss", "probes")
    }
    return Signals(**{**fields, **changes})


# The gate


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": Measured.all([1e30, 2.0])}, "loss holds 1e+30"),
        ({"loss": Measured.all([2.0, -1e5])}, "loss holds -100000"),
        ({"probes": {"alignment": Measured.all(np.full((2, 2), 1e30))}}, "alignment holds 1e+30"),
        (
            {"probes": {"alignment": Measured.all(np.ones((3, 3)))}},
            "alignment has shape (3, 3), 2 domains need (2, 2)",
        ),
        (
            {"probes": {"valid_loss": Measured.all([1.0])}},
            "valid_loss has shape (1,), 2 domains need (2,)",
        ),
        ({"probes": {"weight_norms": Measured.all([1.0, -1e20])}}, "weight_norms holds -1e+20"),
        ({"tokens_K": np.array([1, 2**62])}, "tokens in one interval"),
        ({"step": 2}, "neither may decrease"),
        ({"progress": 0.0}, "neither may decrease"),
    ],
)
def test_what_is_not_believable_is_absent_and_named(changes: dict[str, Any], said: str) -> None:
    domains = some_domains(2)
    before = Signals(domains, 3, 0.3, np.array([5, 5]), Measured.all([2.0, 2.0]))
    good = Signals(domains, 4, 0.4, np.array([5, 5]), Measured.all([2.0, 2.0]))
    assert clean(good, before) == (good, None)
    cleaned, fault = clean(spoiled(good, **changes), before)
    assert said in str(fault)
    for measured in (cleaned.loss, *cleaned.probes.values()):
        assert np.abs(measured.values).max(initial=0.0) <= 1e12
    assert cleaned.tokens_K.max() <= 10**15


@pytest.mark.parametrize(
    "make",
    [
        Exp3,
        lambda: AgentPolicy("ddpg", "alignment", warmup_intervals=2, agent_settings=SMALL),
        lambda: AgentPolicy(
            "ddpg", "alignment", vector=True, warmup_intervals=2, agent_settings=SMALL
        ),
        lambda: AgentPolicy("sac", "alignment", warmup_intervals=2, agent_settings=SMALL),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": Measured.all([1e30, 1.0, 1.0])},
        {"probes": {"alignment": Measured.all(np.full((3, 3), 1e30))}},
        {"probes": {"alignment": Measured.all(np.ones((2, 2)))}},
    ],
)
def test_no_state_changes_on_what_is_not_believable(
    make: Callable[[], Policy], changes: dict[str, Any]
) -> None:
    domains, guard = some_domains(3), Guard(make())
    trainer = Spoiled(
        domains, lambda t, signals: spoiled(signals, **changes) if t == 5 else signals
    )
    so_far = Trajectory.start(trainer.start(guard.probes))
    records = []
    while not trainer.done:
        mixture = guard.mixture(so_far)
        before = digest(guard.policy.state_dict())
        so_far = so_far.append(mixture, trainer.advance(mixture))
        records.append(guard.learn(so_far)["guard"])
        changed = digest(guard.policy.state_dict()) != before
        assert changed == (trainer.t != 5)
    assert [record["lesson"] != "learned" for record in records] == [t == 4 for t in range(8)]
    assert records[-1]["refused"] == {"proposals": 0, "lessons": 1}


def test_what_was_refused_once_stays_absent_from_what_a_policy_sees() -> None:
    seen: list[Trajectory] = []

    class Watches(Scripted):
        def mixture(self, so_far: Trajectory) -> Mixture:
            seen.append(so_far)
            return super().mixture(so_far)

        def learn(self, so_far: Trajectory) -> dict[str, Any]:
            seen.append(so_far)
            return super().learn(so_far)

    def spoil(t: int, signals: Signals) -> Signals:
        return spoiled(signals, loss=Measured.all([2.0, 1e30])) if t == 3 else signals

    so_far, _ = play(Guard(Watches(lambda t: [0.5, 0.5])), Spoiled(some_domains(2), spoil))
    assert so_far.signals[3].loss.values[1] == 1e30, "the trajectory keeps what was measured"
    assert all(signals.loss.values.max() < 10 for each in seen for signals in each.signals)
    assert [signals.step for signals in seen[-1].signals] == list(range(9))
    assert seen[-1].mixtures == so_far.mixtures


# Lessons that fail


class Forgetful(AgentPolicy):
    """Learns, and then raises, after every second interval."""

    def learn(self, so_far: Trajectory) -> Any:
        metrics = super().learn(so_far)
        if len(so_far) % 2:
            raise RuntimeError("planted")
        return metrics


def test_a_lesson_that_raises_leaves_the_policy_as_it_was() -> None:
    domains = some_domains(3)
    guard = Guard(Forgetful("sac", "alignment", warmup_intervals=2, agent_settings=SMALL))
    trainer = ScriptedTrainer(domains)
    so_far = Trajectory.start(trainer.start(guard.probes))
    while not trainer.done:
        mixture = guard.mixture(so_far)
        before = digest(guard.policy.state_dict())
        so_far = so_far.append(mixture, trainer.advance(mixture))
        record = guard.learn(so_far)["guard"]
        assert record["state"] == before
        failed = bool(trainer.t % 2)
        assert (digest(guard.policy.state_dict()) == before) == failed
        assert record["lesson"] == ("RuntimeError: planted" if failed else "learned")


def test_a_policy_that_cannot_be_put_back_is_named() -> None:
    def breaks(t: int) -> None:
        raise ValueError("planted")

    class Leaky(Scripted):
        def load_state_dict(self, state: Any) -> None: ...

    with pytest.raises(
        PolicyError, match=r"Leaky failed to learn.*its state could not be restored"
    ):
        play(Guard(Leaky(lambda t: [0.5, 0.5], breaks)), ScriptedTrainer(some_domains(2)))


@pytest.mark.parametrize("place", ["weights", "lesson"])
def test_a_mistake_in_the_set_up_ends_the_run_at_once_and_later_faults_do_not(place: str) -> None:
    def wrong_at(moment: int) -> Callable[[int], Any]:
        def wrong(t: int) -> Any:
            if t == moment:
                raise PolicyError("no quality score 'mtld'")
            return [0.5, 0.5] if place == "weights" else {}

        return wrong

    rest = {} if place == "weights" else {"weights": lambda t: [0.5, 0.5]}
    first = 0 if place == "weights" else 1
    with pytest.raises(PolicyError, match="mtld"):
        play(Guard(Scripted(**{place: wrong_at(first)}, **rest)), ScriptedTrainer(some_domains(2)))
    _, records = play(
        Guard(Scripted(**{place: wrong_at(first + 1)}, **rest)), ScriptedTrainer(some_domains(2))
    )
    assert len(records) == 12
    assert "mtld" in records[1]["reason" if place == "weights" else "lesson"]


def test_a_policy_does_not_learn_from_what_it_did_not_propose() -> None:
    guard = Guard(Scripted(lambda t: [np.nan, 1.0] if t == 3 else [0.5, 0.5]))
    _, records = play(guard, ScriptedTrainer(some_domains(2), 6))
    assert [record["lesson"] == "learned" for record in records] == [True] * 3 + [False] + [
        True
    ] * 2
    assert guard.state_dict()["policy"] == {"lessons": 5}


# Alarms and fallback


def test_an_alarm_hands_over_to_the_static_mixture_for_the_rest_of_the_run() -> None:
    limits = Limits(alarms=AlarmSettings(patience=2), fallback={"d0": 3, "d1": 1})
    so_far, records = play(Guard(Scripted(leaning), limits), ScriptedTrainer(some_domains(2), 9))
    assert [record["verdict"] for record in records] == ["accepted"] * 5 + ["fallback"] * 4
    assert records[4]["alarms"] == {
        "collapse": "d1 gets 0.9950 of the tokens; 2 decisions in a row"
    }
    assert records[5]["fallback"]["reason"].startswith("collapse: d1 gets 0.9950")
    assert records[5]["own"]["executed"]["d1"] == 0.995
    assert [mixture["d0"] for mixture in so_far.mixtures[5:]] == [0.75] * 4
    assert all(record["lesson"] == "learned" for record in records), (
        "it goes on learning from what is executed"
    )


def test_after_the_cooldown_the_policy_is_tried_again() -> None:
    limits = Limits(alarms=AlarmSettings(patience=2), cooldown=3)
    steady = Scripted(lambda t: [0.005, 0.995] if 3 <= t < 6 else [0.5, 0.5])
    _, records = play(Guard(steady, limits), ScriptedTrainer(some_domains(2), 14))
    assert [record["verdict"] for record in records] == ["accepted"] * 5 + ["fallback"] * 3 + [
        "accepted"
    ] * 6
    _, records = play(Guard(Scripted(leaning), limits), ScriptedTrainer(some_domains(2), 13))
    assert [record["verdict"][0] for record in records] == list("aaaaafffaafff")


def test_a_run_that_diverges_falls_back_to_natural_shares() -> None:
    def explode(t: int, signals: Signals) -> Signals:
        return spoiled(signals, loss=Measured.all([9.0, 9.0])) if t > 5 else signals

    so_far, records = play(
        Guard(Scripted(lambda t: [0.9, 0.1])), Spoiled(some_domains(2), explode, 20)
    )
    assert records[-1]["verdict"] == "fallback"
    assert list(records[-1]["alarms"]) == ["run_divergence"]
    assert so_far.mixtures[-1].weights_K == pytest.approx([1 / 3, 2 / 3])


def test_a_static_mixture_never_falls_back() -> None:
    _, records = play(Guard(Fixed({"d0": 1.0, "d1": 0.0})), ScriptedTrainer(some_domains(2), 30))
    assert {record["verdict"] for record in records} == {"accepted"}


class TestGuardWithAlarms(PolicySuite):
    """Falls back, tries again and falls back again while it is resumed at every interval."""

    def make(self, domains: tuple[Domain, ...]) -> Policy:
        K = len(domains)

        def weights(t: int) -> list[float]:
            return [1 / K] * K if t < 3 else [0.995, *[0.005 / (K - 1)] * (K - 1)]

        limits = Limits(
            alarms=AlarmSettings(patience=2), cooldown=2, max_change=0.3, epochs={"d1": 1.0}
        )
        return Guard(Scripted(weights), limits)


# Shadow mode


def simulator(seed: int) -> Simulator:
    return Simulator(ScalingLaws.draw(4, seed, intervals=12), seed=seed)


@pytest.mark.parametrize(
    "limits", [{}, {"fallback": {"domain0": 1, "domain2": 2, "domain3": 1}, "ceiling": 0.4}]
)
def test_a_shadow_run_trains_as_a_static_run_does_bit_by_bit(limits: dict[str, Any]) -> None:
    policy = AgentPolicy("sac", "alignment", warmup_intervals=3, agent_settings=SMALL)
    shadow_trainer, static_trainer = simulator(3), simulator(3)
    shadow, records = play(Guard(policy, Limits(**limits, shadow=True)), shadow_trainer)
    mixture = Limits(**limits).static(shadow_trainer.domains)
    static, _ = play(Guard(Fixed(mixture), Limits(**limits)), static_trainer)
    assert shadow.mixtures == static.mixtures
    assert digest(shadow_trainer.state_dict()) == digest(static_trainer.state_dict())
    for with_policy, without in zip(shadow.signals, static.signals, strict=True):
        assert (with_policy.loss, with_policy.probes["valid_loss"]) == (
            without.loss,
            without.probes["valid_loss"],
        )
    assert {record["verdict"] for record in records} == {"shadow"}
    assert {record["own"]["verdict"] for record in records} <= {"accepted", "limited"}
    assert any(record["proposed"] != record["executed"] for record in records)
    assert all(record["lesson"] == "learned" for record in records)


# Records


def test_a_record_says_what_was_known_proposed_done_and_learned() -> None:
    class Explains(AgentPolicy):
        def explain(self, so_far: Trajectory) -> dict[str, int]:
            return {"intervals": len(so_far)}

    guard = Guard(
        Explains("ddpg", "alignment", warmup_intervals=2, agent_settings=SMALL), Limits(ceiling=0.3)
    )
    so_far, records = play(guard, ScriptedTrainer(some_domains(4)))
    for t, record in enumerate(records):
        signals, mixture = so_far.signals[t], so_far.mixtures[t]
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert (record["step"], record["progress"]) == (signals.step, signals.progress)
        assert list(record["loss"].values()) == signals.loss.to_json()
        assert list(record["tokens"].values()) == signals.tokens_K.tolist()
        assert record["executed"] == mixture.as_dict()
        assert record["explained"] == {"intervals": t}
        assert record["terms"] == {"alignment": record["reward"]}
        assert len(record["state"]) == 64
        assert record["verdict"] == (
            "accepted" if record["proposed"] == record["executed"] else "limited"
        )
        assert record["limits"] == ([] if record["verdict"] == "accepted" else ["ceiling"])
    assert len({record["state"] for record in records}) == len(records)


def test_limits_that_acted_are_named() -> None:
    paths = {
        "floor": (Limits(floor=0.1), [0.0, 1.0]),
        "ceiling": (Limits(ceiling=0.7), [0.1, 0.9]),
        "max_change": (Limits(max_change=0.05), [0.1, 0.9]),
        "epochs": (Limits(epochs={"d0": 1.0}), [0.9, 0.1]),
    }
    for named, (limits, later) in paths.items():
        policy = Scripted([[0.5, 0.5], later, later].__getitem__)
        _, records = play(Guard(policy, limits), ScriptedTrainer(some_domains(2), 3))
        assert records[1]["limits"] == [named]


def test_other_limits_that_cannot_be_meant_are_named() -> None:
    start = Trajectory.start(ScriptedTrainer(some_domains(4)).start(()))
    for limits, named in [
        (Limits(fallback={"latin": 2}), "fallback names the domain 'latin'"),
        (Limits(cooldown=0), "cooldown is 0"),
    ]:
        with pytest.raises(PolicyError, match=named):
            Guard(Exp3(), limits).mixture(start)
    wrong: list[tuple[EpochCaps, str]] = [
        (0.0, "epoch cap of d0 is 0"),
        (float("nan"), "epoch cap of d0 is nan"),
        ({"latin": 2}, "epoch cap for unknown domain latin"),
    ]
    for epochs, named in wrong:
        with pytest.raises(ConfigError, match=named):
            Guard(Exp3(), Limits(epochs=epochs)).mixture(start)


# Time


class Slow(Scripted):
    """Leans to the second domain. Its decision `late` ends only when `gate` opens."""

    def __init__(self, late: int) -> None:
        super().__init__(lambda t: [0.2, 0.8])
        self.late, self.gate = late, threading.Event()

    def mixture(self, so_far: Trajectory) -> Mixture:
        if len(so_far) == self.late:
            self.gate.wait(60)
        return super().mixture(so_far)


def test_a_late_decision_keeps_the_last_mixture_and_is_logged() -> None:
    policy = Slow(late=2)
    guard = Guard(policy, Limits(decision_seconds=1.0))
    so_far, records = play(guard, ScriptedTrainer(some_domains(2), 4))  # and does not wait
    assert [record["late"] for record in records] == [False, False, True, True]
    assert so_far.mixtures == [Mixture.of({"d0": 0.2, "d1": 0.8})] * 4
    assert [record["verdict"] for record in records] == [
        "accepted",
        "accepted",
        "refused",
        "refused",
    ]
    assert records[2]["reason"] == "TooLate: no decision within 1 s"
    assert "has not ended yet" in records[3]["reason"]
    assert policy.lessons == 2
    policy.gate.set()


def test_a_policy_is_asked_again_when_its_late_decision_has_ended() -> None:
    gate = threading.Event()
    in_time = Deadline(0.2)
    with pytest.raises(TooLate, match="no decision within"):
        in_time(lambda: gate.wait(60))
    with pytest.raises(TooLate, match="not ended"):
        in_time(lambda: 1)
    gate.set()
    assert in_time._asked is not None
    in_time._asked.result(60)
    assert in_time(lambda: 1) == 1


def test_a_late_decision_stays_late_when_asked_again_and_after_a_resume() -> None:
    so_far = Trajectory.start(ScriptedTrainer(some_domains(2)).start(()))
    guard = Guard(policy := Slow(late=0), Limits(decision_seconds=0.02))
    mixture = guard.mixture(so_far)
    policy.gate.set()
    resumed = Guard(Scripted(lambda t: [0.9, 0.1]), Limits())
    resumed.recorded = {0: True}
    for same in (guard, resumed):
        assert same.mixture(so_far) == mixture == Mixture.natural(some_domains(2))


def test_errors_and_answers_in_time_are_the_same_with_and_without_a_limit() -> None:
    def fails(t: int) -> list[float]:
        return [0.5, 0.5] if t != 1 else [1 // 0]

    for limits in (Limits(), Limits(decision_seconds=30.0)):
        _, records = play(Guard(Scripted(fails), limits), ScriptedTrainer(some_domains(2), 3))
        assert [record["reason"] for record in records] == [
            None,
            "ZeroDivisionError: integer division or modulo by zero",
            None,
        ]
        assert not any(record["late"] for record in records)
    for seconds in (0, float("inf")):
        with pytest.raises(PolicyError, match=f"decision_seconds is {seconds}"):
            Limits(decision_seconds=seconds).bounds(("a",))


def test_a_policys_own_timeout_is_not_a_late_decision() -> None:
    def fails() -> None:
        raise TimeoutError("the policy's own")

    with pytest.raises(TimeoutError, match="own"):
        Deadline(30.0)(fails)


def test_the_cost_of_a_decision_does_not_grow_with_the_run(monkeypatch: Any) -> None:
    """Neither deciding nor learning copies the history."""
    guard = Guard(Fixed(Mixture.uniform(("d0", "d1"))), Limits(floor=0.1, epochs=1e9))
    for whole in ("signals", "mixtures"):
        monkeypatch.setattr(Trajectory, whole, property(lambda self: 1 / 0))
    play(guard, ScriptedTrainer(some_domains(2)))

"""Every policy against the conformance suite, and what each promises beyond it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, MixtureError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, Probe
from cuvee.core.registry import POLICIES, PROBES
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.exp3 import Exp3
from cuvee.policies.files import check_can_be_saved, load_policy, save_policy
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.evaluation_set import EvaluationSet
from cuvee.probes.loss import LossByDomain
from cuvee.probes.norms import WeightNorms
from cuvee.probes.token_losses import ValidTokenLosses
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains
from cuvee.testing.probes import GradientNorm


class TestFixed(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return Fixed({domain.name: 1 / len(domains) for domain in domains})


class TestExp3(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return Exp3()


class TestGuardedExp3(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return Guard(Exp3(), Limits(floor=0.01, ceiling=0.9, max_change=0.05))


def signals(
    loss_K: list[float | None], step: int = 1, domains: tuple[Domain, ...] | None = None
) -> Signals:
    domains = domains or some_domains(len(loss_K))
    return Signals(
        domains, step, 0.5, np.ones(len(loss_K), dtype=np.int64), Measured.from_json(loss_K)
    )


def after_one(policy: Policy, loss_K: list[float | None]) -> Trajectory:
    so_far = Trajectory.start(signals([None] * len(loss_K), step=0))
    so_far = so_far.append(policy.mixture(so_far), signals(loss_K))
    policy.learn(so_far)
    return so_far


def test_fixed_refuses_a_domain_that_the_run_does_not_have() -> None:
    with pytest.raises(MixtureError, match="latin"):
        Fixed({"d0": 0.5, "latin": 0.5}).mixture(Trajectory.start(signals([None, None], step=0)))


def test_exp3_against_hand_computed_values() -> None:
    """K = 2, ξ = .9, losses 4 and 2.

    Turn 1 is uniform and leaves R̂ = .1 ℓ/.5 = (.8, .4). Turn 2 has ε₁ = min(½, √(ln 2/2)) = ½ in
    its softmax and ε₂ = √(ln 2/4) as its floor. Turn 3 has ε₂ and ε₃ = √(ln 2/6).
    """
    policy = Exp3(smoothing=0.9)
    so_far = after_one(policy, [4.0, 2.0])
    second = policy.mixture(so_far)
    assert second.weights_K == pytest.approx(
        mixed(np.array([0.8, 0.4]), 0.5, math.sqrt(math.log(2) / 4))
    )
    so_far = so_far.append(second, signals([4.0, 2.0], step=2))
    policy.learn(so_far)
    rewards = np.array([0.9 * 0.8, 0.9 * 0.4]) + 0.1 * np.array([4.0, 2.0]) / second.weights_K
    third = policy.mixture(so_far)
    assert third.weights_K == pytest.approx(
        mixed(rewards, math.sqrt(math.log(2) / 4), math.sqrt(math.log(2) / 6))
    )


def test_exp3_explores_for_k_ln_k_steps_however_long_an_interval_is() -> None:
    for interval in (1, 4, 25):
        policy = Exp3()
        so_far = Trajectory.start(signals([None] * 29, step=0))
        uniform = []
        for step in range(interval, 151, interval):
            mixture = policy.mixture(so_far)
            uniform.append(np.allclose(mixture.weights_K, 1 / 29))
            so_far = so_far.append(mixture, signals([*[4.0] * 28, 2.0], step=step))
            policy.learn(so_far)
        assert sum(uniform) * interval == pytest.approx(29 * math.log(29), abs=interval)


def mixed(rewards: np.ndarray, temperature: float, floor: float) -> np.ndarray:
    softmax = np.exp(temperature * rewards) / np.exp(temperature * rewards).sum()
    return (1 - len(rewards) * floor) * softmax + floor


def test_exp3_keeps_what_it_knows_of_a_domain_that_was_not_drawn() -> None:
    policy = Exp3(smoothing=0.5)
    so_far = after_one(policy, [4.0, 2.0, None])
    assert policy.state_dict()["rewards"] == pytest.approx({"d0": 6.0, "d1": 3.0, "d2": 0.0})
    so_far = so_far.append(
        Mixture.of({"d0": 0.5, "d1": 0.5, "d2": 0.0}), signals([4.0, 2.0, 9.0], step=2)
    )
    policy.learn(so_far)
    assert policy.state_dict()["rewards"]["d2"] == 0.0, (
        "a domain of weight 0 has no importance weight"
    )


def test_exp3_learns_a_newcomer_from_the_mean_of_the_others() -> None:
    policy = Exp3()
    after_one(policy, [4.0, 2.0])
    wider = Trajectory.start(signals([None] * 3, step=1))
    assert len(policy.mixture(wider)) == 3


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_exp3_refuses_a_bad_smoothing(smoothing: float) -> None:
    with pytest.raises(PolicyError, match="smoothing"):
        Exp3(smoothing)


class Broken:
    """Proposes whatever it is given; raises when that is no mixture."""

    probes = ()

    def __init__(self, *proposals: list[float]) -> None:
        self.proposals = list(proposals)

    def mixture(self, so_far: Trajectory) -> Mixture:
        return Mixture(so_far.names, np.array(self.proposals[len(so_far)]))

    def learn(self, so_far: Trajectory) -> dict[str, object]:
        return {}

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


def play(
    guard: Guard, domains: tuple[Domain, ...], intervals: int
) -> tuple[Trajectory, list[dict[str, object]]]:
    trainer, records = ScriptedTrainer(domains, intervals), []
    so_far = Trajectory.start(trainer.start(()))
    while not trainer.done:
        mixture = guard.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        records.append(dict(guard.learn(so_far)["guard"]))
    return so_far, records


def test_guard_keeps_the_last_good_mixture_when_a_proposal_is_not_finite() -> None:
    guard = Guard(Broken([0.2, 0.8], [float("nan"), 1.0], [0.4, 0.6]))
    so_far, records = play(guard, some_domains(2), 3)
    assert [mixture.weights_K.tolist() for mixture in so_far.mixtures] == [
        [0.2, 0.8],
        [0.2, 0.8],
        [0.4, 0.6],
    ]
    assert [record["verdict"] for record in records] == ["accepted", "refused", "accepted"]
    assert "nan" in str(records[1]["reason"])


def test_guard_falls_back_to_natural_shares_before_there_is_a_good_mixture() -> None:
    so_far, _ = play(Guard(Broken([float("inf"), 0.0])), some_domains(2), 1)
    assert so_far.mixtures[0].weights_K == pytest.approx([1 / 3, 2 / 3])


def test_guard_limits_are_named_when_they_cannot_be_met() -> None:
    start = Trajectory.start(signals([None] * 4, step=0))
    for limits, named in [
        (Limits(floor=0.3), "floors of 4 domains sum to 1.2"),
        (Limits(ceiling=0.2), "ceilings of 4 domains sum to 0.8"),
        (Limits(floor={"d0": 0.5}, ceiling={"d0": 0.4}), "floor of d0"),
        (Limits(floor={"latin": 0.5}), "latin"),
        (Limits(ceiling=1.5), "1.5"),
        (Limits(max_change=0.0), "max_change"),
    ]:
        with pytest.raises(PolicyError, match=named):
            Guard(Exp3(), limits).mixture(start)


@pytest.mark.parametrize("policy", [Fixed({"d0": 0.25, "d1": 0.75}), Exp3()])
def test_policy_files_round_trip(policy: Policy, tmp_path: Path) -> None:
    so_far = Trajectory.start(signals([None, None], step=0))
    for step in range(1, 4):
        so_far = so_far.append(policy.mixture(so_far), signals([4.0, 2.0], step=step))
        policy.learn(so_far)
    save_policy(tmp_path / "p", Guard(policy), {"run": "r1"})
    assert (tmp_path / "p" / "policy.json").exists()
    assert (tmp_path / "p" / "policy.safetensors").exists()
    assert load_policy(tmp_path / "p").mixture(so_far) == policy.mixture(so_far)


@pytest.mark.parametrize(
    "asked",
    [
        ValidTokenLosses(domains=("d1",), tokens=64),
        GradientAlignment(layers=("*.down_proj",), stride=2),
        WeightNorms(),
        LossByDomain(),
        EvaluationSet({"general": ["g.jsonl"]}, share=0.1),
    ],
)
def test_a_probe_travels_with_its_policy_by_kind_and_settings(asked: Probe, tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", Fixed({"d0": 1.0}, probes=[asked]))
    assert list(load_policy(tmp_path / "policy").probes) == [asked]


def test_a_probe_that_is_not_a_dataclass_of_json_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROBES._parts, "plain", PlainProbe)
    with pytest.raises(PolicyError, match=r"'plain' cannot be saved .*must be a dataclass"):
        check_can_be_saved(Fixed({"d0": 1.0}, probes=[PlainProbe()]))
    files = {"general": [Path("g.jsonl")]}
    with pytest.raises(PolicyError, match=r"'evaluation' cannot be saved .*whose fields are JSON"):
        check_can_be_saved(Fixed({"d0": 1.0}, probes=[EvaluationSet(files)]))


class PlainProbe:
    name = "plain"


def test_a_probe_that_is_not_registered_is_refused() -> None:
    with pytest.raises(PolicyError, match="'gradient_norm' cannot be saved: register its class"):
        check_can_be_saved(Fixed({"d0": 1.0}, probes=[GradientNorm()]))


def test_policy_files_that_are_missing_or_altered_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy\.json"):
        load_policy(tmp_path)
    save_policy(tmp_path / "p", Exp3())
    document = tmp_path / "p" / "policy.json"
    document.write_text(document.read_text().replace("0.9", "0.8"))
    with pytest.raises(CheckpointError, match="altered"):
        load_policy(tmp_path / "p")


class Unregistered(Fixed):
    pass


class Forgetful(Fixed):
    """Its settings lack what its constructor needs."""

    def settings(self) -> dict[str, object]:
        return {"shares": [0.5, 0.5]}


class Stateful(Fixed):
    """Its state holds what no file can."""

    def state_dict(self) -> dict[str, object]:
        return {"seen": {1, 2}}


def test_a_policy_that_cannot_be_saved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"d0": 0.5, "d1": 0.5}
    with pytest.raises(PolicyError, match=r"Unregistered cannot be saved: .*@register_policy"):
        check_can_be_saved(Guard(Unregistered(weights)))
    for broken in (Forgetful, Stateful):
        monkeypatch.setitem(POLICIES._parts, "broken", broken)
        with pytest.raises(PolicyError, match="kind 'broken' cannot be saved and loaded"):
            check_can_be_saved(broken(weights))
    check_can_be_saved(Guard(Exp3()))

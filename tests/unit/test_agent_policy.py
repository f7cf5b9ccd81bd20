"""AC-ODM's and HDS's policies: conformance, modes, portability, and that nothing bad gets in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.agents.base import Observation, Transition
from cuvee.agents.networks import Shape
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.protocols import Metrics, Policy, State
from cuvee.core.registry import AGENTS, ENCODERS, REWARDS
from cuvee.core.trajectory import Trajectory, prefixes
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.agent import AgentMethod
from cuvee.methods.doge import ExponentiatedAlignment
from cuvee.methods.hds import HDS
from cuvee.policies.agent_policy import AgentPolicy
from cuvee.policies.encoders import DOMAIN_FEATURES, GLOBAL_FEATURES, observe
from cuvee.policies.files import load_policy, save_policy
from cuvee.policies.gain_rewards import GainReward
from cuvee.policies.paced import Paced
from cuvee.testing.policy import PolicySuite, ScriptedTrainer, some_domains

SMALL = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 2},
    "learning_starts": 2,
    "batch_size": 4,
    "capacity": 50,
}


def small(agent: str, reward: str, **options: Any) -> AgentPolicy:
    quality = {f"d{k}": 1.0 + k for k in range(60)}
    settings = {"quality": quality} if reward.startswith("holistic") else {}
    return AgentPolicy(
        agent, reward, warmup_intervals=3, agent_settings=SMALL, reward_settings=settings, **options
    )


class TestACODM(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return small("ddpg", "alignment", vector=True)


class TestACODMScalar(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return small("ddpg", "alignment")


class TestHDS(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return small("sac", "holistic_published")


class TestObservesReward(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return small("ddpg", "gain", vector=True, observe_reward=True)


class TestACODMAroundTheReference(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return small("ddpg", "gain", vector=True, reference={"sharpness": 1.0})


class TestHDSAroundTheReference(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        capped = {"sharpness": 1.0, "epochs": {domains[0].name: 0.5}, "tokens": 12_000}
        return small("sac", "holistic", vector=True, reference=capped)


class TestNoiseForGains(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        noise = {"sharpness": 1.0, "noise": 3}
        return small("ddpg", "gain", vector=True, reference=noise)


class TestDoGE(PolicySuite):
    def make(self, domains: tuple[Domain, ...]) -> Policy:
        return ExponentiatedAlignment(mu=2.0)


def play(
    policy: AgentPolicy, domains: tuple[Domain, ...], intervals: int = 12
) -> tuple[Trajectory, list[dict[str, Any]]]:
    trainer, records = ScriptedTrainer(domains, intervals), []
    so_far = Trajectory.start(trainer.start(policy.probes))
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        records.append(dict(policy.learn(so_far)))
    return so_far, records


@pytest.mark.parametrize(
    ("agent", "reward"), [("ddpg", "alignment"), ("sac", "holistic_published")]
)
def test_the_warm_up_fills_the_buffer_and_then_the_agent_acts_and_learns(
    agent: str, reward: str
) -> None:
    _, records = play(small(agent, reward), some_domains(4))
    assert [record["acted"] for record in records] == ["warm-up"] * 3 + [agent] * 9
    assert all(record["rejected"] is None for record in records)
    assert records[0]["agent"] == {}
    assert records[-1]["agent"]
    assert set(records[-1]["terms"]) == (
        {"alignment"} if reward == "alignment" else {"alignment", "quality", "stability"}
    )


def test_a_frozen_policy_measures_no_reward_and_never_changes() -> None:
    domains = some_domains(4)
    learned = small("ddpg", "alignment", vector=True)
    play(learned, domains)
    frozen = learned.frozen()
    assert [probe.name for probe in frozen.probes] == ["weight_norms"]
    first, records = play(frozen, domains)
    assert first == play(frozen, domains)[0], "no exploration, no learning"
    assert records == [{}] * 12


def test_an_agent_with_observe_reward_sees_the_rewards_of_the_last_interval() -> None:
    domains, seen = some_domains(4), {}
    for told in (False, True):
        policy = small("ddpg", "gain", vector=True, observe_reward=told)
        so_far, _ = play(policy, domains)
        seen[told] = policy.explain(so_far)["domains"]["reward"]
    assert set(seen[False].values()) == {0.0}
    rewards = GainReward()
    for moment in list(prefixes(so_far))[1:]:
        reward = rewards(moment, np.ones(4, dtype=bool))
    assert reward is not None
    assert list(seen[True].values()) == pytest.approx(np.clip(reward.vector_K, -3, 3), rel=1e-5)


def test_a_frozen_agent_still_observes_rewards() -> None:
    learned = small("ddpg", "gain", vector=True, observe_reward=True)
    play(learned, some_domains(4))
    frozen = learned.frozen()
    assert {probe.name for probe in frozen.probes} == {probe.name for probe in learned.probes}
    so_far, records = play(frozen, some_domains(4))
    assert records == [{}] * 12
    assert len(set(frozen.explain(so_far)["domains"]["reward"].values())) == 4


@pytest.mark.parametrize("K", [2, 5, 52])
def test_a_policy_file_steers_runs_with_other_domains(K: int, tmp_path: Path) -> None:
    learned = small("sac", "alignment")
    play(learned, some_domains(4))
    save_policy(tmp_path / "p", learned.frozen())
    loaded = load_policy(tmp_path / "p")
    assert isinstance(loaded, AgentPolicy)
    domains = tuple(Domain(f"other{k}", 100 * (k + 1)) for k in range(K))
    assert play(loaded, domains)[0].weights_TK().shape == (12, K)


def test_learning_continues_with_other_domains_and_a_new_buffer(tmp_path: Path) -> None:
    learned = small("ddpg", "alignment")
    play(learned, some_domains(4))
    save_policy(tmp_path / "p", learned)
    loaded = load_policy(tmp_path / "p")
    assert isinstance(loaded, AgentPolicy)
    _, records = play(loaded, some_domains(6))
    assert all(record["rejected"] is None for record in records)


def test_order_of_domains_does_not_matter_to_a_transformer() -> None:
    domains = some_domains(5)
    learned = small("ddpg", "alignment")
    play(learned, domains)
    frozen = learned.frozen()
    so_far = Trajectory.start(ScriptedTrainer(domains).start(()))
    turned = Trajectory.start(ScriptedTrainer(domains[::-1]).start(()))
    assert frozen.mixture(turned).weights_K[::-1] == pytest.approx(
        frozen.mixture(so_far).weights_K, abs=1e-6
    )


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="dqn"):
        AgentPolicy("dqn", "alignment")
    with pytest.raises(PolicyError, match="DDPGSettings has no taw"):
        AgentPolicy("ddpg", "alignment", agent_settings={"taw": 0.1})
    with pytest.raises(PolicyError, match="tau is 'slow': Input should be a valid number"):
        AgentPolicy("ddpg", "alignment", agent_settings={"tau": "slow"})
    with pytest.raises(PolicyError, match="Architecture has no width"):
        AgentPolicy("ddpg", "alignment", agent_settings={"architecture": {"width": 3}})
    with pytest.raises(PolicyError, match="smoothing"):
        AgentPolicy("ddpg", "alignment", reward_settings={"smoothing": 2.0})
    with pytest.raises(PolicyError, match="power"):
        AgentPolicy("ddpg", "gain", reference={"power": -1.0})


def test_doge_raises_what_helps_the_others() -> None:
    domains = some_domains(4)
    policy, trainer = (
        ExponentiatedAlignment(mu=1.0, objective={"d3": 1.0}),
        ScriptedTrainer(domains, 30),
    )
    so_far = Trajectory.start(trainer.start(policy.probes))
    while not trainer.done:
        mixture = policy.mixture(so_far)
        so_far = so_far.append(mixture, trainer.advance(mixture))
        policy.learn(so_far)
    assert so_far.mixtures[0].weights_K == pytest.approx([0.25] * 4)
    assert np.all(so_far.mixtures[-1].weights_K >= 0.01 / 4)
    assert so_far.mixtures[-1].weights_K.max() > 0.4


def test_it_explains_the_state_in_which_it_decides() -> None:
    domains = some_domains(4)
    policy = small("ddpg", "gain", vector=True)
    so_far, _ = play(policy, domains)
    explained = policy.explain(so_far)
    assert set(explained["domains"]) == set(DOMAIN_FEATURES)
    assert set(explained["run"]) == set(GLOBAL_FEATURES)
    assert explained["run"]["progress"] == 1.0
    fresh = observe(so_far, np.ones(4)).domains_KF
    weights = [explained["domains"]["weight"][name] for name in so_far.names]
    assert weights == fresh[:, DOMAIN_FEATURES.index("weight")].tolist()


@pytest.mark.parametrize("agent", AGENTS.names())
@pytest.mark.parametrize("reward", REWARDS.names())
def test_any_agent_learns_from_any_reward(agent: str, reward: str) -> None:
    small = {
        "architecture": {"hidden": 8, "layers": 1, "heads": 2},
        "learning_starts": 2,
        "batch_size": 4,
    }
    method = AgentMethod(agent=agent, reward=reward, warmup_intervals=3, agent_settings=small)
    policy = method.policy()
    _, records = play(policy, some_domains(3))
    assert records[-1]["acted"] == agent
    assert records[-1]["agent"], "it has been updated"
    assert policy.settings()["encoder"] == "standard"


@dataclass(frozen=True)
class BanditSettings:
    lr: float = 0.1


class Bandit:
    """An agent of another package: without networks, a replay buffer or a `shape`."""

    settings_type = BanditSettings

    def __init__(self, shape: Shape, settings: BanditSettings, seed: int = 0) -> None:
        self.lr = settings.lr
        self.logits_K = np.zeros(shape.domains)

    def act(self, observation: Observation, explore: bool = False) -> FloatArray:
        weights_K = np.exp(np.resize(self.logits_K, len(observation.domains_KF)))
        return weights_K / weights_K.sum()

    def observe(self, transition: Transition) -> str | None:
        self.logits_K = np.resize(self.logits_K, len(transition.action_K))
        self.logits_K += self.lr * np.asarray(transition.reward)
        return None

    def update(self) -> Metrics:
        return {"lr": self.lr}

    def state_dict(self) -> State:
        return {"logits": self.logits_K.copy()}

    def load_state_dict(self, state: State) -> None:
        self.logits_K = np.array(state["logits"])


def test_an_agent_needs_only_its_interface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(AGENTS._parts, "bandit", Bandit)
    method = AgentMethod(agent="bandit", warmup_intervals=2, agent_settings={"lr": 0.5})
    policy = method.policy()
    so_far, records = play(policy, some_domains(3))
    assert records[-1]["agent"] == {"lr": 0.5}
    assert so_far.mixtures[-1].weights_K.max() > 0.4, "it has learned"
    save_policy(tmp_path / "bandit", policy)
    loaded = load_policy(tmp_path / "bandit")
    assert loaded.mixture(so_far) == policy.mixture(so_far)
    assert isinstance(loaded, AgentPolicy)
    more, _ = play(loaded, some_domains(5))
    assert len(more.names) == 5
    with pytest.raises(PolicyError, match="BanditSettings has no rate; it has lr"):
        AgentMethod(agent="bandit", agent_settings={"rate": 0.5})


def test_a_policy_file_with_an_unregistered_agent_names_file_and_agent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(AGENTS._parts, "bandit", Bandit)
        save_policy(tmp_path / "bandit", AgentMethod(agent="bandit").policy())
    with pytest.raises(PolicyError, match=r"bandit cannot be loaded: no agent 'bandit'.*`plugins`"):
        load_policy(tmp_path / "bandit")


def test_ac_odm_and_hds_are_presets() -> None:
    preset = ACODM(objective={"d1": 1.0}, seed=3).configured()
    assert (preset.agent, preset.reward, preset.seed) == ("ddpg", "gain", 3)
    assert preset.policy().settings()["objective"] == {"d1": 1.0}
    assert (HDS().configured().agent, HDS().configured().reward) == ("sac", "holistic")


def test_noise_replaces_gains_in_reward_and_reference_alike() -> None:
    noisy = ACODM(reward="random", seed=3).configured()
    assert noisy.reference is not None
    assert (noisy.reference["noise"], noisy.reward_settings["noise"]) == (3, 3)
    with pytest.raises(ConfigError, match="reward is 'noise'"):
        ACODM(reward="noise")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [ACODM, HDS])
def test_the_published_settings(method: Any) -> None:
    preset = method(preset="paper").configured()
    assert preset.reference is None
    assert not preset.observe_reward
    assert preset.warmup_intervals in (833, 834)
    assert preset.agent_settings["learning_starts"] == preset.warmup_intervals
    assert (preset.agent_settings["tau"], preset.agent_settings["actor_lr"]) == (0.001, 1e-4)
    assert not preset.agent_settings["scale_rewards"]
    published = HDS(preset="paper").configured().reward_settings
    assert published["weights"] == [1.0, 10.0, 10.0]
    assert HDS(preset="paper", weights=(1.0, 0.0, 0.0)).configured().reward_settings["weights"] == [
        1.0,
        0.0,
        0.0,
    ]


def test_an_untrained_agent_plays_the_reference() -> None:
    quiet = {**SMALL, "noise": 0.0, "learning_starts": 99}
    capped = {"sharpness": 1.0, "epochs": {"d0": 0.5}, "tokens": 12_000, "objective": {"d0": 1.0}}
    domains = some_domains(6)
    agent = AgentPolicy("ddpg", "gain", vector=True, reference=capped, agent_settings=quiet)
    ours = play(agent, domains)[0].weights_TK()
    closed = play(Paced(**capped), domains)[0].weights_TK()  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, closed, atol=0.02)
    np.testing.assert_allclose(ours[:, 0], closed[:, 0], rtol=5e-3)


def test_exploration_never_moves_a_scarce_domain() -> None:
    capped = {"sharpness": 1.0, "epochs": {"d0": 0.5}, "tokens": 12_000, "objective": {"d0": 1.0}}
    loud = {**SMALL, "noise": 1.0, "actor_lr": 0.1}
    domains = some_domains(6)
    agent = AgentPolicy("ddpg", "gain", vector=True, reference=capped, agent_settings=loud)
    so_far, records = play(agent, domains)
    closed = play(Paced(**capped), domains)[0].weights_TK()  # type: ignore[arg-type]
    np.testing.assert_allclose(so_far.weights_TK()[:, 0], closed[:, 0], rtol=5e-3)
    assert records[-1]["distance"] > 0.05


def test_the_last_transition_of_a_run_is_terminal() -> None:
    policy = small("ddpg", "gain", vector=True, reference={"sharpness": 1.0})
    play(policy, some_domains(4))
    buffer = policy.state_dict()["agent"]["buffer"]["arrays"]
    assert buffer["terminated_B"].tolist() == [0.0] * (len(buffer["terminated_B"]) - 1) + [1.0]
    assert not buffer["truncated_B"].any()


def test_a_policy_with_other_features_is_refused(tmp_path: Path) -> None:
    learned = small("ddpg", "alignment")
    play(learned, some_domains(4))
    state = learned.state_dict()
    old = {name: value for name, value in state.items() if name != "features"}
    for damaged in (old, {**state, "features": ["loss"]}):
        with pytest.raises(PolicyError, match="learn it again"):
            small("ddpg", "alignment").load_state_dict(damaged)


def test_an_agent_without_a_reference_starts_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losses:
        domain_features = ("loss",)
        global_features = ("progress",)

        def __call__(self, so_far: Trajectory, values_K: Any, rewards: Any = None) -> Observation:
            loss_K1 = so_far.last.loss.filled(0.0)[:, None].astype(np.float32)
            return Observation(loss_K1, np.array([so_far.last.progress], np.float32))

    monkeypatch.setitem(ENCODERS._parts, "losses", Losses)
    method = AgentMethod(
        encoder="losses", reference=None, agent_settings={"noise": 0.0, "learning_starts": 99}
    )
    so_far, _ = play(method.policy(), some_domains(3))
    assert so_far.mixtures[0].weights_K == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    with pytest.raises(ConfigError, match="no encoder 'standart'; did you mean 'standard'"):
        AgentMethod(encoder="standart")

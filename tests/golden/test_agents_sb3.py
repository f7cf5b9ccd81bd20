"""One update of DDPG and SAC agrees with stable-baselines3's, for the same networks and batch.

SB3's own training code runs. Its actors and critics are replaced by copies of ours, so that the
rest is compared:
targets, losses, gradients, the order of the steps, Adam, the temperature, and the slow targets.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from cuvee.agents.ddpg import DDPG, DDPGSettings
from cuvee.agents.learning import RewardScale, mixture_value
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.replay import ReplayBatch
from cuvee.agents.sac import SAC, SACSettings

K, F, G, B = 4, 3, 2, 16
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
NO_SCALE = RewardScale()
COMMON: dict[str, Any] = {
    "batch_size": B,
    "scale_rewards": False,
    "architecture": Architecture(hidden=16),
}


def some_batch(vector: bool = False) -> ReplayBatch:
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(B, K, F)),
        rng.normal(size=(B, G)),
        rng.dirichlet(np.ones(K), size=B),
        rng.normal(size=(B, K if vector else 1)),
        rng.normal(size=(B, K, F)),
        rng.normal(size=(B, G)),
        rng.integers(0, 2, size=B),
    )
    return ReplayBatch(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


def flat(domains: Tensor, globals_: Tensor) -> Tensor:
    return torch.cat([domains.flatten(1), globals_], 1)


def parts(observation: Tensor) -> tuple[Tensor, Tensor]:
    return observation[:, : K * F].unflatten(1, (K, F)), observation[:, K * F :]


class ForeignCritic(nn.Module):
    """Our critic behind SB3's interface: a tuple of (B, 1) values."""

    def __init__(self, critic: nn.Module, rate: float) -> None:
        super().__init__()
        self.inner: Any = critic
        self.optimizer = torch.optim.Adam(self.parameters(), lr=rate)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        encoded = self.inner.encode(*parts(observation))
        if hasattr(self.inner, "values"):
            return tuple(
                mixture_value(value, action)[:, None]
                for value in self.inner.values(encoded, action)
            )
        return (mixture_value(self.inner.value(encoded, action), action)[:, None],)

    def q1_forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self(observation, action)[0]


class ForeignActor(nn.Module):
    def __init__(self, actor: nn.Module, rate: float) -> None:
        super().__init__()
        self.inner = actor
        self.optimizer = torch.optim.Adam(self.parameters(), lr=rate)

    def forward(self, observation: Tensor) -> Tensor:
        return self.inner(*parts(observation))[..., 0].softmax(-1)


class Fixed(gymnasium.Env[Any, Any]):
    """SB3 wants an environment to read its spaces from."""

    observation_space = gymnasium.spaces.Box(-10, 10, (K * F + G,))
    action_space = gymnasium.spaces.Box(-1, 1, (K,))


def reference(kind: Any, agent: Any, batch: ReplayBatch, **kwargs: Any) -> Any:
    model = kind(
        "MlpPolicy",
        Fixed(),
        learning_rate=1e-3,
        gamma=0.95,
        tau=0.01,
        buffer_size=10,
        device="cpu",
        **kwargs,
    )
    model.critic = ForeignCritic(copy.deepcopy(agent.critic.net), 1e-3)
    model.critic_target = ForeignCritic(copy.deepcopy(agent.critic.target_net), 1e-3)
    samples = ReplayBufferSamples(
        flat(batch.domains_BKF, batch.globals_BG),
        batch.action_BK,
        flat(batch.next_domains_BKF, batch.next_globals_BG),
        batch.terminated_B[:, None],
        batch.reward_BR,
    )
    model.replay_buffer.sample = lambda *_, **__: samples
    model.set_logger(Logger(None, []))
    return model


def assert_same_parameters(ours: nn.Module, theirs: nn.Module) -> None:
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their, **CLOSE)


def test_ddpg_agrees() -> None:
    batch = some_batch()
    settings = DDPGSettings(discount=0.95, tau=0.01, actor_lr=1e-3, critic_lr=1e-3, **COMMON)
    agent = DDPG(Shape(K, F, G), settings)
    model = reference(sb3.DDPG, agent, batch)
    model.actor = ForeignActor(copy.deepcopy(agent.actor.net), 1e-3)
    model.actor_target = ForeignActor(copy.deepcopy(agent.actor.target_net), 1e-3)
    for _ in range(3):
        metrics = agent.learn(batch, NO_SCALE)
        model.train(gradient_steps=1, batch_size=B)
        logged = model.logger.name_to_value
        assert metrics["critic_loss"] == pytest.approx(logged["train/critic_loss"], abs=1e-5)
        assert metrics["actor_loss"] == pytest.approx(logged["train/actor_loss"], abs=1e-5)
    assert_same_parameters(agent.critic.net, model.critic)
    assert_same_parameters(agent.actor.net, model.actor)
    assert_same_parameters(agent.critic.target_net, model.critic_target)
    assert_same_parameters(agent.actor.target_net, model.actor_target)


class ForeignPolicy(nn.Module):
    """Our stochastic actor behind SB3's interface.

    It draws the same mixtures from a copy of the agent's generator.

    The log density that it reports is above minus the target entropy, as in our critic's target.
    SB3's own target entropy is therefore 0.
    """

    def __init__(self, agent: SAC, rate: float) -> None:
        super().__init__()
        self.agent = SAC(agent.shape, agent.settings)
        self.agent.load_state_dict(agent.state_dict())
        self.inner = self.agent.actor.net
        self.optimizer = torch.optim.Adam(self.inner.parameters(), lr=rate)

    def action_log_prob(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        draw = self.agent.policy(*parts(observation)).sample(self.agent.generator)
        return draw.weights, draw.log_ratio_prob + self.agent.target_entropy


@pytest.mark.parametrize("policy", ["logistic-normal", "dirichlet"])
def test_sac_agrees(policy: Any) -> None:
    batch = some_batch()
    settings = SACSettings(
        discount=0.95,
        tau=0.01,
        actor_lr=1e-3,
        critic_lr=1e-3,
        temperature_lr=1e-3,
        policy=policy,
        **COMMON,
    )
    agent = SAC(Shape(K, F, G), settings)
    model = reference(
        sb3.SAC, agent, batch, ent_coef=f"auto_{settings.temperature}", target_entropy=0.0
    )
    model.actor = ForeignPolicy(agent, 1e-3)
    for _ in range(3):
        metrics = agent.learn(batch, NO_SCALE)
        model.train(gradient_steps=1, batch_size=B)
        logged = model.logger.name_to_value
        offset = metrics["temperature"] * agent.target_entropy
        assert metrics["critic_loss"] == pytest.approx(logged["train/critic_loss"], abs=1e-5)
        assert metrics["actor_loss"] + offset == pytest.approx(logged["train/actor_loss"], abs=1e-5)
        assert metrics["temperature_loss"] == pytest.approx(
            logged["train/ent_coef_loss"], rel=1e-5, abs=1e-5
        )
        assert metrics["temperature"] == pytest.approx(logged["train/ent_coef"], abs=1e-6)
    assert_same_parameters(agent.critic.net, model.critic)
    assert_same_parameters(agent.critic.target_net, model.critic_target)
    assert_same_parameters(agent.actor.net, model.actor.inner)
    torch.testing.assert_close(agent.temperature.net.log, model.log_ent_coef[0], **CLOSE)

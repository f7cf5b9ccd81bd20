"""DDPG on the simplex.

Source: Lillicrap et al. 2016, arXiv:1509.02971. AC-ODM (arXiv:2505.23878) applies it to data
mixing.

    critic   minimise  (Q(s, α) − [r + γ Q'(s′, μ'(s′))])²
    actor    maximise  Q(s, μ(s)) − c/(1−γ) KL(μ ‖ reference)
             μ = softmax of bounded logits
    targets  θ' ← θ' + τ (θ − θ')

With a reward for each domain, the critic has a part r_i(s, α) for each domain and a part F(s, α)
for what comes after the interval:

    Q(s, α) = Σ_i α_i r_i(s, α) + F(s, α)
    critic   minimise  Σ_i (r_i(s, α) − r_i)² / K + (F(s, α) − γ Q'(s′, μ'(s′)))²

With `twin`, there are two critics. The lower value of each mixture is used in targets and by the
actor (TD3, Fujimoto et al. 2018, arXiv:1802.09477). A single critic is too optimistic for some
mixtures, and the actor finds those.

Differences from AC-ODM's release: the actor has its own optimizer step (the release never updates
it), and rewards are scaled when they are read, not when they are stored. `PAPER` has the published
hyperparameters. With the defaults the agent learns within 5,000 steps; with the published values it
does not (see docs/agents.md). The KL penalty with coefficient c (`kl_coef`) is our addition and is
off by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cuvee.agents.actor_critic import Twin, build_actor, build_critic
from cuvee.agents.base import Observation
from cuvee.agents.learning import (
    RewardScale,
    TrainState,
    as_weights,
    critic_error,
    pessimistic_value,
    seeded,
    td_target,
    tensors,
)
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.replay import ReplayBatch
from cuvee.agents.replay_agent import ReplayAgent, ReplaySettings
from cuvee.agents.simplex import project
from cuvee.core.arrays import FloatArray
from cuvee.core.protocols import State
from cuvee.core.registry import register_agent


@dataclass(frozen=True)
class DDPGSettings(ReplaySettings):
    """Settings of DDPG, in addition to those of every replay agent.

    `noise` is the std of the exploration noise. It is added to the logits (a relative change of
    each weight) or to the weights, as `noise_on` says.

    `noise_memory` is the correlation of the noise between consecutive actions (an
    Ornstein-Uhlenbeck process, as in the DDPG paper). A change that lasts for several intervals has
    an effect that is larger than the measurement noise of one interval.
    """

    noise: float = 0.5
    noise_memory: float = 0.0
    noise_on: Literal["logits", "weights"] = "logits"
    twin: bool = False


PAPER = DDPGSettings(
    discount=0.95,
    tau=0.001,
    actor_lr=1e-4,
    critic_lr=1e-4,
    batch_size=32,
    capacity=10_000,
    learning_starts=833,
    scale_rewards=False,
    architecture=Architecture("mlp", hidden=1024, layer_norm=False),
    noise=0.02,
    noise_on="weights",
)


@register_agent("ddpg")
class DDPG(ReplayAgent):
    """An agent with a deterministic actor."""

    settings_type = DDPGSettings
    settings: DDPGSettings

    def __init__(self, shape: Shape, settings: DDPGSettings | None = None, seed: int = 0) -> None:
        self.settings = s = settings or DDPGSettings()
        super().__init__(shape, s, seed)
        actor, critic = seeded(
            seed,
            lambda: (
                build_actor(shape, s.architecture, 1),
                (Twin if s.twin else build_critic)(shape, s.architecture),
            ),
        )
        self.actor = self.train_states["actor"] = TrainState(actor, s.actor_lr, s.tau, s.ema_rate)
        self.critic = self.train_states["critic"] = TrainState(critic, s.critic_lr, s.tau)
        self._noise_K = torch.zeros(0)

    def act(self, observation: Observation, explore: bool = False) -> FloatArray:
        inputs = tensors(observation)
        with torch.no_grad():
            logits_K = (self.actor.net if explore else self.actor.ema_net)(*inputs)[..., 0]
        if not explore:
            return as_weights(logits_K.softmax(-1))
        noise_K = self.settings.noise * self._next_noise(len(logits_K))
        if self.settings.noise_on == "logits":
            return as_weights((logits_K + noise_K).softmax(-1))
        return as_weights(project(logits_K.softmax(-1) + noise_K))

    def _next_noise(self, K: int) -> Tensor:
        """Return the next (K,) of a unit-variance process with correlation `noise_memory`.

        The process restarts when K changes.
        """
        memory = self.settings.noise_memory
        fresh_K = torch.randn(K, generator=self.generator)
        known = len(self._noise_K) == K
        self._noise_K = (
            memory * self._noise_K + (1 - memory**2) ** 0.5 * fresh_K if known else fresh_K
        )
        return self._noise_K

    def learn(self, batch: ReplayBatch, rewards: RewardScale) -> dict[str, float]:
        critic_metrics = self.critic.step("critic", self.critic_loss(batch, rewards))
        actor_metrics = self.actor.step("actor", self.actor_loss(batch, rewards))
        self.critic.update_targets()
        self.actor.update_targets()
        return critic_metrics | actor_metrics

    def critic_loss(self, batch: ReplayBatch, rewards: RewardScale) -> Tensor:
        """Return the mean squared error to the target networks' one-step return."""
        with torch.no_grad():
            following = (batch.next_domains_BKF, batch.next_globals_BG)
            next_action_BK = self.actor.target_net(*following)[..., 0].softmax(-1)
            target_net = self.critic.target_net
            next_value_B = pessimistic_value(
                self._values(target_net, target_net.encode(*following), next_action_BK),
                next_action_BK,
            )
            target_BR = td_target(batch, next_value_B, self.settings.discount, rewards)
        critic = self.critic.net
        values = self._values(
            critic, critic.encode(batch.domains_BKF, batch.globals_BG), batch.action_BK
        )
        return sum((critic_error(value_BR, target_BR) for value_BR in values), torch.zeros(()))

    def actor_loss(self, batch: ReplayBatch, rewards: RewardScale) -> Tensor:
        """Return the KL penalty minus the critics' value of the actor's mixtures."""
        critic = self.critic.net
        with torch.no_grad():
            encoded = critic.encode(batch.domains_BKF, batch.globals_BG)
        action_BK = self.actor.net(batch.domains_BKF, batch.globals_BG)[..., 0].softmax(-1)
        value_B = pessimistic_value(self._values(critic, encoded, action_BK), action_BK)
        return (self.kl_penalty(action_BK, batch.domains_BKF, rewards) - value_B).mean()

    def _values(self, critic: Any, encoded: Any, action_BK: Tensor) -> tuple[Tensor, ...]:
        """Return the values (…, R) of each critic."""
        values: tuple[Tensor, ...] = (
            critic.values(encoded, action_BK)
            if self.settings.twin
            else (critic.value(encoded, action_BK),)
        )
        return values

    def state_dict(self) -> State:
        return {**super().state_dict(), "noise": self._noise_K.numpy().copy()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._noise_K = torch.from_numpy(np.array(state["noise"], dtype=np.float32))

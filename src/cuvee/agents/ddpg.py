"""DDPG on the simplex (Lillicrap et al. 2016, arXiv:1509.02971; for data mixing AC-ODM, arXiv:2505.23878).

    critic   minimise  (Q(s, α) − [r + γ Q'(s′, μ'(s′))])²                       Q a number, or one a domain
    actor    maximise  Q(s, μ(s)), for a vector critic Σ_i μ_i Q_i(s, μ(s)), less c/(1−γ) KL(μ ‖ reference)
             μ = softmax of bounded logits
    targets  θ' ← θ' + τ (θ − θ')

With `twin`, there are two critics and the one that thinks less of a mixture is believed, in targets and by the actor (TD3,
Fujimoto et al. 2018, arXiv:1802.09477): a single one is optimistic somewhere, and over many bootstraps the actor finds it.

Differences from AC-ODM's release: the actor is stepped by its own optimizer (there it never is), and rewards are scaled
where they are read instead of where they are stored. `PAPER` keeps the published numbers; with the defaults the agent
learns in 5,000 steps, which it cannot with those (docs/agents.md). `kl_coef` c is ours, and 0 unless given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cuvee.agents.actor_critic import Twin, bounded, build_actor, build_critic
from cuvee.agents.base import Observation
from cuvee.agents.learning import (
    RewardScale,
    TrainState,
    as_weights,
    least,
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
    """`noise` is the deviation of exploration, on the logits (a relative change of each weight) or on the weights.

    `noise_memory` is its correlation from one act to the next (Ornstein-Uhlenbeck, as in the DDPG paper): a direction that
    is held for a while has effects that stand out from the noise of one interval's measurements.
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
    """An `Agent` with a deterministic actor."""

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
            logits_K = bounded((self.actor.net if explore else self.actor.ema_net)(*inputs))[..., 0]
        if not explore:
            return as_weights(logits_K.softmax(-1))
        noise_K = self.settings.noise * self._wander(len(logits_K))
        if self.settings.noise_on == "logits":
            return as_weights((logits_K + noise_K).softmax(-1))
        return as_weights(project(logits_K.softmax(-1) + noise_K))

    def _wander(self, K: int) -> Tensor:
        """The next (K,) of a unit-variance process with correlation `noise_memory`; it starts anew when K changes."""
        memory, fresh_K = self.settings.noise_memory, torch.randn(K, generator=self.generator)
        known = len(self._noise_K) == K
        self._noise_K = (
            memory * self._noise_K + (1 - memory**2) ** 0.5 * fresh_K if known else fresh_K
        )
        return self._noise_K

    def learn(self, batch: ReplayBatch, rewards: RewardScale) -> dict[str, float]:
        critic_metrics = self.critic.step("critic", self.critic_loss(batch, rewards))
        actor_metrics = self.actor.step("actor", self.actor_loss(batch, rewards))
        self.critic.track()
        self.actor.track()
        return critic_metrics | actor_metrics

    def critic_loss(self, batch: ReplayBatch, rewards: RewardScale) -> Tensor:
        """Mean squared error to the target networks' one-step return."""
        with torch.no_grad():
            following = (batch.next_domains_BKF, batch.next_globals_BG)
            next_action_BK = bounded(self.actor.target_net(*following))[..., 0].softmax(-1)
            target_net = self.critic.target_net
            next_value_BR, _ = least(
                self._values(target_net, target_net.encode(*following), next_action_BK),
                next_action_BK,
            )
            target_BR = td_target(batch, next_value_BR, self.settings.discount, rewards)
        critic = self.critic.net
        values = self._values(
            critic, critic.encode(batch.domains_BKF, batch.globals_BG), batch.action_BK
        )
        return sum(
            (torch.nn.functional.mse_loss(value_BR, target_BR) for value_BR in values),
            torch.zeros(()),
        )

    def actor_loss(self, batch: ReplayBatch, rewards: RewardScale) -> Tensor:
        """Minus what the critics think of the actor's mixtures."""
        critic = self.critic.net
        with torch.no_grad():
            encoded = critic.encode(batch.domains_BKF, batch.globals_BG)
        action_BK = bounded(self.actor.net(batch.domains_BKF, batch.globals_BG))[..., 0].softmax(-1)
        _, worth_B = least(self._values(critic, encoded, action_BK), action_BK)
        return (self.kl_penalty(action_BK, batch.domains_BKF, rewards) - worth_B).mean()

    def _values(self, critic: Any, encoded: Any, action_BK: Tensor) -> tuple[Tensor, ...]:
        """What each critic says, (…, R)."""
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

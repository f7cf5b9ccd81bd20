"""Soft actor-critic (SAC) on the simplex.

Source: Haarnoja et al. 2018, arXiv:1812.05905. HDS (arXiv:2606.24133) applies it to data mixing.

    critics  minimise  Σ_j ½ (Q_j(s, α) − [r + γ (min_j Q'_j(s′, α′) − λ (ln π(α′|s′) + H))])²
                       with α′ ~ π(s′)
    actor    minimise  E_π [λ ln π(α|s) − min_j Q_j(s, α) + c/(1−γ) KL(α ‖ reference)]
    λ        minimise  −ln λ · E_π [ln π(α|s) + H]

The KL penalty with coefficient c (`kl_coef`) is our addition and is off by default.

π is a logistic-normal or a Dirichlet distribution. Its density is taken with respect to the
Aitchison measure Π dα/α. With the usual measure dα, the entropy bonus contains Σ ln α. This term
pulls every mixture towards uniform and outweighs the critic at large K.

The target entropy H is the entropy of a logistic-normal with deviation `std`. So `std` 0.2 means
"vary each weight by about 20 %" at any K and any mixture. H also appears in the critic's target. A
bonus at its target then adds nothing, and values do not drift while λ is learned. For a given λ,
this shifts all values by the same constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cuvee.agents.actor_critic import Twin, build_actor
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
from cuvee.agents.simplex import Dirichlet, Draw, LogisticNormal, SimplexPolicy
from cuvee.core.arrays import FloatArray
from cuvee.core.registry import register_agent

_STD_RANGE = (0.02, 1.5)


@dataclass(frozen=True)
class SACSettings(ReplaySettings):
    """Settings of SAC, in addition to those of every replay agent.

    `std` is the relative variation of each weight that the target entropy corresponds to.
    `temperature` is the initial λ.
    """

    policy: Literal["logistic-normal", "dirichlet"] = "logistic-normal"
    std: float = 0.3
    temperature: float = 0.01
    temperature_lr: float = 3e-4


PAPER = SACSettings(
    discount=0.95,
    tau=0.001,
    actor_lr=1e-4,
    critic_lr=1e-4,
    batch_size=32,
    capacity=10_000,
    learning_starts=834,
    scale_rewards=False,
    architecture=Architecture("transformer", hidden=256, layers=2),
    temperature=1.0,
    temperature_lr=1e-4,
)


def target_entropy(domains: int, std: float) -> float:
    """Return the entropy of a logistic-normal over K domains with deviation `std` of every logit.

    The entropy is in nats, with respect to the Aitchison measure.
    """
    free = domains - 1
    return free * (math.log(std) + 0.5 * math.log(2 * math.pi * math.e)) + 0.5 * math.log(domains)


class Temperature(nn.Module):
    """The temperature λ, stored as its logarithm."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))


@register_agent("sac")
class SAC(ReplayAgent):
    """An agent with a stochastic actor and two critics."""

    settings_type = SACSettings
    settings: SACSettings

    def __init__(self, shape: Shape, settings: SACSettings | None = None, seed: int = 0) -> None:
        self.settings = s = settings or SACSettings()
        super().__init__(shape, s, seed)
        actor, critic = seeded(
            seed, lambda: (build_actor(shape, s.architecture, 2), Twin(shape, s.architecture))
        )
        self.actor = self.train_states["actor"] = TrainState(actor, s.actor_lr, ema_rate=s.ema_rate)
        self.critic = self.train_states["critic"] = TrainState(critic, s.critic_lr, s.tau)
        self.temperature = self.train_states["temperature"] = TrainState(
            Temperature(s.temperature), s.temperature_lr
        )
        self.target_entropy = target_entropy(shape.domains, s.std)

    def policy(self, *observation: Tensor) -> SimplexPolicy:
        """Return the distribution over mixtures for observations ((…, K, F), (…, G))."""
        return simplex_policy(self.actor.net(*observation), self.settings)

    def act(self, observation: Observation, explore: bool = False) -> FloatArray:
        inputs = tensors(observation)
        with torch.no_grad():
            if explore:
                return as_weights(self.policy(*inputs).sample(self.generator).weights)
            return as_weights(simplex_policy(self.actor.ema_net(*inputs), self.settings).centre)

    def learn(self, batch: ReplayBatch, rewards: RewardScale) -> dict[str, float]:
        draw = self.policy(batch.domains_BKF, batch.globals_BG).sample(self.generator)
        excess = (draw.log_ratio_prob + self.target_entropy).detach().mean()
        strength = self.temperature.net.log.detach().exp().item()
        metrics = self.temperature.step("temperature", -self.temperature.net.log * excess)
        metrics |= self.critic.step("critic", self.critic_loss(batch, rewards, strength))
        metrics |= self.actor.step("actor", self.actor_loss(batch, draw, rewards, strength))
        self.critic.update_targets()
        self.actor.update_targets()
        return metrics | {"temperature": strength, "entropy": self.target_entropy - float(excess)}

    def critic_loss(self, batch: ReplayBatch, rewards: RewardScale, strength: float) -> Tensor:
        """Return half the squared error of both critics to the soft one-step return.

        `strength` is λ.
        """
        with torch.no_grad():
            following = (batch.next_domains_BKF, batch.next_globals_BG)
            draw = self.policy(*following).sample(self.generator)
            next_value_B = pessimistic_value(
                self.critic.target_net.values(
                    self.critic.target_net.encode(*following), draw.weights
                ),
                draw.weights,
            )
            bonus_B = -strength * (draw.log_ratio_prob + self.target_entropy)
            target_BR = td_target(batch, next_value_B + bonus_B, self.settings.discount, rewards)
        critic = self.critic.net
        values = critic.values(critic.encode(batch.domains_BKF, batch.globals_BG), batch.action_BK)
        return 0.5 * sum(
            (critic_error(value_BR, target_BR) for value_BR in values), torch.zeros(())
        )

    def actor_loss(
        self, batch: ReplayBatch, draw: Draw, rewards: RewardScale, strength: float
    ) -> Tensor:
        """Return the actor's loss: entropy cost, plus KL penalty, minus the critics' lower value.

        `draw` is a sample of the actor's policy, and `strength` is λ.
        """
        with torch.no_grad():
            encoded = self.critic.net.encode(batch.domains_BKF, batch.globals_BG)
        value_B = pessimistic_value(self.critic.net.values(encoded, draw.weights), draw.weights)
        distance_B = self.kl_penalty(draw.weights, batch.domains_BKF, rewards)
        return (strength * draw.log_ratio_prob + distance_B - value_B).mean()


def simplex_policy(out_BK2: Tensor, settings: SACSettings) -> SimplexPolicy:
    """Return the distribution over mixtures that network outputs (…, K, 2) describe.

    The outputs are logits and log deviations. The deviation is the same for all domains and
    starts at `std`. If each domain had its own, only the small weights would get a large deviation,
    because it costs them little. The mixture at the centre would then miss the best one, since the
    mean of such a weight is larger than its median.
    """
    logits_BK = out_BK2[..., 0]
    std_B1 = (settings.std * out_BK2[..., 1].mean(-1, keepdim=True).exp()).clamp(*_STD_RANGE)
    if settings.policy == "logistic-normal":
        return LogisticNormal(logits_BK, std_B1.expand_as(logits_BK))
    # The log of a gamma variate with concentration c has variance of about 1/c. A weight of 1/K
    # therefore varies as much as it does under the logistic-normal.
    return Dirichlet(logits_BK.shape[-1] * std_B1.pow(-2) * logits_BK.softmax(-1) + 1e-3)

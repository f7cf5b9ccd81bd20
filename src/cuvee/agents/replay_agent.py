"""`ReplayAgent`: the base class of DDPG, SAC and CQL.

It checks transitions, fills the replay buffer, runs the updates, and saves and loads the state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cuvee.agents.base import Observation, Transition, check_shape, fault_in
from cuvee.agents.learning import RewardScale, TrainState
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.replay import ReplayBatch, ReplayBuffer
from cuvee.agents.simplex import log_weights
from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import Metrics, State
from cuvee.core.state import digest

# Upper bound of the penalty per nat, in the critic's units. Equal rewards would make it infinite.
_MAX_PENALTY = 100.0


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of every agent with a replay buffer.

    The agent learns nothing before the buffer holds `learning_starts` transitions. Then each call
    of `update` learns from `updates` batches.

    `tau` is the fraction by which a target network moves per batch. With `scale_rewards`, critics
    see rewards with mean 0 and std 1 (`RewardScale`). The buffer keeps them unscaled.

    `kl_coef` is the penalty for one nat of KL divergence from the reference mixture (see `Shape`),
    in units of the reward of one interval. When rewards depend little on the mixture, the best
    mixture is a corner of the simplex. Without a penalty, the actor moves there as fast as its
    learning rate allows.

    `ema_rate` is the fraction by which an exponential moving average of the actor's weights moves
    per batch. The average acts when the agent does not explore. With `ema_rate` 0, the actor itself
    acts. The actor's last weights contain the noise of the last batches, and a frozen policy would
    keep it.
    """

    discount: float = 0.95
    tau: float = 0.005
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    batch_size: int = 32
    capacity: int = 10_000
    learning_starts: int = 100
    updates: int = 1
    scale_rewards: bool = True
    kl_coef: float = 0.0
    ema_rate: float = 0.0
    architecture: Architecture = field(default_factory=Architecture)


class ReplayAgent(ABC):
    """Base of the agents with a replay buffer.

    A subclass fills `train_states` and implements `act` and `learn`.
    """

    settings: ReplaySettings

    def __init__(self, shape: Shape, settings: ReplaySettings, seed: int) -> None:
        self.shape = shape
        self.train_states: dict[str, TrainState] = {}
        self.buffer = ReplayBuffer(settings.capacity, seed)
        self.generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def act(self, observation: Observation, explore: bool = False) -> FloatArray: ...

    @abstractmethod
    def learn(self, batch: ReplayBatch, rewards: RewardScale) -> dict[str, float]:
        """Take one optimizer step of every network on `batch` and return the metrics."""

    def observe(self, transition: Transition) -> str | None:
        """Store a transition, or return the reason why it was refused.

        Raises `PolicyError` if its shapes are not those of this agent.
        """
        fault = fault_in(transition)
        if fault is None:
            shape = self.shape
            check_shape(
                "observation.domains",
                np.asarray(transition.observation.domains_KF),
                (shape.domains, shape.features),
            )
            check_shape(
                "observation.globals",
                np.asarray(transition.observation.globals_G),
                (shape.globals,),
            )
            check_shape("action", np.asarray(transition.action_K), (shape.domains,))
            check_shape(
                "reward", np.asarray(transition.reward), (shape.domains,) if shape.vector else ()
            )
            self.buffer.add(transition)
        return fault

    def update(self) -> Metrics:
        if len(self.buffer) < max(self.settings.learning_starts, 1):
            return {}
        rewards = RewardScale.of(self.buffer) if self.settings.scale_rewards else RewardScale()
        rounds = [
            self.learn(self.buffer.sample(self.settings.batch_size), rewards)
            for _ in range(self.settings.updates)
        ]
        means = {name: float(np.mean([metrics[name] for metrics in rounds])) for name in rounds[0]}
        return {**means, "reward_mean": rewards.mean, "reward_scale": rewards.scale}

    def kl_penalty(self, action_BK: Tensor, domains_BKF: Tensor, rewards: RewardScale) -> Tensor:
        """Return the penalty (…,) for the KL divergence of mixtures from the reference.

        It is `kl_coef` / (1 − γ) per nat, in the units of the critic. The factor 1 / (1 − γ) brings
        the price of one interval to the scale of values.
        """
        s = self.settings
        if not s.kl_coef:
            return action_BK.new_zeros(action_BK.shape[:-1])
        feature = self.shape.reference
        reference_BK = torch.zeros_like(action_BK) if feature is None else domains_BKF[..., feature]
        divergence_B = (action_BK * (log_weights(action_BK) - reference_BK.log_softmax(-1))).sum(-1)
        per_nat = min(s.kl_coef / rewards.scale, _MAX_PENALTY)
        return per_nat / max(1.0 - s.discount, 1e-2) * divergence_B

    def state_dict(self) -> State:
        return {
            "agent": type(self).__name__,
            "train_states": {
                name: train_state.state_dict() for name, train_state in self.train_states.items()
            },
            "buffer": self.buffer.state_dict(),
            "generator": self.generator.get_state().numpy().copy(),
        }

    def load_state_dict(self, state: State) -> None:
        if state["agent"] != type(self).__name__:
            raise PolicyError(
                f"the saved agent is a {state['agent']}, this one a {type(self).__name__}: "
                "build the same kind"
            )
        for name, train_state in self.train_states.items():
            train_state.load_state_dict(state["train_states"][name])
        self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))

    def digest(self) -> str:
        """Return the sha256 of the whole state. A refused transition must not change it."""
        return digest(self.state_dict())

"""Shared parts of all agents.

Seeded networks, guarded optimizer steps, target networks, reward scaling, and network state as
numpy arrays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cuvee.agents.base import Observation, check_observation
from cuvee.agents.replay import ReplayBatch, ReplayBuffer
from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import State
from cuvee.core.state import digest as digest

T = TypeVar("T")


def seeded(seed: int, build: Callable[[], T]) -> T:
    """Return `build()` with weights drawn from `seed`, without changing the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class TrainState:
    """A network with its Adam optimizer, target network and weight average.

    If `tau` > 0 there is a target network, which moves by the fraction `tau` towards the network
    per step. If `ema_rate` > 0 there is an exponential moving average of the weights, which moves
    by `ema_rate` (Polyak and Juditsky 1992).
    """

    def __init__(
        self, net: nn.Module, learning_rate: float, tau: float = 0.0, ema_rate: float = 0.0
    ) -> None:
        self.net: Any = net
        self.tau = tau
        self.ema_rate = ema_rate
        self.target = copy.deepcopy(net).requires_grad_(False) if tau else None
        self.mean = copy.deepcopy(net).requires_grad_(False) if ema_rate else None
        self.optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)

    def step(self, name: str, loss: Tensor) -> dict[str, float]:
        """Take one optimizer step on `loss`. Skip it if the gradient is not finite.

        Returns the metrics `{name}_loss`, `{name}_gradient` (the gradient's norm) and
        `{name}_refused` (1 if the step was skipped).
        """
        parameters = list(self.net.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not np.isfinite(norm):
            return {f"{name}_loss": 0.0, f"{name}_gradient": 0.0, f"{name}_refused": 1.0}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {f"{name}_loss": loss.item(), f"{name}_gradient": norm, f"{name}_refused": 0.0}

    @property
    def target_net(self) -> Any:
        """The target network. The network must have been built with `tau` > 0."""
        assert self.target is not None, "this network was built without a target network"
        return self.target

    @property
    def ema_net(self) -> Any:
        """The weight average, or the network itself if no average is kept.

        Use it to act when not exploring.
        """
        return self.mean if self.mean is not None else self.net

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move the target network and the weight average towards the network.

        target ← target + τ (net − target); the average likewise, with `ema_rate`.
        """
        for copy_, rate in ((self.target, self.tau), (self.mean, self.ema_rate)):
            if copy_ is not None:
                torch._foreach_lerp_(list(copy_.parameters()), list(self.net.parameters()), rate)

    def state_dict(self) -> State:
        moments = self.optimizer.state_dict()["state"]
        return {
            "net": module_state(self.net),
            "target": module_state(self.target) if self.target else {},
            "mean": module_state(self.mean) if self.mean else {},
            "adam": {
                str(i): {name: value.numpy().copy() for name, value in moments[i].items()}
                for i in sorted(moments)
            },
        }

    def load_state_dict(self, state: State) -> None:
        load_module(self.net, state["net"])
        if self.target:
            load_module(self.target, state["target"])
        if self.mean:
            load_module(self.mean, state["mean"])
        groups = self.optimizer.state_dict()["param_groups"]
        if not all(
            np.isfinite(value).all() for entry in state["adam"].values() for value in entry.values()
        ):
            raise PolicyError("the saved Adam moments are not finite: use an earlier checkpoint")
        moments = {
            int(i): {k: _tensor(v) for k, v in entry.items()} for i, entry in state["adam"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def module_state(module: nn.Module) -> dict[str, Any]:
    """Return the module's parameters and buffers as numpy arrays."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def load_module(module: nn.Module, state: State) -> None:
    """Load what `module_state` returned.

    Raises `PolicyError` if names or shapes differ from the module's, or a number is not finite.
    """
    own = module.state_dict()
    if set(own) != set(state):
        raise PolicyError(
            "the saved network and this one do not have the same parameters; only one of them has "
            f"{', '.join(sorted(set(own) ^ set(state)))}"
        )
    for name, tensor in own.items():
        if tuple(state[name].shape) != tuple(tensor.shape):
            raise PolicyError(
                f"{name} was saved with shape {state[name].shape}, this agent's has "
                f"{tuple(tensor.shape)}: build the agent with the shape and architecture "
                "that it was saved with"
            )
        if not np.isfinite(state[name]).all():
            raise PolicyError(f"the saved {name} is not finite: use an earlier checkpoint")
    module.load_state_dict({name: _tensor(array) for name, array in state.items()})


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


def tensors(observation: Observation) -> tuple[Tensor, Tensor]:
    """Return the observation as float32 tensors ((K, F), (G,)).

    Raises `PolicyError` if it has a non-finite or too large entry.
    """
    check_observation(observation)
    domains_KF, globals_G = observation
    return torch.as_tensor(domains_KF, dtype=torch.float32), torch.as_tensor(
        globals_G, dtype=torch.float32
    )


def as_weights(weights_K: Tensor) -> FloatArray:
    """Return (K,) float64 weights, normalised again so that they sum to 1 in float64."""
    exact_K: FloatArray = weights_K.detach().double().numpy()
    normal_K: FloatArray = exact_K / exact_K.sum()
    return normal_K


class RewardScale(NamedTuple):
    """Normalises rewards: r̃ = (r − mean) / scale.

    One scale is used for all domains, so r̃ and r have the same best mixture. Rewards are stored
    unscaled, and the scale is computed from the buffer at each update.

    Without subtraction of the mean r̄, a critic must first learn the constant r̄/(1−γ), which takes
    about 20/τ updates with target networks. Subtraction changes the value of every state by the
    same constant, but only as long as no run terminates. The mean is therefore not subtracted if
    the buffer holds a terminal transition.
    """

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, buffer: ReplayBuffer) -> RewardScale:
        """Return the scale of all rewards in `buffer`."""
        mean, deviation = buffer.reward_moments()
        return cls(0.0 if buffer.holds_terminal() else mean, max(deviation, 1e-8))


def td_target(
    batch: ReplayBatch, next_value_B: Tensor, discount: float, rewards: RewardScale
) -> Tensor:
    """Return what a critic should predict, (B, R).

    For a scalar critic this is the one-step target r̃ + γ V(s′). For a vector critic it is the K
    rewards r̃_i, and then γ V(s′). V(s′) is 0 after a terminal transition.
    """
    reward_BR = (batch.reward_BR - rewards.mean) / rewards.scale
    after_B1 = (discount * (1 - batch.terminated_B) * next_value_B)[:, None]
    if reward_BR.shape[-1] == 1:
        return reward_BR + after_B1
    return torch.cat([reward_BR, after_B1], -1)


def critic_error(value_BR: Tensor, target_BR: Tensor) -> Tensor:
    """Return the mean squared error of a critic.

    For a vector critic, it is the mean over domains of the rewards' errors plus the error of the
    return after the interval.
    """
    error_BR = (value_BR - target_BR).square()
    if error_BR.shape[-1] == 1:
        return error_BR.mean()
    return error_BR[:, :-1].mean() + error_BR[:, -1].mean()


def pessimistic_value(values: tuple[Tensor, ...], action_BK: Tensor) -> Tensor:
    """Return the value (…,) of each mixture by the critic that values it lowest."""
    value_B = mixture_value(values[0], action_BK)
    for other_BR in values[1:]:
        value_B = torch.minimum(value_B, mixture_value(other_BR, action_BK))
    return value_B


def mixture_value(value_BR: Tensor, action_BK: Tensor) -> Tensor:
    """Return the value of a mixture (…,), its return.

    A scalar critic's output is the value. For a vector critic it is Σ α_i r_i plus the return after
    the interval.
    """
    if value_BR.shape[-1] == 1:
        return value_BR[..., 0]
    return (action_BK * value_BR[..., :-1]).sum(-1) + value_BR[..., -1]

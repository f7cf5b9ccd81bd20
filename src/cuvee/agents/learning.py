"""What all agents do alike: seeded networks, guarded optimizer steps, target networks, reward scales, state as numpy."""

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
    """`build()` with weights drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class TrainState:
    """A network with its Adam moments and, if `tau` > 0, a target network that follows it by `tau` a step; likewise a running
    mean of its weights if `ema_rate` > 0 (Polyak and Juditsky 1992)."""

    def __init__(
        self, net: nn.Module, learning_rate: float, tau: float = 0.0, ema_rate: float = 0.0
    ) -> None:
        self.net: Any = net
        self.tau, self.ema_rate = tau, ema_rate
        self.target = copy.deepcopy(net).requires_grad_(False) if tau else None
        self.mean = copy.deepcopy(net).requires_grad_(False) if ema_rate else None
        self.optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)

    def step(self, name: str, loss: Tensor) -> dict[str, float]:
        """Descends `loss`; changes nothing if its gradient is not finite. Returns what to report under `name`."""
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
        """The target network."""
        assert self.target is not None, "this network was built without a target network"
        return self.target

    @property
    def ema_net(self) -> Any:
        """The running mean, or the network itself where none is kept: what to act with when nothing is learned any more."""
        return self.mean if self.mean is not None else self.net

    @torch.no_grad()
    def track(self) -> None:
        """target ← target + τ (net − target), and the mean likewise."""
        for follower, share in ((self.target, self.tau), (self.mean, self.ema_rate)):
            if follower is not None:
                torch._foreach_lerp_(
                    list(follower.parameters()), list(self.net.parameters()), share
                )

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
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def load_module(module: nn.Module, state: State) -> None:
    """Raises `PolicyError` unless names and shapes are the module's and every number is finite."""
    own = module.state_dict()
    if set(own) != set(state):
        raise PolicyError(
            f"the saved network has other parts: {', '.join(sorted(set(own) ^ set(state)))}"
        )
    for name, tensor in own.items():
        if tuple(state[name].shape) != tuple(tensor.shape):
            raise PolicyError(
                f"{name} was saved with shape {state[name].shape}, this agent's has {tuple(tensor.shape)}: build the "
                "agent with the shape and architecture that it was saved with"
            )
        if not np.isfinite(state[name]).all():
            raise PolicyError(
                f"{name} was saved with numbers that are not finite: use an earlier checkpoint"
            )
    module.load_state_dict({name: _tensor(array) for name, array in state.items()})


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


def tensors(observation: Observation) -> tuple[Tensor, Tensor]:
    """The observation as float32 tensors, after the finite gate."""
    check_observation(observation)
    domains_KF, globals_G = observation
    return torch.as_tensor(domains_KF, dtype=torch.float32), torch.as_tensor(
        globals_G, dtype=torch.float32
    )


def as_weights(weights_K: Tensor) -> FloatArray:
    """(K,) float64 that sums to 1 to the last bits."""
    exact_K: FloatArray = weights_K.detach().double().numpy()
    normal_K: FloatArray = exact_K / exact_K.sum()
    return normal_K


class RewardScale(NamedTuple):
    """r̃ = (r − mean) / scale. One scale for all domains, so the best mixture is the same for r̃ as for r.

    Rewards are stored raw; this view is taken anew from the buffer at each update. Taking out the mean spares the critic a
    constant r̄/(1−γ), which target networks take some 20/τ updates to reach. It is worth as much in every state as long as
    no run ends; once a terminal transition is held the mean stays in.
    """

    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, buffer: ReplayBuffer) -> RewardScale:
        mean, deviation = buffer.reward_moments()
        return cls(0.0 if buffer.holds_terminal() else mean, max(deviation, 1e-8))


def td_target(
    batch: ReplayBatch, next_value_BR: Tensor, discount: float, rewards: RewardScale
) -> Tensor:
    """r̃ + γ V(s′), nothing following a terminal state; (B, R)."""
    reward_BR = (batch.reward_BR - rewards.mean) / rewards.scale
    return reward_BR + discount * (1 - batch.terminated_B[:, None]) * next_value_BR


def least(values: tuple[Tensor, ...], action_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Values (…, R) and worth (…,) by whichever critic thinks least of each mixture."""
    value_BR, worth_B = values[0], worth(values[0], action_BK)
    for other_BR in values[1:]:
        other_B = worth(other_BR, action_BK)
        value_BR = torch.where((worth_B <= other_B)[..., None], value_BR, other_BR)
        worth_B = torch.minimum(worth_B, other_B)
    return value_BR, worth_B


def worth(value_BR: Tensor, action_BK: Tensor) -> Tensor:
    """What a mixture is worth (…,): a scalar value as it is, a vector one as Σ α_i Q_i."""
    return value_BR[..., 0] if value_BR.shape[-1] == 1 else (action_BK * value_BR).sum(-1)

"""The universal policy: an actor trained by gradient through simulated continual pre-training.

    world    K domains, T intervals, laws and `WorldParams`, drawn at random
             (`simulation.continual`)
    rollout  the actor steers a whole run; e_T is a differentiable function of its weights
    actor    maximises (e_T − e_T of the reference mixture) / (|e_T of the reference| + 0.02)
             minus a KL penalty
    critics  predict e_T − e_t on rollouts with noise on the actor's logits

The division makes worlds count equally. The penalty is for divergence from the reference mixture,
because simulated worlds are not real runs.

Unlike a policy of `DataMixingAgent`, this one has not imitated proxy runs and needs none where it
is used. Real runs enter only through world parameters that resemble them
(`simulation.calibration`), if at all. The policy learns the best mixtures for laws of this form,
and infers the laws of a run from its losses and feedback.

The observations are those of `HistoryEncoder`, computed here for a batch of worlds with gradients;
both agree up to rounding. For robustness, losses are as noisy as those of few sequences, rare
domains are not always drawn, and a third of the worlds have no feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from cuvee.agents.history import HistoryActor, Past
from cuvee.core.domain import Domain, available_K, natural_K
from cuvee.policies.history.encoder import reference_mixture
from cuvee.policies.history.features import Timestep
from cuvee.policies.history.heuristics import role_shares
from cuvee.policies.history.policy import HistoryPolicy
from cuvee.simulation.continual import WorldParams, continual
from cuvee.simulation.laws import Laws
from cuvee.simulation.simulator import ScalingLaws

# In nats. A first loss below 0, which noise can cause, would make relative losses meaningless.
_LEAST_LOSS = 0.1
World = tuple[ScalingLaws, tuple[Domain, ...]]


@dataclass(frozen=True)
class UniversalSettings:
    """Settings of `learn_universal`.

    - `updates`, `critic_updates`: number of updates of the actor, then of the critics.
    - `timesteps`: approximate number of domains × timesteps in a batch of worlds.
    - `sources`, `targets`: largest number of source and target domains. `shortest`, `longest`:
      range of the number of intervals. All are drawn log-uniformly.
    - `pairs`: fraction of batches with one source and one target domain.
    - `real`: fraction of worlds with given world parameters, if there are any.
    - `kl_coef`: penalty per nat, in units of the relative gain.
    - `lr`: initial learning rate.
    """

    updates: int = 2000
    critic_updates: int = 150
    timesteps: int = 12_000
    sources: int = 48
    targets: int = 12
    pairs: float = 0.15
    shortest: int = 8
    longest: int = 80
    real: float = 0.75
    kl_coef: float = 0.15
    lr: float = 1e-3


class LossLaws(Protocol):
    """The state of B runs before their first step, their losses, and the tokens of an interval."""

    @property
    def start_K(self) -> Tensor: ...

    @property
    def interval(self) -> float | Tensor: ...

    def loss(self, effective_K: Tensor, /) -> Tensor: ...


class AnyWorlds(Protocol):
    """What a rollout needs of a batch of B worlds; `Worlds` is one."""

    intervals: int
    reference_BK: Tensor
    start_BK: Tensor
    natural_BK: Tensor
    tokens_BK: Tensor
    target_BK: Tensor

    @property
    def laws(self) -> LossLaws: ...

    def step(self, effective_BK: Tensor, weights_BK: Tensor, number: int, /) -> Tensor: ...


class Worlds:
    """A batch of B worlds with the same K and T."""

    def __init__(self, worlds: Sequence[World]) -> None:
        laws = [one for one, _ in worlds]
        self.intervals = laws[0].intervals
        steps = range(self.intervals)
        self.pace_TB1 = [
            _column([one.pace_T[t] if one.pace_T else 1.0 for one in laws]) for t in steps
        ]
        self.fade_TB1 = [
            _column([one.fade_T[t] if one.fade_T else 1.0 for one in laws]) for t in steps
        ]
        self.laws = Laws.stack(laws, torch.float32)
        spaces = [domains for _, domains in worlds]
        self.reference_BK = _rows([reference_mixture(domains) for domains in spaces])
        self.start_BK = _rows([role_shares(domains, "source") for domains in spaces])
        self.natural_BK = _rows([natural_K(domains) for domains in spaces])
        self.tokens_BK = _rows([available_K(domains) for domains in spaces])
        self.target_BK = _rows(
            [[float(domain.is_target) for domain in domains] for domains in spaces]
        )

    def step(self, effective_BK: Tensor, weights_BK: Tensor, number: int) -> Tensor:
        """Return the effective tokens (B, K) after interval `number` (from 0)."""
        return self.laws.after(
            effective_BK, weights_BK, self.pace_TB1[number], self.fade_TB1[number]
        )


@dataclass(frozen=True)
class MeasurementNoise:
    """Measurement noise in each of B worlds.

    `has_feedback_B1` is 1 if there is feedback. `loss_std_B1` is the std of a training loss at
    weight 1/K, `feedback_std_B1` that of a feedback field. `sequences_B1` is the number of
    sequences per interval; a rare domain may not be among them.
    """

    has_feedback_B1: Tensor
    loss_std_B1: Tensor
    feedback_std_B1: Tensor
    sequences_B1: Tensor

    @classmethod
    def perfect(cls, count: int) -> MeasurementNoise:
        """Return measurements without noise, for `count` worlds."""
        one_B1 = torch.ones(count, 1)
        return cls(one_B1, 0 * one_B1, 0 * one_B1, torch.inf * one_B1)

    @classmethod
    def draw(cls, count: int, domains: int, rng: np.random.Generator) -> MeasurementNoise:
        """Draw random noise.

        The loss of a sequence has a std of 0.2 to 0.6 nats. At weight 1/K, a domain has 1/K of an
        interval's sequences.
        """

        def log_uniform(low: float, high: float) -> Tensor:
            return _column(np.exp(rng.uniform(np.log(low), np.log(high), count)).tolist())

        has_feedback_B1 = _column((rng.random(count) < 2 / 3).astype(float).tolist())
        sequences_B1 = log_uniform(50, 5000)
        loss_std_B1 = log_uniform(0.2, 0.6) * (domains / sequences_B1).sqrt()
        return cls(has_feedback_B1, loss_std_B1, log_uniform(0.0002, 0.01), sequences_B1)


@dataclass(frozen=True)
class Played:
    """A batch of rollouts: features, mixtures and true feedback.

    Shapes: (B, T, K, F), (B, T, G), (B, T, K) and (B, T+1).
    """

    domains_BTKF: Tensor
    globals_BTG: Tensor
    weights_BTK: Tensor
    feedback_BT: Tensor


class _Sensors:
    """Measures B runs, one timestep after the other, with noise."""

    def __init__(
        self,
        worlds: AnyWorlds,
        noise: MeasurementNoise,
        generator: torch.Generator,
        weight_2: Tensor,
    ) -> None:
        self.worlds = worlds
        self.weight_2 = weight_2
        self.noise = noise
        self.generator = generator
        self.known_BK = torch.zeros_like(worlds.target_BK)
        self.first_BK = torch.ones_like(worlds.target_BK)
        self.before_B1 = torch.zeros_like(noise.has_feedback_B1)

    def at(
        self,
        progress: float,
        last_BK: Tensor,
        drawn_BK: Tensor,
        loss_BK: Tensor | None,
        fields_B2: Tensor,
    ) -> Timestep:
        """Return the observation of a timestep.

        Arguments: progress, the current mixture, the tokens drawn so far, the true losses (None
        before the first interval), and the true feedback of each field.
        """
        measured_BK, seen_BK = self._losses(last_BK, loss_BK)
        feedback_B3 = self._feedback(fields_B2, known=progress > 0)
        change_B1 = feedback_B3[:, :1] - self.before_B1
        self.before_B1 = feedback_B3[:, :1]
        return Timestep(
            reference_K=self.worlds.reference_BK,
            target_K=self.worlds.target_BK,
            natural_K=self.worlds.natural_BK,
            available_K=self.worlds.tokens_BK,
            weights_K=last_BK,
            drawn_K=drawn_BK,
            loss_K=measured_BK,
            first_loss_K=self.first_BK.clamp(min=_LEAST_LOSS),
            loss_known_K=seen_BK,
            progress_1=torch.full_like(self.noise.has_feedback_B1, progress),
            feedback_3=feedback_B3,
            change_1=change_B1,
            feedback_known_1=self.noise.has_feedback_B1,
        )

    def _losses(self, last_BK: Tensor, loss_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return measured losses (B, K), and 1 where the domain was drawn in the last interval."""
        if loss_BK is None:
            return torch.zeros_like(last_BK), torch.zeros_like(last_BK)
        drawn_BK = 1 - (-last_BK.detach() * self.noise.sequences_B1).exp()
        seen_BK = (self._uniform(last_BK) < drawn_BK).float()
        share_BK = (last_BK.shape[1] * last_BK.detach()).clamp(min=1e-3)
        deviation_BK = self.noise.loss_std_B1 / share_BK.sqrt()
        measured_BK = loss_BK + deviation_BK * self._normal(last_BK)
        new_BK = (seen_BK > 0) & (self.known_BK == 0)
        self.first_BK = torch.where(new_BK, measured_BK.detach(), self.first_BK)
        self.known_BK = torch.maximum(self.known_BK, seen_BK)
        return measured_BK, seen_BK

    def _feedback(self, fields_B2: Tensor, known: bool) -> Tensor:
        """Return the measured feedback (B, 3): of all, general and target questions.

        It is exact before the first step.
        """
        noise_B2 = self.noise.feedback_std_B1 * self._normal(fields_B2) if known else 0.0
        measured_B2 = self.noise.has_feedback_B1 * (fields_B2 + noise_B2)
        return torch.cat([(measured_B2 @ self.weight_2)[:, None], measured_B2], -1)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)


def rollout(
    actor: HistoryActor,
    worlds: AnyWorlds,
    noise: MeasurementNoise,
    generator: torch.Generator,
    push_B1: Tensor | None = None,
    weight: float = 0.5,
) -> Played:
    """Let the actor steer each world from start to end; differentiable.

    `push_B1` is the std of noise that is added to the logits, `weight` is λ of the feedback.
    """
    weight_2 = torch.tensor([weight, 1 - weight])
    sensors = _Sensors(worlds, noise, generator, weight_2)
    effective_BK = worlds.laws.start_K
    past: Past | None = None
    loss_BK: Tensor | None = None
    last_BK = worlds.start_BK
    drawn_BK = torch.zeros_like(worlds.start_BK)
    base_BK = worlds.laws.loss(effective_BK)
    source_BK = 1 - worlds.target_BK
    at_first_B2 = torch.stack(
        [(base_BK * role).sum(-1) for role in (source_BK, worlds.target_BK)], -1
    )
    fields_B2 = torch.zeros_like(at_first_B2)
    kept: tuple[list[Tensor], ...] = ([], [], [], [fields_B2 @ weight_2])
    for t in range(worlds.intervals):
        seen = sensors.at(t / worlds.intervals, last_BK, drawn_BK, loss_BK, fields_B2)
        domains_BKF = seen.domain_features()
        globals_BG = seen.run_features()
        logits_BK, past = actor.unroll(past, domains_BKF, globals_BG)
        if push_B1 is not None:
            logits_BK = logits_BK + push_B1 * torch.randn(logits_BK.shape, generator=generator)
        last_BK = logits_BK.softmax(-1)
        effective_BK = worlds.step(effective_BK, last_BK, t)
        drawn_BK = drawn_BK + last_BK * worlds.laws.interval
        loss_BK = worlds.laws.loss(effective_BK)
        now_B2 = torch.stack(
            [(loss_BK * role).sum(-1) for role in (source_BK, worlds.target_BK)], -1
        )
        fields_B2 = 1 - now_B2 / at_first_B2
        step = (domains_BKF, globals_BG, last_BK, fields_B2 @ weight_2)
        for path, new in zip(kept, step, strict=True):
            path.append(new)
    return Played(*(torch.stack(path, 1) for path in kept))


def constant_gain(worlds: Worlds, weights_BK: Tensor) -> Tensor:
    """Return e (B,) at the end of a run under one mixture."""
    effective_BK = worlds.laws.start_K
    for number in range(worlds.intervals):
        effective_BK = worlds.step(effective_BK, weights_BK, number)
    base_BK = worlds.laws.loss(worlds.laws.start_K)
    return ((base_BK - worlds.laws.loss(effective_BK)) * worlds.laws.value_K).sum(-1)


def learn_universal(
    settings: UniversalSettings,
    seed: int,
    observer: Callable[[int, dict[str, float]], None] | None = None,
    world_params: Sequence[WorldParams] = (),
) -> HistoryPolicy:
    """Train the universal policy.

    `world_params` are those that resemble real runs (`simulation.calibration`). `observer` receives
    the number of each update and its metrics.
    """
    policy = HistoryPolicy("small", seed=seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    actor = _Optimizer(policy.actor, settings.lr, settings.updates)
    critic = _Optimizer(policy.critic, settings.lr, settings.critic_updates)
    for number in range(settings.updates + settings.critic_updates):
        worlds = draw_worlds(settings, rng, world_params)
        count, domains = worlds.start_BK.shape
        noise = MeasurementNoise.draw(count, domains, rng)
        if number < settings.updates:
            played = rollout(policy.actor, worlds, noise, generator)
            reference_B = constant_gain(worlds, worlds.reference_BK)
            above_B = played.feedback_BT[:, -1] - reference_B
            better = (above_B / (reference_B.abs() + 0.02)).mean()
            apart = divergence(played.weights_BTK, worlds.reference_BK)
            metrics = {
                "above_reference": better.item(),
                "divergence": apart.item(),
                "gradient": actor.step(settings.kl_coef * apart - better),
            }
        else:
            loss = _critic_loss(policy, worlds, noise, rng, generator)
            metrics = {"critic_loss": loss.item(), "gradient": critic.step(loss)}
        if observer:
            observer(number, metrics)
    return policy


def divergence(weights_BTK: Tensor, reference_BK: Tensor) -> Tensor:
    """Return the mean KL(α_t ‖ reference) in nats."""
    ratio_BTK = weights_BTK.clamp(min=1e-9) / reference_BK[:, None].clamp(min=1e-9)
    return (weights_BTK * ratio_BTK.log()).sum(-1).mean()


class _Optimizer:
    """Adam with a cosine schedule to 0 and gradient clipping at norm 1."""

    def __init__(self, net: nn.Module, rate: float, updates: int) -> None:
        self.parameters = list(net.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(updates, 1))

    def step(self, loss: Tensor) -> float:
        """Take one step on `loss` and return the gradient's norm before clipping."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        self.optimizer.step()
        self.schedule.step()
        return norm


def draw_worlds(
    settings: UniversalSettings, rng: np.random.Generator, world_params: Sequence[WorldParams] = ()
) -> Worlds:
    """Draw a batch of worlds of the same size.

    A fraction `real` of them has parameters from `world_params`, if there are any.
    """

    def size(low: int, high: int) -> int:
        return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))

    intervals = size(settings.shortest, settings.longest)
    sources = targets = 1
    if rng.random() >= settings.pairs:
        sources = size(1, settings.sources)
        targets = size(1, settings.targets)
    count = int(np.clip(settings.timesteps / ((sources + targets) * intervals), 4, 32))

    def params(seed: int) -> WorldParams:
        if world_params and rng.random() < settings.real:
            return world_params[seed % len(world_params)]
        return WorldParams.draw(seed)

    seeds = rng.integers(2**31, size=count).tolist()
    return Worlds([continual(sources, targets, seed, intervals, params(seed)) for seed in seeds])


def _critic_loss(
    policy: HistoryPolicy,
    worlds: Worlds,
    noise: MeasurementNoise,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """Return the error of both critics about 10 (e_T − e_t).

    The rollouts have noise on the actor's logits, so that the critics see other mixtures, too.
    """
    push_B1 = _column(rng.uniform(0.0, 1.5, len(worlds.start_BK)).tolist())
    with torch.no_grad():
        played = rollout(policy.actor, worlds, noise, generator, push_B1)
    tokens = policy.critic.encode(played.domains_BTKF, played.globals_BTG)
    to_come_BT = 10 * (played.feedback_BT[:, -1:] - played.feedback_BT[:, :-1])
    return sum(
        (huber_loss(q_BT, to_come_BT) for q_BT in policy.critic.values(tokens, played.weights_BTK)),
        torch.zeros(()),
    )


def _rows(rows: Sequence[object]) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]

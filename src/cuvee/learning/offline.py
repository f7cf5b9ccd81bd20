"""Offline learning from whole runs: behaviour cloning, then conservative Q-learning.

This is the agent of Data Mixing Agent (arXiv:2507.15640). At timestep t, everything up to t is
known. The networks therefore read whole trajectories (`agents.history`), and every timestep of
every episode of a batch is learned from at once.

    cloning  KL(α_data ‖ π) over the episodes in the top quantile by return
    critics  Σ_j ½ (Q_j(s_t, α_t) − y_t)² + ω Σ_j [ln E_ρ exp Q_j(s_t, α) − Q_j(s_t, α_t)]
             y_t = r̃_t + γ [(1 − λ) min_j Q'_j(s_{t+1}, α′) + λ y_{t+1}],   α′ ~ π(s_{t+1})
    actor    −E_π min_j Q_j(s_t, α) / ς + κ (H̄ − H(π)) + χ KL(α_data ‖ π)
             with the last term over the same top quantile

The conservative loss is that of `agents.cql` (Kumar et al. 2020, arXiv:2006.04779). ρ is the equal
mixture of the flat Dirichlet, π(s_t) and π(s_{t+1}). Deviations:

- y is a λ-return, without correction for the fact that α_{t+1}, … are the data's actions (Peng's
  Q(λ); Kozuno et al. 2021, arXiv:2103.00107). The feedback of one interval is mostly noise; that of
  a whole run is not. With λ = 0 it is the target of `agents.cql`.
- Rewards are shaped and scaled (`episodes.ReturnScale`). γ is 1 and the end of the budget is
  terminal, because only the final model counts. `budget_ends=False` with γ < 1 bootstraps through
  the end of the budget.
- ς is the standard deviation of Q over the proposals of one state, so χ and κ mean the same for any
  length of run.
- The entropy of π in the Aitchison measure is exact. y does not contain the entropy bonus, which is
  0 on average when the entropy is at its target.
- The conservative loss uses `states` timesteps drawn from the batch, and Q / ς, times ς. One interval
  decides little of a run's return. With Q in units of returns, the loss would push it by many times
  what a mixture can change.
- ω is not given. It is set so that the gradient of the conservative loss is `cql_ratio` times that
  of the squared error (`agents.cql.GradientRatio`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cuvee.agents.cql import GradientRatio, log_mean_exp
from cuvee.agents.history import PRESETS, HistoryActor, HistoryArchitecture, HistoryCritic
from cuvee.agents.learning import TrainState, digest, seeded
from cuvee.agents.sac import Temperature, target_entropy
from cuvee.agents.simplex import LOG_WEIGHT_FLOOR, LogisticNormal, log_weights, sample_flat
from cuvee.core.errors import PolicyError
from cuvee.core.protocols import State
from cuvee.learning.episodes import Episode, EpisodeBatch, EpisodeSet, ReturnScale, episode_fault

_MIN_STD = 1e-4  # smallest ς; returns have a standard deviation of 1


@dataclass(frozen=True)
class OfflineSettings:
    """Settings of `OfflineLearner`; the symbols are those above.

    - `discount` γ, `td_lambda` λ, `bc_coef` χ; `temperature` is the initial κ.
    - `cql_ratio`: gradient of the conservative loss relative to that of the squared error. 0: no
      conservative loss.
    - `budget_ends`: the end of the budget is terminal.
    - `batch_size`: number of episodes per batch.
    - `quantile`: fraction of episodes, by return, to imitate.
    - `draws`: number of samples from each of the three proposals.
    - `states`: number of timesteps of a batch for the conservative loss.
    - `std`: relative variation of each weight that the target entropy corresponds to.
    - `critic_warmup_steps`: number of first updates that do not change the actor. An actor that
      follows untrained critics loses what behaviour cloning taught it.
    """

    architecture: HistoryArchitecture = PRESETS["small"]
    discount: float = 1.0
    budget_ends: bool = True
    td_lambda: float = 0.9
    batch_size: int = 16
    quantile: float = 0.2
    cql_ratio: float = 0.03
    bc_coef: float = 0.2
    draws: int = 4
    states: int = 512
    std: float = 0.3
    temperature: float = 0.01
    temperature_lr: float = 3e-4
    tau: float = 0.01
    actor_lr: float = 1e-3
    critic_lr: float = 2e-3
    critic_warmup_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("discount", "td_lambda", "quantile", "tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise PolicyError(f"{name} is {getattr(self, name)}: it must be between 0 and 1")
        for name in ("batch_size", "draws", "states"):
            if getattr(self, name) < 1:
                raise PolicyError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.cql_ratio < math.inf:
            raise PolicyError(f"cql_ratio is {self.cql_ratio}: it must be 0 or more, and finite")
        if not self.budget_ends and self.discount == 1:
            raise PolicyError(
                "with budget_ends: false, values grow without bound: give a discount below 1"
            )


class OfflineLearner:
    """Holds the networks and the data.

    It is deterministic. `load_state_dict` resumes exactly at any update, given the same episodes.
    `imagined` episodes, simulated by a model of the runs, are learned from but not imitated. Raises
    `PolicyError` that names an invalid episode (by `names`, else by its number).
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        settings: OfflineSettings | None = None,
        seed: int = 0,
        names: Sequence[str] | None = None,
        imagined: Sequence[Episode] = (),
    ) -> None:
        if not episodes:
            raise PolicyError("there is no episode to learn from")
        self.settings = s = settings or OfflineSettings()
        features = episodes[0].domains_TKF.shape[-1]
        globals_ = episodes[0].globals_TG.shape[-1]
        for number, episode in enumerate(episodes):
            if fault := episode_fault(episode, features, globals_):
                name = names[number] if names else f"episode {number}"
                raise PolicyError(f"{name} cannot be learned from: {fault}")
        everything = [*episodes, *imagined]
        scale = ReturnScale.of(everything, s.discount)
        self.data = EpisodeSet(everything, scale, s.discount, s.budget_ends)
        self.data.imitate(
            [*top_quantile(episodes, s.quantile), *[False] * len(imagined)], everything
        )
        actor, critic = seeded(
            seed,
            lambda: (
                HistoryActor(features, globals_, s.architecture, s.std),
                HistoryCritic(features, globals_, s.architecture),
            ),
        )
        self.actor = TrainState(actor, s.actor_lr)
        self.critic = TrainState(critic, s.critic_lr, s.tau)
        self.temperature = TrainState(Temperature(s.temperature), s.temperature_lr)
        self.train_states = {
            "actor": self.actor,
            "critic": self.critic,
            "temperature": self.temperature,
        }
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.conservative = GradientRatio(s.cql_ratio)
        self.updates = 0

    def clone(self) -> dict[str, float]:
        """Do one step of behaviour cloning on a batch of the best episodes."""
        batch = self.data.sample(self.settings.batch_size, self.rng, best=True)
        policy = self.actor.net.policy(batch.domains_BTKF[:, :-1], batch.globals_BTG[:, :-1])
        return self.actor.step("clone", cloning_loss(policy, batch))

    def update(self) -> dict[str, float]:
        """Do one update of temperature, critics, actor and target network on a batch."""
        return self.learn(self.data.sample(self.settings.batch_size, self.rng))

    def learn(self, batch: EpisodeBatch) -> dict[str, float]:
        """Do one update on `batch` and return its metrics."""
        policy = self.actor.net.policy(batch.domains_BTKF, batch.globals_BTG)
        excess = (
            target_entropy(batch.action_BTK.shape[-1], self.settings.std)
            - policy.log_ratio_entropy()
        )
        lacking_BT = excess[:, :-1]
        strength = self.temperature.net.log.detach().exp().item()
        lack = masked_mean(lacking_BT.detach(), batch.valid_BT)
        metrics = self.temperature.step("temperature", -self.temperature.net.log * lack)
        critic_loss, report = self.critic_loss(batch, policy)
        metrics |= self.critic.step("critic", critic_loss) | report
        if self.updates >= self.settings.critic_warmup_steps:
            metrics |= self.actor.step(
                "actor", self.actor_loss(batch, policy, lacking_BT, strength, report["q_std"])
            )
        self.critic.update_targets()
        self.updates += 1
        return metrics | {"temperature": strength}

    def critic_loss(
        self, batch: EpisodeBatch, policy: LogisticNormal
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the critics' loss over all valid timesteps, and metrics.

        The loss is the squared error to the λ-returns plus the conservative loss.
        """
        target_BT = self.targets(batch, policy)
        tokens = self.critic.net.encode(batch.domains_BTKF, batch.globals_BTG)[:, :-1]
        valid = batch.valid_BT
        errors = [
            (value - target_BT).square()
            for value in self.critic.net.values(tokens, batch.action_BTK)
        ]
        error = 0.5 * sum((masked_mean(squared, valid) for squared in errors), torch.zeros(()))
        gap, q_std = self.conservative_loss(tokens, batch, policy)
        omega = self.conservative.of(error, q_std * gap, list(self.critic.net.parameters()))
        report = {
            "td_error": error.item(),
            "conservative_gap": gap.item(),
            "q_std": q_std,
            "cql_alpha": omega,
            "cql_ratio": self.conservative.achieved,
        }
        return error + omega * q_std * gap, report

    @torch.no_grad()
    def targets(self, batch: EpisodeBatch, policy: LogisticNormal) -> Tensor:
        """Return the λ-returns (B, T), with the next state's value from the target network."""
        target_net = self.critic.target_net
        s = self.settings
        tokens = target_net.encode(batch.domains_BTKF, batch.globals_BTG)[:, 1:]
        drawn = LogisticNormal(policy.logits[:, 1:], policy.std[:, 1:]).sample(self.generator)
        value_BT = torch.minimum(*target_net.values(tokens, drawn.weights))
        return lambda_returns(batch, value_BT, s.discount, s.td_lambda)

    def conservative_loss(
        self, tokens: Tensor, batch: EpisodeBatch, policy: LogisticNormal, unit: float | None = None
    ) -> tuple[Tensor, float]:
        """Return the conservative loss in units of ς, summed over both critics, and ς.

        It is how much higher the critics value proposals than the data. ς is the mean standard
        deviation of Q over the proposals of one state; `unit` replaces it if given.
        """
        index = torch.nonzero(batch.valid_BT.flatten())[:, 0]
        if len(index) > self.settings.states:
            index = index[
                torch.randperm(len(index), generator=self.generator)[: self.settings.states]
            ]
        tokens_NKH = tokens.flatten(0, 1)[index]
        action_NK = batch.action_BTK.flatten(0, 1)[index]
        proposals = self._proposals(policy, index, action_NK)
        proposed = torch.stack(self.critic.net.values(tokens_NKH, proposals))  # (2, M, N)
        data = torch.stack(self.critic.net.values(tokens_NKH, action_NK))
        unit = unit or max(float(proposed.detach().std(1).mean()), _MIN_STD)
        gap = torch.stack([log_mean_exp(scores) for scores in proposed / unit]) - data / unit
        return gap.mean(1).sum(), unit

    @torch.no_grad()
    def _proposals(self, policy: LogisticNormal, index: Tensor, action_NK: Tensor) -> Tensor:
        """Return mixtures (3·draws, N, K) from the three proposal distributions.

        They are the flat Dirichlet, and π at the timesteps `index` of the flattened batch and at
        the next timesteps.
        """
        draws = self.settings.draws
        flat = sample_flat((draws, *action_NK.shape), self.generator)
        parts = [flat]
        for timesteps in (slice(None, -1), slice(1, None)):
            at = LogisticNormal(*(part[:, timesteps].flatten(0, 1)[index] for part in policy))
            parts.append(at.sample(self.generator, (draws,)).weights)
        return torch.cat(parts)

    def actor_loss(
        self,
        batch: EpisodeBatch,
        policy: LogisticNormal,
        lacking_BT: Tensor,
        strength: float,
        q_std: float,
    ) -> Tensor:
        """Return the actor's loss over all valid timesteps.

        `lacking_BT` is the target entropy minus the policy's entropy, `strength` is κ and `q_std`
        is ς.
        """
        now = LogisticNormal(policy.logits[:, :-1], policy.std[:, :-1])
        with torch.no_grad():
            tokens = self.critic.net.encode(batch.domains_BTKF, batch.globals_BTG)[:, :-1]
        value_BT = torch.minimum(
            *self.critic.net.values(tokens, now.sample(self.generator).weights)
        )
        loss = masked_mean(strength * lacking_BT - value_BT / q_std, batch.valid_BT)
        return (
            loss + self.settings.bc_coef * cloning_loss(now, batch)
            if self.settings.bc_coef
            else loss
        )

    def state_dict(self) -> State:
        return {
            "train_states": {
                name: train_state.state_dict() for name, train_state in self.train_states.items()
            },
            "generator": self.generator.get_state().numpy().copy(),
            "rng": self.rng.bit_generator.state,
            "conservative": self.conservative.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: State) -> None:
        for name, train_state in self.train_states.items():
            train_state.load_state_dict(state["train_states"][name])
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))
        self.rng.bit_generator.state = state["rng"]
        self.conservative.load_state_dict(state["conservative"])
        self.updates = int(state["updates"])

    def digest(self) -> str:
        """Return the sha256 of the whole state."""
        return digest(self.state_dict())


def top_quantile(episodes: Sequence[Episode], quantile: float) -> list[bool]:
    """Return which episodes have one of the highest returns among those with the same K.

    At least one per K is chosen. Episodes that ended early are chosen only if there are no others
    left.
    """
    best = [False] * len(episodes)
    for K in {episode.domains for episode in episodes}:
        members = [number for number, episode in enumerate(episodes) if episode.domains == K]
        ranked = sorted(
            members,
            key=lambda number: (
                episodes[number].terminated or episodes[number].stopped,
                -episodes[number].gain,
            ),
        )
        for number in ranked[: max(1, math.ceil(quantile * len(members)))]:
            best[number] = True
    return best


def cloning_loss(policy: LogisticNormal, batch: EpisodeBatch) -> Tensor:
    """Return the mean KL(α_data ‖ centre of π) in nats over valid timesteps of the best episodes.

    It is 0 if there are none.
    """
    ratio_BTK = log_weights(batch.action_BTK) - policy.logits.log_softmax(-1).clamp(
        min=LOG_WEIGHT_FLOOR
    )
    valid_BT = batch.valid_BT & (batch.best_B > 0)[:, None]
    return masked_mean((batch.action_BTK * ratio_BTK).sum(-1), valid_BT)


def lambda_returns(
    batch: EpisodeBatch, value_BT: Tensor, discount: float, td_lambda: float
) -> Tensor:
    """Return y (B, T). `value_BT` is the value at the timestep after each."""
    following = torch.zeros_like(value_BT[:, 0])
    out = torch.empty_like(value_BT)
    # The last timestep has no return after it.
    blend_BT = td_lambda * nn.functional.pad(batch.valid_BT[:, 1:].to(value_BT.dtype), (0, 1))
    for t in reversed(range(value_BT.shape[1])):
        after_B = (1 - blend_BT[:, t]) * value_BT[:, t] + blend_BT[:, t] * following
        following = out[:, t] = batch.reward_BT[:, t] + discount * batch.goes_on_BT[:, t] * after_B
    return out


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over entries where `valid`; 0 if there are none."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)

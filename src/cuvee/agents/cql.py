"""Conservative Q-learning on the simplex, from logged transitions (Kumar et al. 2020, arXiv:2006.04779; for data mixing
Data Mixing Agent, arXiv:2507.15640).

    critics  SAC's loss + ω Σ_j [ln Σ_α exp Q_j(s, α) − Q_j(s, α_data)]
    actor    SAC's loss + χ KL(α_data ‖ π(s))
    warm-up  KL(α_data ‖ π(s)) alone: behaviour cloning

The sum over mixtures is taken from three proposals of the simplex: the flat Dirichlet, π at s and π at s′. Two readings:

- `entropy`, CQL(H): each draw is divided by its own density, so that the sum is ∫ exp Q dα. The flat density is Γ(K).
- `proposals`, CQL(ρ): ρ is the even blend of the three, and the sum is E_ρ exp Q; densities cancel.

A policy's density exceeds the flat one by tens of nats once K is large, so in the first reading its draws weigh nothing
and only mixtures that nobody would play are pushed down (`policy_share` in the metrics says how much they weigh). The
default is therefore the second; both coincide in what they do to a critic when π is flat (docs/agents.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cuvee.agents.learning import RewardScale, worth
from cuvee.agents.networks import Shape
from cuvee.agents.replay import ReplayBatch
from cuvee.agents.sac import SAC, SACSettings
from cuvee.agents.simplex import Draw, flat_log_density, log_weights, sample_flat


@dataclass(frozen=True)
class CQLSettings(SACSettings):
    """`cql_alpha` ω, `bc_coef` χ, `draws` from each proposal; the buffer must hold all the data (`capacity`)."""

    capacity: int = 100_000
    cql_alpha: float = 1.0
    bc_coef: float = 0.0
    draws: int = 10
    reference: Literal["entropy", "proposals"] = "proposals"


class CQL(SAC):
    """An `Agent` that learns from data it did not gather. `observe` fills it, `clone` warms it up, `update` trains it."""

    settings: CQLSettings

    def __init__(self, shape: Shape, settings: CQLSettings | None = None, seed: int = 0) -> None:
        super().__init__(shape, settings or CQLSettings(), seed)
        self._report: dict[str, float] = {}

    def clone(self) -> dict[str, float]:
        """One step of behaviour cloning on a batch of the buffer; {} while that holds fewer than `learning_starts`."""
        if len(self.buffer) < max(self.settings.learning_starts, 1):
            return {}
        return self.actor.step(
            "clone", self.cloning_loss(self.buffer.sample(self.settings.batch_size))
        )

    def cloning_loss(self, batch: ReplayBatch) -> Tensor:
        """Mean KL(α_data ‖ centre of π) in nats; a weight of zero in the data costs nothing."""
        centre_BK = self.policy(batch.domains_BKF, batch.globals_BG).centre
        ratio_BK = log_weights(batch.action_BK) - log_weights(centre_BK)
        return (batch.action_BK * ratio_BK).sum(-1).mean()

    def critic_loss(self, batch: ReplayBatch, rewards: RewardScale, strength: float) -> Tensor:
        conservative, self._report = self.conservative_loss(batch)
        return (
            super().critic_loss(batch, rewards, strength) + self.settings.cql_alpha * conservative
        )

    def actor_loss(
        self, batch: ReplayBatch, draw: Draw, rewards: RewardScale, strength: float
    ) -> Tensor:
        loss = super().actor_loss(batch, draw, rewards, strength)
        return (
            loss + self.settings.bc_coef * self.cloning_loss(batch)
            if self.settings.bc_coef
            else loss
        )

    def learn(self, batch: ReplayBatch, rewards: RewardScale) -> dict[str, float]:
        return super().learn(batch, rewards) | self._report

    def conservative_loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, float]]:
        """How much more the critics promise for proposed mixtures than for those in the data, summed over the twins."""
        proposals, density = self._proposals(batch)
        correction = density if self.settings.reference == "entropy" else torch.zeros_like(density)
        critic = self.critic.net
        encoded = critic.encode(batch.domains_BKF, batch.globals_BG)
        gaps, data = [], critic.values(encoded, batch.action_BK)
        for values, data_BR in zip(critic.values(encoded, proposals), data, strict=True):
            scores_NB = worth(values, proposals) - correction
            gaps.append((log_mean_exp(scores_NB) - worth(data_BR, batch.action_BK)).mean())
        of_policy = scores_NB.detach().softmax(0)[self.settings.draws :].sum(0).mean()
        gap = torch.stack(gaps).sum()
        return gap, {"conservative_gap": gap.item(), "policy_share": of_policy.item()}

    def _proposals(self, batch: ReplayBatch) -> tuple[Tensor, Tensor]:
        """Mixtures (3·draws, B, K) from the flat Dirichlet, π(s) and π(s′), and their log densities (3·draws, B)."""
        draws, (B, K) = self.settings.draws, batch.action_BK.shape
        with torch.no_grad():
            flat = sample_flat((draws, B, K), self.generator)
            here = self.policy(batch.domains_BKF, batch.globals_BG).sample(self.generator, (draws,))
            there = self.policy(batch.next_domains_BKF, batch.next_globals_BG).sample(
                self.generator, (draws,)
            )
            flat_density = torch.full((draws, B), flat_log_density(K))
        return torch.cat([flat, here.weights, there.weights]), torch.cat(
            [flat_density, here.log_prob, there.log_prob]
        )


def log_mean_exp(scores_NB: Tensor) -> Tensor:
    """ln (1/N Σ exp) over the first axis."""
    return scores_NB.logsumexp(0) - math.log(len(scores_NB))

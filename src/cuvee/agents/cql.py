"""Conservative Q-learning (CQL) on the simplex, from logged transitions.

Source: Kumar et al. 2020, arXiv:2006.04779. Data Mixing Agent (arXiv:2507.15640) applies it to data
mixing.

    critics            SAC's loss + ω Σ_j [ln Σ_α exp Q_j(s, α) − Q_j(s, α_data)]
    actor              SAC's loss + χ KL(α_data ‖ π(s))
    behaviour cloning  KL(α_data ‖ π(s)) alone, before the rest

The sum over mixtures is estimated from three proposal distributions: the flat Dirichlet, π(s) and
π(s′). The setting `reference` selects one of two estimates:

- `entropy`, called CQL(H) in the paper: each sample is divided by its own density, so that the sum
  is ∫ exp Q dα. The flat density is Γ(K).
- `proposals`, called CQL(ρ): ρ is the equal mixture of the three proposals and the sum is E_ρ exp
  Q. No densities are needed.

For large K, a policy's density exceeds the flat density by tens of nats. With `entropy`, samples of
the policy then have almost no weight, and the loss only lowers values of mixtures that nobody would
play. The metric `policy_share` shows how much weight they have. The default is therefore
`proposals`. Both have the same effect on a critic when π is flat (see docs/agents.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cuvee.agents.learning import RewardScale, mixture_value
from cuvee.agents.networks import Shape
from cuvee.agents.replay import ReplayBatch
from cuvee.agents.sac import SAC, SACSettings
from cuvee.agents.simplex import Draw, flat_log_density, log_weights, sample_flat
from cuvee.core.protocols import State


@dataclass(frozen=True)
class CQLSettings(SACSettings):
    """Settings of CQL, in addition to those of SAC.

    `cql_alpha` is ω, the weight of the conservative loss. `bc_coef` is χ, the weight of behaviour
    cloning. `draws` is the number of samples from each proposal distribution. The buffer must hold
    all data: set `capacity` accordingly.
    """

    capacity: int = 100_000
    cql_alpha: float = 1.0
    bc_coef: float = 0.0
    draws: int = 10
    reference: Literal["entropy", "proposals"] = "proposals"


class CQL(SAC):
    """An agent that learns from data it did not collect.

    Fill the buffer with `observe`, call `clone` for behaviour cloning, then `update` to train.
    """

    settings: CQLSettings

    def __init__(self, shape: Shape, settings: CQLSettings | None = None, seed: int = 0) -> None:
        super().__init__(shape, settings or CQLSettings(), seed)
        self._report: dict[str, float] = {}

    def clone(self) -> dict[str, float]:
        """Do one step of behaviour cloning on a batch and return its metrics.

        Returns {} while the buffer holds fewer than `learning_starts` transitions.
        """
        if len(self.buffer) < max(self.settings.learning_starts, 1):
            return {}
        return self.actor.step(
            "clone", self.cloning_loss(self.buffer.sample(self.settings.batch_size))
        )

    def cloning_loss(self, batch: ReplayBatch) -> Tensor:
        """Return the mean KL(α_data ‖ centre of π) in nats.

        Domains with weight 0 in the data do not contribute.
        """
        centre_BK = self.policy(batch.domains_BKF, batch.globals_BG).centre
        ratio_BK = log_weights(batch.action_BK) - log_weights(centre_BK)
        return (batch.action_BK * ratio_BK).sum(-1).mean()

    def critic_loss(self, batch: ReplayBatch, rewards: RewardScale, strength: float) -> Tensor:
        """Return SAC's critic loss plus ω times the conservative loss."""
        conservative, self._report = self.conservative_loss(batch)
        return (
            super().critic_loss(batch, rewards, strength) + self.settings.cql_alpha * conservative
        )

    def actor_loss(
        self, batch: ReplayBatch, draw: Draw, rewards: RewardScale, strength: float
    ) -> Tensor:
        """Return SAC's actor loss plus χ times the cloning loss."""
        loss = super().actor_loss(batch, draw, rewards, strength)
        return (
            loss + self.settings.bc_coef * self.cloning_loss(batch)
            if self.settings.bc_coef
            else loss
        )

    def learn(self, batch: ReplayBatch, rewards: RewardScale) -> dict[str, float]:
        return super().learn(batch, rewards) | self._report

    def conservative_loss(self, batch: ReplayBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the conservative loss, summed over both critics, and its metrics.

        It is how much higher the critics value the proposed mixtures than the mixtures in the data.
        """
        proposals, density = self._proposals(batch)
        correction = density if self.settings.reference == "entropy" else torch.zeros_like(density)
        critic = self.critic.net
        encoded = critic.encode(batch.domains_BKF, batch.globals_BG)
        data = critic.values(encoded, batch.action_BK)
        gaps = []
        for values, data_BR in zip(critic.values(encoded, proposals), data, strict=True):
            scores_NB = mixture_value(values, proposals) - correction
            gaps.append((log_mean_exp(scores_NB) - mixture_value(data_BR, batch.action_BK)).mean())
        of_policy = scores_NB.detach().softmax(0)[self.settings.draws :].sum(0).mean()
        gap = torch.stack(gaps).sum()
        return gap, {"conservative_gap": gap.item(), "policy_share": of_policy.item()}

    def _proposals(self, batch: ReplayBatch) -> tuple[Tensor, Tensor]:
        """Sample mixtures from the flat Dirichlet, π(s) and π(s′).

        Returns the mixtures (3·draws, B, K) and their log densities (3·draws, B).
        """
        B, K = batch.action_BK.shape
        draws = self.settings.draws
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


class GradientRatio:
    """The weight ω at which a loss has a wanted share of the critics' gradient.

        log ω = log ratio + mean log (|∇ main loss| / |∇ conservative loss|)

    A fixed ω says nothing about how strong the conservative loss is: the two gradients can differ by
    orders of magnitude, and both change while the critics learn. The norms are measured separately,
    on the parameters, every `_MEASURED_EVERY` calls. The mean is exponential with the rate `_RATE`,
    and plain for the first measurements. The last measurement counts in ω at once.

    `ratio` 0 switches the conservative loss off. `achieved` is the geometric mean of ω |∇
    conservative| / |∇ main| over all measurements but the first, each with the ω in force before
    it. It is 0 before the second measurement.
    """

    _MEASURED_EVERY = 2
    _RATE = 0.2

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._calls = 0
        self._measured = 0
        self._log_balance = 0.0
        self._log_achieved = 0.0

    @property
    def weight(self) -> float:
        """ω, 0 before anything is measured."""
        return self._ratio * math.exp(self._log_balance) if self._measured else 0.0

    @property
    def achieved(self) -> float:
        return math.exp(self._log_achieved / (self._measured - 1)) if self._measured > 1 else 0.0

    def of(self, main: Tensor, conservative: Tensor, parameters: Sequence[Tensor]) -> float:
        """Return ω for this update. Both losses must depend on the parameters."""
        if self._ratio and self._calls % self._MEASURED_EVERY == 0:
            norms = [
                float(
                    torch.nn.utils.get_total_norm(
                        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                    )
                )
                for loss in (main, conservative)
            ]
            self._measure(*norms)
        self._calls += 1
        return self.weight

    def _measure(self, main: float, conservative: float) -> None:
        if not (0 < main < math.inf and 0 < conservative < math.inf):
            return
        log_balance = math.log(main / conservative)
        if self._measured:
            self._log_achieved += math.log(self.weight) - log_balance
        self._measured += 1
        rate = max(self._RATE, 1 / self._measured)
        self._log_balance += rate * (log_balance - self._log_balance)

    def state_dict(self) -> State:
        return {
            "calls": self._calls,
            "measured": self._measured,
            "log_balance": self._log_balance,
            "log_achieved": self._log_achieved,
        }

    def load_state_dict(self, state: State) -> None:
        self._calls = int(state["calls"])
        self._measured = int(state["measured"])
        self._log_balance = float(state["log_balance"])
        self._log_achieved = float(state["log_achieved"])


def log_mean_exp(scores_NB: Tensor) -> Tensor:
    """Return ln (1/N Σ exp) over the first axis."""
    return scores_NB.logsumexp(0) - math.log(len(scores_NB))

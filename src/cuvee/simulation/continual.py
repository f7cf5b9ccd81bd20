"""Simulated continual pre-training.

A model learns target domains and must not forget source domains. Source domains start with many
effective tokens and are forgotten, each at its own rate, unless they are read again. Target domains
start with few. The objective is the feedback of Data Mixing Agent (arXiv 2507.15640) at the end of
the run, with λ = ½:

    e = ½ (S_0 − S_T) / S_0 + ½ (H_0 − H_T) / H_0

S and H are the mean losses of the source and the target domains. `ScalingLaws.value_K` holds the
weights of this sum, so `best_static` and `best_schedule` maximise e.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.simulation.simulator import ScalingLaws


@dataclass(frozen=True)
class WorldParams:
    """Parameters that all domains of a world share."""

    budget: float = 2e7
    """Tokens of a run."""
    known: float = 4e7
    """Effective tokens of all source domains together before the run."""
    begun: float = 2e5
    """Effective tokens of all target domains together before the run."""
    nearness: float = 3.0
    """How fast transfer decreases with the distance between domains, which are points on a sphere.
    """
    forgetting: tuple[float, float] = (0.1, 0.95)
    """Range of the fraction of a domain that is forgotten over a run that never reads it."""
    final_lr_ratio: float = 1.0
    """Learning rate at the end relative to the start; the decay is a cosine. 1 is constant."""
    learning: float = 1.0
    """Learning is proportional to this power of the learning rate."""
    fading: float = 1.0
    """Forgetting is proportional to this power of the learning rate."""
    variety: float = 1.0
    """How much the laws and forgetting rates of domains differ, from 0 (not at all) to 1."""

    @classmethod
    def draw(cls, seed: int) -> WorldParams:
        """Draw random parameters.

        Budgets vary by a factor of 40. A run that never reads a source domain retains between 60 %
        and almost nothing of it. Target domains are new or partly known. Transfer is broad or very
        local. In four of five worlds the learning rate decays, so that late in a run less is
        learned and even less is forgotten.

        Forgetting and reading are in balance close to the initial state, as in a base model that
        was trained on its source domains until the run started.
        """
        rng = np.random.default_rng([seed, 77])
        budget = 2e7 * _log_uniform(rng, 0.1, 4.0)
        # e^−decay is left of a domain after a run that never reads it
        decay = float(rng.uniform(0.5, 6.0))
        known = budget / decay * _log_uniform(rng, 0.5, 4.0)
        return cls(
            budget=budget,
            known=known,
            begun=known * _log_uniform(rng, 0.003, 0.3),
            nearness=float(rng.uniform(1.5, 8.0)),
            forgetting=(1 - float(np.exp(-0.6 * decay)), 1 - float(np.exp(-1.5 * decay))),
            final_lr_ratio=float(rng.uniform(0.0, 0.2)) if rng.random() < 0.8 else 1.0,
            learning=float(rng.uniform(0.3, 1.2)),
            fading=float(rng.uniform(1.0, 4.0)),
            variety=float(rng.uniform(0.0, 1.0)),
        )


def _paces(final_lr_ratio: float, intervals: int, power: float) -> tuple[float, ...]:
    """Return the learning rate of each interval to the given power, divided by its mean."""
    if final_lr_ratio == 1.0:
        return ()
    rate_T = final_lr_ratio + (1 - final_lr_ratio) * 0.5 * (
        1 + np.cos(np.pi * (np.arange(intervals) + 0.5) / intervals)
    )
    return tuple((rate_T**power / (rate_T**power).mean()).tolist())


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def continual(
    sources: int, targets: int, seed: int, intervals: int = 20, params: WorldParams | None = None
) -> tuple[ScalingLaws, tuple[Domain, ...]]:
    """Draw a world: its laws and its domains, source domains first.

    Sizes, laws, transfer and forgetting are drawn from `seed`.
    """
    params = params or WorldParams()
    K = sources + targets
    rng = np.random.default_rng([seed, sources, targets])
    is_target_K = np.arange(K) >= sources
    points_KD = rng.normal(size=(K, 5))
    points_KD /= np.linalg.norm(points_KD, axis=1, keepdims=True)
    transfer_KK = np.exp(params.nearness * (points_KD @ points_KD.T - 1))
    np.fill_diagonal(transfer_KK, 1.0)
    share_K = np.concatenate([rng.dirichlet(np.full(n, 2.0)) for n in (sources, targets)])

    def drawn(low: float, high: float) -> FloatArray:
        middle = 0.5 * (low + high)
        reach = 0.5 * params.variety * (high - low)
        return np.asarray(rng.uniform(middle - reach, middle + reach, K))

    laws = ScalingLaws(
        floor_K=torch.from_numpy(drawn(1.0, 2.0)),
        scale_K=torch.from_numpy(np.exp(drawn(float(np.log(0.2)), float(np.log(4.0))))),
        exponent_K=torch.from_numpy(drawn(0.15, 0.6)),
        transfer_KK=torch.from_numpy(transfer_KK),
        forgetting_K=torch.from_numpy(1 - (1 - drawn(*params.forgetting)) ** (1 / intervals)),
        start_K=torch.from_numpy(np.where(is_target_K, params.begun, params.known) * share_K + 1e4),
        value_K=torch.ones(K, dtype=torch.float64),
        intervals=intervals,
        pace_T=_paces(params.final_lr_ratio, intervals, params.learning),
        fade_T=_paces(params.final_lr_ratio, intervals, params.fading),
        # A run has the same budget whatever the number of intervals.
        interval=params.budget / intervals,
    )
    loss_K = laws.loss(laws.start_K)
    target_K = torch.from_numpy(is_target_K)
    value_K = 0.5 / torch.where(target_K, loss_K[target_K].sum(), loss_K[~target_K].sum())
    tokens_K = np.rint(share_K * np.where(is_target_K, 2e7, 1e8)).astype(int).tolist()
    roles = ["target" if target else "source" for target in is_target_K]
    domains = tuple(
        Domain(f"{role}{k}", tokens, "target" if role == "target" else "source")
        for k, (role, tokens) in enumerate(zip(roles, tokens_K, strict=True))
    )
    return replace(laws, value_K=value_K), domains


def feedback_gain(laws: ScalingLaws, weights_TK: Tensor) -> float:
    """Return e at the end of a path of mixtures (T, K), without noise."""
    losses_TK = laws.losses(weights_TK)
    return float((losses_TK[0] - losses_TK[-1]) @ laws.value_K)

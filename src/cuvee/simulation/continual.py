"""Continual pre-training, simulated: a model that knows its source field is to learn a target field without forgetting.

Source domains begin with many effective tokens, each forgotten at its own rate unless it is seen again; target domains
begin with few. What counts is the feedback of Data Mixing Agent (arXiv 2507.15640) at the end of the run, with λ = ½:

    e = ½ (S_0 − S_T) / S_0 + ½ (H_0 − H_T) / H_0,      S, H: mean loss over the source and over the target domains

`ScalingLaws.value_K` holds the weights of that sum, so `best_static` and `best_schedule` maximise e.
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
    """What all domains of a world have in common."""

    budget: float = 2e7
    """Tokens of a run."""
    known: float = 4e7
    """Effective tokens of the source field before the run."""
    begun: float = 2e5
    """And of the target field."""
    nearness: float = 3.0
    """How fast transfer falls with distance on the sphere."""
    forgetting: tuple[float, float] = (0.1, 0.95)
    """Between which shares of what is known of a domain are forgotten over a run that never reads it."""
    final_lr_ratio: float = 1.0
    """The learning rate at the end, relative to the beginning; it falls along a cosine."""
    learning: float = 1.0
    fading: float = 1.0
    """The powers of the learning rate that learning and forgetting go with."""
    variety: float = 1.0
    """How much the laws of domains differ, and what is forgotten of them; 0: not at all."""

    @classmethod
    def draw(cls, seed: int) -> WorldParams:
        """Budgets over a factor of forty; source fields of which a run that never reads them leaves 60 % or next to nothing;
        target fields that are new or half known; transfer from almost everywhere to almost nowhere; four times in five a
        learning rate that falls to little, so that less is learned late and still less is forgotten.

        What is forgotten and what reading restores are in balance somewhere near what is known at first, as they are in a base
        model that was trained on its source field until the run began.
        """
        rng = np.random.default_rng([seed, 77])
        budget = 2e7 * _log_uniform(rng, 0.1, 4.0)
        decay = float(
            rng.uniform(0.5, 6.0)
        )  # in a run that never reads it, e^−decay is left of a domain
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
    """A power of the rate of each interval, relative to its mean."""
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
    """Laws and domains, source domains first. Sizes, laws, transfer and forgetting are drawn from `seed`."""
    params = params or WorldParams()
    K, rng = sources + targets, np.random.default_rng([seed, sources, targets])
    is_target_K = np.arange(K) >= sources
    points_KD = rng.normal(size=(K, 5))
    points_KD /= np.linalg.norm(points_KD, axis=1, keepdims=True)
    transfer_KK = np.exp(params.nearness * (points_KD @ points_KD.T - 1))
    np.fill_diagonal(transfer_KK, 1.0)
    share_K = np.concatenate([rng.dirichlet(np.full(n, 2.0)) for n in (sources, targets)])

    def drawn(low: float, high: float) -> FloatArray:
        middle, reach = 0.5 * (low + high), 0.5 * params.variety * (high - low)
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
        interval=params.budget
        / intervals,  # so that a run is one budget, however often it is re-weighted
    )
    loss_K, target_K = laws.loss(laws.start_K), torch.from_numpy(is_target_K)
    value_K = 0.5 / torch.where(target_K, loss_K[target_K].sum(), loss_K[~target_K].sum())
    tokens_K = np.rint(share_K * np.where(is_target_K, 2e7, 1e8)).astype(int).tolist()
    roles = ["target" if target else "source" for target in is_target_K]
    domains = tuple(
        Domain(f"{role}{k}", tokens, "target" if role == "target" else "source")
        for k, (role, tokens) in enumerate(zip(roles, tokens_K, strict=True))
    )
    return replace(laws, value_K=value_K), domains


def feedback_gain(laws: ScalingLaws, weights_TK: Tensor) -> float:
    """e at the end of a path of mixtures (T, K), without noise."""
    losses_TK = laws.losses(weights_TK)
    return float((losses_TK[0] - losses_TK[-1]) @ laws.value_K)

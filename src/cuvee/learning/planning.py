"""`plan`: the schedule of mixtures that a `CurveModel` expects most of, with few degrees of freedom.

    target share(p) = sigmoid(a + b u + c (u² − 1/3)),   u = 2 p − 1, p from 0 to 1
    share of domain k in its role ∝ tokens_k^(1 − f) exp((g + h u) d_k)

a, b and c are level, slope and curvature. f (flatness), g (tilt) and h (its slope) are one number for
each role. d is the direction in which the ensemble's mean rises fastest at the reference mixture,
standardised within the role. They climb mean − κ · deviation over the ensemble by Adam, less a
penalty for their squares in units of the model's error. A free schedule may end higher but promises
up to 2 points more than it gives where the laws are wrong (docs/lab/planning.md).

No domain is read more often than its cap. The plan is a `schedule`, which can be saved and played
like any policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.epochs import allowed
from cuvee.policies.fixed import Scheduled
from cuvee.policies.pacing import fill
from cuvee.simulation.curves import CurveModel, RunText

KAPPA = 1.0
_STEPS = 120
_OVERDRAWN = 10.0  # penalty per unit of text above a cap
_DOUBT = 0.2  # penalty per squared parameter, in errors of the model


def plan(
    model: CurveModel,
    domains: tuple[Domain, ...],
    *,
    text: RunText | None = None,
    epochs: FloatArray | float = np.inf,
    kappa: float = KAPPA,
    moving: bool = True,
    steps: int = _STEPS,
) -> Scheduled:
    """Return the plan for a run described by `text`; by default one like those that were logged.

    `epochs` are caps, one or (K,). With `moving` false, the plan is the best static mixture of the
    same form.
    """
    text = text or model.text
    path = _Path(model, domains, text, moving)
    most_K = torch.from_numpy(
        np.minimum(
            allowed(np.broadcast_to(epochs, len(domains)), text.available_K) / text.unit, 1e9
        )
    ).float()
    optimizer = torch.optim.Adam([path.share_3, path.roles_23], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    share_T1 = torch.from_numpy(text.share_T).float()[:, None]
    for _ in range(steps):
        optimizer.zero_grad()
        weights_TK = path.weights()
        over = ((weights_TK * share_T1).sum(0) - most_K).clamp(min=0).sum()
        moved = path.share_3.square().sum() + path.roles_23.square().sum()
        torch.autograd.backward(
            _OVERDRAWN * over
            + _DOUBT * model.error * moved
            - model.prudent(weights_TK, kappa, text)
        )
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        planned_TK = path.weights().double().numpy()
    planned_TK = within_caps(planned_TK, text.share_T, most_K.double().numpy())
    names = [domain.name for domain in domains]
    middle_T = (np.cumsum(text.share_T) - text.share_T) / text.share_T.sum()
    return Scheduled(
        [
            (float(progress), dict(zip(names, weights_K.tolist(), strict=True)))
            for progress, weights_K in zip(middle_T, planned_TK, strict=True)
        ]
    )


class _Path:
    """The path of mixtures as a function of its parameters, which are leaves."""

    def __init__(
        self, model: CurveModel, domains: Sequence[Domain], text: RunText, moving: bool
    ) -> None:
        self.target_K = torch.tensor([domain.is_target for domain in domains])
        self.log_tokens_K = torch.tensor([max(domain.tokens, 1) for domain in domains]).log()
        # −1 to 1, at the beginning of each interval, as a schedule is read
        begun_T = (np.cumsum(text.share_T) - text.share_T) / text.share_T.sum()
        self.u_T = torch.from_numpy((2 * begun_T - 1) * moving).float()
        self.bend_T = (self.u_T.square() - 1 / 3) * moving
        self.share_3 = torch.zeros(3, requires_grad=True)
        self.roles_23 = torch.zeros(2, 3, requires_grad=True)
        self.direction_K = torch.zeros(len(domains))
        self.direction_K = self._steepest(model, text)

    def weights(self, bend_K: Tensor | None = None) -> Tensor:
        """Return the path (T, K)."""
        a, b, c = self.share_3
        share_T = (a + b * self.u_T + c * self.bend_T).sigmoid()
        flatness_K, tilt_K, slope_K = self.roles_23[self.target_K.long()].unbind(-1)
        logits_TK = (1 - flatness_K) * self.log_tokens_K + (
            (tilt_K + slope_K * self.u_T[:, None]) * self.direction_K
        )
        logits_TK = logits_TK if bend_K is None else logits_TK + bend_K
        parts = []
        for role_K, total_T in ((~self.target_K, 1 - share_T), (self.target_K, share_T)):
            within = logits_TK.masked_fill(~role_K, -torch.inf).softmax(-1)
            parts.append(total_T[:, None] * within)
        path_TK: Tensor = parts[0] + parts[1]
        return path_TK

    def _steepest(self, model: CurveModel, text: RunText) -> Tensor:
        """Return d (K,)."""
        bend_K = torch.zeros(len(self.target_K), requires_grad=True)
        found = torch.autograd.grad(model.prudent(self.weights(bend_K), 0.0, text), bend_K)
        gradient_K: Tensor = found[0]
        weights_K = self.weights().detach().mean(0)
        slope_K: Tensor = gradient_K / weights_K
        found_K = torch.zeros_like(slope_K)
        for role_K in (~self.target_K, self.target_K):
            of_role = slope_K[role_K]
            spread = of_role.std(unbiased=False)
            found_K[role_K] = (of_role - of_role.mean()) / (spread if spread > 0 else 1.0)
        return found_K


def within_caps(weights_TK: FloatArray, share_T: FloatArray, most_K: FloatArray) -> FloatArray:
    """Return the path (T, K) with what exceeds `most_K` (K,) given to domains below their caps.

    All in units of text. A domain above its cap is lowered by the same factor all along. If all
    domains are above, the caps cannot hold and the path stays as it is.
    """
    read_K = share_T @ weights_TK
    lowered_K = np.minimum(1.0, most_K / np.maximum(read_K, 1e-300))
    if (lowered_K >= 1.0).all():
        return weights_TK
    capped_TK = weights_TK * lowered_K
    rest_K = np.where(lowered_K < 1.0, 0.0, weights_TK.mean(axis=0))
    left_K = np.where(rest_K > 0, (most_K - read_K) / share_T.sum(), 0.0)
    filled_TK = np.stack(
        [
            fill(weights_K * (rest_K > 0), weights_K * (rest_K > 0) + left_K, 1.0 - float(c))
            for weights_K, c in zip(
                weights_TK, (capped_TK * (lowered_K < 1.0)).sum(axis=1), strict=True
            )
        ]
    )
    path_TK = np.where(lowered_K < 1.0, capped_TK, filled_TK)
    totals_T1 = path_TK.sum(axis=1, keepdims=True)
    return path_TK / totals_T1 if (totals_T1 > 0.999).all() else weights_TK

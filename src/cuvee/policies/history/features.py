"""The features of one timestep, of one run or of B runs in a batch; differentiable.

`HistoryEncoder` computes them for a real run, `learning.universal` for a batch of simulated runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY_FEATURES = (
    "reference",  # ½ ln(K ρ) of the reference mixture, which `HistoryActor` adds to its logits
    "last",  # ½ ln(K α) of the current mixture; at the start the token shares of source domains
    "weight",  # K α − 1 of the current mixture
    "target",  # 1 for a target domain
    "share_in_role",  # ½ ln of its share of the tokens of its role, relative to uniform there
    "share",  # ½ ln(K · its share of all tokens)
    "epochs",  # ln(1 + tokens drawn so far / tokens available)
    "loss",  # 5 (ℓ / its first known value − 1); 0 where absent
    "loss_known",
)
HISTORY_GLOBALS = (
    "progress",
    "feedback",  # 5 e_t
    "general",  # 5 e_t of the general questions alone
    "target",  # 5 e_t of the target questions alone
    "feedback_change",  # 50 (e_t − e_{t−1}); 0 where either is absent
    "feedback_known",
    "target_weight",  # share of the target domains in the current mixture
    "target_drawn",  # share of the target domains in the tokens drawn so far
    "target_share",  # share of the target domains in the available tokens
    "domains",  # ¼ ln K
)
_CLIP = 3.0
_LEAST = math.exp(-2 * _CLIP)


@dataclass(frozen=True)
class Timestep:
    """What is known at one timestep about K domains. Tensors may have a leading dimension B.

    Of the domains: the reference mixture, 1 for target domains, shares of all tokens, available
    tokens, the current mixture, tokens drawn so far, losses, first known losses, and 1 where a loss
    is known. Of the run: progress; feedback from all, general and target questions; its change
    since the last timestep; and 1 if it is known.
    """

    reference_K: Tensor
    target_K: Tensor
    natural_K: Tensor
    available_K: Tensor
    weights_K: Tensor
    drawn_K: Tensor
    loss_K: Tensor
    first_loss_K: Tensor
    loss_known_K: Tensor
    progress_1: Tensor
    feedback_3: Tensor
    change_1: Tensor
    feedback_known_1: Tensor

    def domain_features(self) -> Tensor:
        """Return the values of `HISTORY_FEATURES`, (…, K, F), clipped to ±3."""
        K = self.target_K.shape[-1]
        target_K = self.target_K
        targets_1 = target_K.sum(-1, keepdim=True)
        in_role_K = 2 * self.reference_K * torch.where(target_K > 0, targets_1, K - targets_1)
        relative_K = self.loss_K.clamp(0.0, 1e6) / self.first_loss_K.clamp(1e-6, 1e6)
        columns = [
            _half_log(K * self.reference_K),
            _half_log(K * self.weights_K),
            K * self.weights_K - 1,
            target_K,
            _half_log(in_role_K),
            _half_log(K * self.natural_K),
            torch.log1p(self.drawn_K / self.available_K.clamp(min=1.0)),
            self.loss_known_K * 5 * (relative_K - 1),
            self.loss_known_K,
        ]
        return torch.stack(columns, -1).clamp(-_CLIP, _CLIP)

    def run_features(self) -> Tensor:
        """Return the values of `HISTORY_GLOBALS`, (…, G), clipped to ±3."""
        drawn_K = self.drawn_K / self.drawn_K.sum(-1, keepdim=True).clamp(min=1.0)
        columns = [
            self.progress_1,
            5 * self.feedback_3,
            50 * self.change_1,
            self.feedback_known_1,
            *(
                (shares_K * self.target_K).sum(-1, keepdim=True)
                for shares_K in (self.weights_K, drawn_K, self.natural_K)
            ),
            torch.full_like(self.progress_1, 0.25 * math.log(self.target_K.shape[-1])),
        ]
        return torch.cat(columns, -1).clamp(-_CLIP, _CLIP)


def _half_log(relative_K: Tensor) -> Tensor:
    """Return ½ ln x, and −3 for 0."""
    return 0.5 * relative_K.clamp(min=_LEAST).log()

"""The two formulas of simulated training, for one world or for a batch of B worlds.

    L_i(n)   = E_i + A_i (n_i / N₀)^(−β_i)
    n_i(t+1) = (1 − f_i)^φ n_i(t) + η Σ_j T_ij α_j N

The loss follows Hoffmann et al. 2022 (arXiv 2203.15556), with one law per domain.
`simulation.simulator` explains the symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TENSORS = ("floor_K", "scale_K", "exponent_K", "transfer_KK", "forgetting_K", "start_K", "value_K")


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Coefficients of scaling laws over K domains, as differentiable tensors.

    `floor_K` is E, `scale_K` A, `exponent_K` β, `transfer_KK` T, and `forgetting_K` f (0 ≤ f < 1,
    per interval). `start_K` are the effective tokens before the run. `value_K` is how much each
    domain's loss counts. `interval` is N and `unit` is N₀, both in tokens. For B worlds, tensors
    have a leading dimension B, and `interval` and `unit` are (B, 1).
    """

    floor_K: Tensor
    scale_K: Tensor
    exponent_K: Tensor
    transfer_KK: Tensor
    forgetting_K: Tensor
    start_K: Tensor
    value_K: Tensor
    interval: float | Tensor = 1e6
    unit: float | Tensor = 1e6

    @classmethod
    def stack(cls, laws: Sequence[Laws], dtype: torch.dtype) -> Laws:
        """Return a batch of the laws of several worlds with equally many domains."""
        stacked = {name: torch.stack([getattr(one, name) for one in laws]) for name in _TENSORS}
        single = {
            name: torch.tensor([getattr(one, name) for one in laws], dtype=dtype)[:, None]
            for name in ("interval", "unit")
        }
        return cls(**{name: values.to(dtype) for name, values in stacked.items()}, **single)

    def loss(self, effective_K: Tensor) -> Tensor:
        """Return the losses (…, K) in nats per token after `effective_K` (…, K) tokens."""
        return self.floor_K + self.scale_K * (effective_K / self.unit).pow(-self.exponent_K)

    def after(
        self,
        effective_K: Tensor,
        weights_K: Tensor,
        pace: float | Tensor = 1.0,
        fade: float | Tensor = 1.0,
    ) -> Tensor:
        """Return the effective tokens (…, K) after an interval under `weights_K` (…, K).

        `pace` is η and `fade` is φ of that interval.
        """
        read_K1 = (weights_K * (pace * self.interval))[..., None]
        taught_K = torch.matmul(self.transfer_KK, read_K1)[..., 0]
        return (1 - self.forgetting_K) ** fade * effective_K + taught_K

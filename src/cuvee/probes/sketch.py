"""Storage of one layer's per-domain gradients: exact, or as a count sketch.

A count sketch (Charikar, Chen & Farach-Colton 2002) preserves inner products (Weinberger et al.
2009, eq. 2–3). Entry (r, c) of a weight gradient of shape (out, in) gets a random sign a_r·b_c and
is added into bucket (r·in + c) mod m. For two gradients g and h, E⟨Sg, Sh⟩ = ⟨g, h⟩ over the signs,
and

    Var⟨Sg, Sh⟩ = Σ (g_k² h_l² + g_k h_k g_l h_l) over ordered pairs k ≠ l of entries in one bucket.

If the energy is spread evenly over the buckets, this is (‖g‖²‖h‖² + ⟨g, h⟩²) / m, a standard error
of at most √(2/m)·‖g‖‖h‖.

The textbook draws an independent sign for each entry, which needs a matrix of signs as large as the
layer. The product of a row sign and a column sign has the same variance here. Let m be odd, coprime
to `in`, and larger than `out` and `in`. Then two entries of a bucket share neither row nor column,
and if (r, c) and (r′, c′) share a bucket, (r, c′) and (r′, c) do not. So all fourth moments of the
signs vanish except those of the formula above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cuvee.core.errors import ConfigError

_SEED = 20260


class GradientSums:
    """K running sums Σ δᵀx of one layer's weight gradient, in float32.

    Shape (K, out·in) if `size` is None, else (K, size) sketches. All ranks draw the same signs, so
    sums add up over micro-batches, steps and ranks, sketched or not.
    """

    def __init__(
        self, domains: int, shape: tuple[int, int], size: int | None, device: torch.device
    ) -> None:
        self.shape = shape
        self.exact = size is None or size >= math.prod(shape)
        if size is None or self.exact:
            self.size = math.prod(shape)
        else:
            self.size = odd_coprime(size, shape)
            generator = torch.Generator().manual_seed(_SEED)
            signs = (torch.randint(0, 2, (sum(shape),), generator=generator) * 2 - 1).to(
                device, torch.float32
            )
            self._row_signs, self._column_signs = signs[: shape[0]], signs[shape[0] :]
        self.sums_KM = torch.zeros(domains, self.size, device=device)

    def reset(self) -> None:
        self.sums_KM.zero_()

    def add(self, domain: int, delta_TO: Tensor, x_TI: Tensor, scale: float) -> None:
        """Add `scale`·δᵀx to the sum of `domain`. T positions, shapes (T, out) and (T, in)."""
        sum_M = self.sums_KM[domain]
        if self.exact and delta_TO.dtype == sum_M.dtype:
            sum_M.view(self.shape).addmm_(delta_TO.t(), x_TI, alpha=scale)
            return
        gradient_OI = torch.mm(delta_TO.t(), x_TI)
        if not self.exact:
            gradient_OI.mul_(self._row_signs[:, None]).mul_(self._column_signs)
        gradient_P = gradient_OI.view(-1)
        whole = gradient_P.numel() // self.size * self.size
        sum_M.add_(gradient_P[:whole].view(-1, self.size).sum(0, dtype=sum_M.dtype), alpha=scale)
        sum_M[: gradient_P.numel() - whole].add_(gradient_P[whole:], alpha=scale)


def odd_coprime(size: int, shape: tuple[int, int]) -> int:
    """Return the largest odd number ≤ `size` coprime to `in`, which the variance above requires.

    Raises `ConfigError` if none is larger than both dimensions of `shape`.
    """
    smallest = max(shape) + 1
    for candidate in range(size, smallest - 1, -1):
        if candidate % 2 and math.gcd(candidate, shape[1]) == 1:
            return candidate
    raise ConfigError(
        f"a gradient sketch of {size} numbers per domain is too small for a layer of shape "
        f"{shape[0]} × {shape[1]}: allow {2 * smallest} or more, by `sketch` or a higher `memory`"
    )

"""The probability simplex: exact projection, distributions with densities, uniform sampling.

Distributions work with log weights, so that very small weights such as 1e-300 do not underflow.
Their random numbers come from a generator that the caller passes.

Densities are with respect to Lebesgue measure on the first K−1 weights, so the flat density is
Γ(K). Densities with respect to the Aitchison measure Π dα/α are larger by Σ ln α in the logarithm.
In that measure, a relative change counts the same at every weight.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cuvee.core.errors import MixtureError

LOG_WEIGHT_FLOOR = -27.6
"""ln 1e-12. Smaller weights are treated as 1e-12 where their logarithm is taken."""


def project(x: Tensor, floor: Tensor | float = 0.0, cap: Tensor | float = 1.0) -> Tensor:
    """Return the Euclidean projection of `x` (…, K) onto {floor ≤ α ≤ cap, Σα = 1}.

    The result is exact and has the dtype of `x`. `floor` and `cap` are numbers, or tensors that
    broadcast to `x`. Raises `MixtureError` if `x` is not finite or no mixture lies within the
    limits.

    Algorithm (Wang and Lu 2015, arXiv:1503.01002): the result is clip(x − θ, floor, cap) for the θ
    at which it sums to 1. That sum is a decreasing, piecewise linear function of θ with corners at
    x − cap and x − floor. Sort the corners, find the piece that contains the solution, and solve
    it.
    """
    # Float64 because θ is a difference of sums over K.
    x_K = x.double()
    low_K, high_K = (
        torch.as_tensor(bound, dtype=torch.float64).expand_as(x_K) for bound in (floor, cap)
    )
    if not bool(torch.isfinite(x_K).all()):
        raise MixtureError(
            "weights to project onto the simplex must be finite, but one is NaN or infinite"
        )
    slack = 1e-9
    if bool(
        (low_K > high_K + slack).any()
        | (low_K.sum(-1) > 1 + slack).any()
        | (high_K.sum(-1) < 1 - slack).any()
    ):
        raise MixtureError(
            "no mixture lies within the limits: the floors sum to "
            f"{float(low_K.sum(-1).max()):.6g} (must be at most 1), the caps sum to "
            f"{float(high_K.sum(-1).min()):.6g} (must be at least 1), "
            "and no floor may exceed its cap"
        )
    corner_C, order_C = torch.cat([x_K - high_K, x_K - low_K], -1).sort(-1)  # C = 2K
    # A weight decreases for θ between x − cap and x − floor and is constant elsewhere.
    # The slope is therefore minus the number of weights that decrease.
    falls_C = torch.cat([torch.ones_like(x_K), -torch.ones_like(x_K)], -1).gather(-1, order_C)
    slope_C = falls_C.cumsum(-1)
    width_C = corner_C.diff(dim=-1, prepend=corner_C[..., :1])
    sum_C = high_K.sum(-1, keepdim=True) - (width_C * (slope_C - falls_C)).cumsum(-1)
    # The first corner at which the sum is at most 1 ends the piece that holds the solution.
    end = (sum_C > 1.0).sum(-1, keepdim=True).clamp(1, corner_C.shape[-1] - 1)
    middle = 0.5 * (corner_C.gather(-1, end - 1) + corner_C.gather(-1, end))
    at_high_K, at_low_K = x_K - high_K >= middle, x_K - low_K <= middle
    free_K = ~(at_high_K | at_low_K)
    fixed_K = torch.where(at_high_K, high_K, low_K)
    total = torch.where(free_K, x_K, fixed_K).sum(-1, keepdim=True)
    theta = torch.where(
        free_K.any(-1, keepdim=True),
        (total - 1.0) / free_K.sum(-1, keepdim=True).clamp(min=1),
        middle,
    )
    return torch.maximum(torch.minimum(x_K - theta, high_K), low_K).to(x.dtype)


def log_weights(weights: Tensor) -> Tensor:
    """Return ln α (…, K), where weights below 1e-12, also zero, are treated as 1e-12."""
    return weights.clamp(min=math.exp(LOG_WEIGHT_FLOOR)).log()


def flat_log_density(domains: int) -> float:
    """Return ln Γ(K), the log density of the flat Dirichlet distribution."""
    return math.lgamma(domains)


def sample_flat(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw mixtures uniformly from the simplex; `shape` is (…, K)."""
    return torch.empty(shape).exponential_(generator=generator).log().softmax(-1)


class Draw(NamedTuple):
    """A reparametrised sample: ln α (…, K) and its log density (…,) in Lebesgue measure."""

    log_weights: Tensor
    log_prob: Tensor

    @property
    def weights(self) -> Tensor:
        return self.log_weights.exp()

    @property
    def log_ratio_prob(self) -> Tensor:
        """The log density (…,) with respect to the Aitchison measure."""
        return self.log_prob + self.log_weights.sum(-1)


class SimplexPolicy(Protocol):
    """A distribution over mixtures (…, K)."""

    @property
    def centre(self) -> Tensor:
        """The mixture (…, K) to play when not exploring."""
        ...

    def sample(self, generator: torch.Generator, draws: tuple[int, ...] = ()) -> Draw:
        """Draw mixtures (*draws, …, K). Gradients flow to the parameters."""
        ...

    def log_prob(self, log_weights: Tensor) -> Tensor:
        """Return the log density at ln α (…, K)."""
        ...


class Dirichlet(NamedTuple):
    """The Dirichlet distribution with `concentration` (…, K) > 0.

    Samples are log-gamma variates: exact, and without underflow for concentrations below 1.
    """

    concentration: Tensor

    @property
    def centre(self) -> Tensor:
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    def sample(self, generator: torch.Generator, draws: tuple[int, ...] = ()) -> Draw:
        alpha = self.concentration.expand(*draws, *self.concentration.shape)
        # Gamma(a) = Gamma(a + 1)·U^(1/a), so the logarithm never underflows
        # (Marsaglia and Tsang 2000).
        uniform = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype).clamp(min=1e-30)
        log_gamma = (
            torch._standard_gamma(alpha + 1, generator=generator).log() + uniform.log() / alpha
        )
        log_w = log_gamma.log_softmax(-1)
        return Draw(log_w, self._log_density(log_w))

    def log_prob(self, log_weights: Tensor) -> Tensor:
        return self._log_density(log_weights.clamp(min=LOG_WEIGHT_FLOOR))

    def _log_density(self, log_w: Tensor) -> Tensor:
        alpha = self.concentration
        return ((alpha - 1) * log_w).sum(-1) + alpha.sum(-1).lgamma() - alpha.lgamma().sum(-1)

    def entropy(self) -> Tensor:
        """Return the differential entropy (…,) in nats with respect to Lebesgue measure.

        It is at most −ln Γ(K), the entropy of the flat Dirichlet.
        """
        alpha = self.concentration
        total = alpha.sum(-1)
        log_beta = alpha.lgamma().sum(-1) - total.lgamma()
        return (
            log_beta
            + (total - alpha.shape[-1]) * total.digamma()
            - ((alpha - 1) * alpha.digamma()).sum(-1)
        )


class LogisticNormal(NamedTuple):
    """The logistic-normal distribution: softmax(z) with z_k ~ N(`logits_k`, `std_k`²).

    Both parameters are (…, K). The density is exact. softmax does not depend on a common shift c of
    z. Integrating the Gaussian over c gives, with d = ln α − logits and p = 1/std²:

        ln π(α) = −Σ ln α − Σ ln std − ½(K−1) ln 2π − ½ ln Σp − ½ (Σ p d² − (Σ p d)²/Σp)

    All domains are treated alike. The additive log-ratio form would treat the last one differently.
    """

    logits: Tensor
    std: Tensor

    @property
    def centre(self) -> Tensor:
        return self.logits.softmax(-1)

    def sample(self, generator: torch.Generator, draws: tuple[int, ...] = ()) -> Draw:
        shape = (*draws, *self.logits.shape)
        noise = torch.randn(shape, generator=generator, dtype=self.logits.dtype)
        log_w = (self.logits + self.std * noise).log_softmax(-1)
        return Draw(log_w, self._log_density(log_w))

    def log_prob(self, log_weights: Tensor) -> Tensor:
        return self._log_density(log_weights.clamp(min=LOG_WEIGHT_FLOOR))

    def _log_density(self, log_w: Tensor) -> Tensor:
        precision = self.std.pow(-2)
        distance = log_w - self.logits
        total = precision.sum(-1)
        mean = (precision * distance).sum(-1, keepdim=True) / total[..., None]
        # Equal to Σ p d² − (Σ p d)²/Σp, but without cancellation.
        squares = (precision * (distance - mean).square()).sum(-1)
        constant = 0.5 * (log_w.shape[-1] - 1) * math.log(2 * math.pi)
        log_ratio_prob = -self.std.log().sum(-1) - constant - 0.5 * total.log() - 0.5 * squares
        return log_ratio_prob - log_w.sum(-1)

    def log_ratio_entropy(self) -> Tensor:
        """Return the exact entropy (…,) in nats with respect to the Aitchison measure.

        It is the entropy of the K−1 free directions of the Gaussian.
        """
        free = self.logits.shape[-1] - 1
        return (
            self.std.log().sum(-1)
            + 0.5 * self.std.pow(-2).sum(-1).log()
            + 0.5 * free * math.log(2 * math.pi * math.e)
        )

    def entropy(self, generator: torch.Generator, draws: int = 64) -> Tensor:
        """Return the entropy (…,) in nats with respect to Lebesgue measure.

        It is `log_ratio_entropy` + E Σ ln α. The expectation is estimated from `draws` samples.
        """
        return self.log_ratio_entropy() + self.sample(generator, (draws,)).log_weights.sum(-1).mean(
            0
        )

"""ADO, adaptive data optimization: per-domain scaling laws that are fitted during the run.

Source: Jiang et al. 2024, arXiv 2410.11820.

    L_k(n) = ε_k + β_k n^(−α_k)                   n: tokens trained on in total
    v_k    = −dL_k/dn = α_k β_k n^(−α_k − 1)      learning speed
    h      ← (1 − γ_h) h + γ_h π                  recent mixture
    ρ_k    ∝ μ_k h_k^s v_k                        μ: prior mixture
    π      = γ ρ + (1 − γ) π̄,  π_k ≥ δ            π̄: mean of all mixtures so far

The factor h_k^s gives domain k the credit for its own progress. ADO proposes no proxy runs. It
commits to `ADOPolicy`, which uses the prior for the first `warmup` of the run, and then π.

Deviations: laws are refitted after every interval by least squares over a grid of α, with ε and β
in closed form. The paper refits every 1,000 steps with L-BFGS on a Huber loss of logarithms. We
update h and π̄ after every interval, the paper after every step. A domain whose law cannot be
fitted yet gets the mean speed of the others. δ is at most 1/K. With more than 128 domains, each
interval refits 128 of them in turn, so that the cost of a decision does not grow with K.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Metrics, Policy, Probe, State
from cuvee.core.registry import register_method, register_policy
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Run, Trajectory
from cuvee.policies.guard.limits import nearest_within

_FEWEST_POINTS = 4  # a law has three parameters
_MOST_POINTS = 256  # per fit, evenly spaced over the run
_MOST_FITS = 128  # per interval
_EXPONENTS = (0.01, 1.5)


class Law(NamedTuple):
    """A scaling law: L(n) = `limit` + `scale` n^(−`exponent`), in nats per token.

    n is in units of `unit` tokens.
    """

    limit: float
    scale: float
    exponent: float
    unit: float = 1.0

    def loss(self, tokens: float) -> float:
        return self.limit + self.scale * math.pow(tokens / self.unit, -self.exponent)

    def speed(self, tokens: float) -> float:
        """Return −dL/dn, at least 0, in nats per token read."""
        return self.exponent * self.scale * math.pow(tokens / self.unit, -self.exponent) / tokens


def fit_law(tokens_T: FloatArray, losses_T: FloatArray) -> Law:
    """Return the law with the least squared error over T ≥ 4 points, with ε ≥ 0 and β ≥ 0."""
    unit = float(tokens_T.max())
    low, high = _EXPONENTS
    for _ in range(3):  # each round searches between the neighbours of the best exponent
        exponents_A = np.geomspace(low, high, 40)
        powers_AT = (tokens_T / unit) ** -exponents_A[:, None]
        limits_A, scales_A = _closed_form(powers_AT, losses_T)
        errors_A = ((limits_A[:, None] + scales_A[:, None] * powers_AT - losses_T) ** 2).sum(1)
        best = int(errors_A.argmin())
        low, high = exponents_A[max(best - 1, 0)], exponents_A[min(best + 1, 39)]
    return Law(float(limits_A[best]), float(scales_A[best]), float(exponents_A[best]), unit)


def _closed_form(powers_AT: FloatArray, losses_T: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (A,) limits and (A,) scales by linear regression of the losses on each row.

    They satisfy ε ≥ 0 and β ≥ 0.
    """
    centred_AT = powers_AT - powers_AT.mean(1, keepdims=True)
    scales_A = (centred_AT @ losses_T) / np.maximum((centred_AT**2).sum(1), 1e-300)
    scales_A = np.maximum(scales_A, 0.0)
    limits_A = losses_T.mean() - scales_A * powers_AT.mean(1)
    through_zero_A = (powers_AT @ losses_T) / (powers_AT**2).sum(1)
    scales_A = np.where(limits_A < 0, through_zero_A, scales_A)
    return np.maximum(limits_A, 0.0), scales_A


@register_method("ado")
@dataclass(frozen=True)
class ADO:
    """Adaptive data optimization.

    `prior` is μ by domain name; the default is natural shares. The other options are those of
    `ADOPolicy`.
    """

    prior: Mapping[str, float] = field(default_factory=dict)
    credit: float = 0.5
    smoothing: float = 0.1
    credit_smoothing: float = 0.1
    floor: float = 0.01
    warmup: float = 0.05

    def __post_init__(self) -> None:
        self._policy({"any": 1.0})  # raises for bad settings here, not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Return the policy. Raises `ConfigError` if `prior` names unknown domains."""
        return self._policy(_prior(self.prior, corpus.domains).as_dict())

    def _policy(self, prior: Mapping[str, float]) -> ADOPolicy:
        return ADOPolicy(
            prior, self.credit, self.smoothing, self.credit_smoothing, self.floor, self.warmup
        )


def _prior(given: Mapping[str, float], domains: tuple[Domain, ...]) -> Mixture:
    names = [domain.name for domain in domains]
    if unknown := sorted(set(given) - set(names)):
        raise ConfigError(
            f"prior names {', '.join(unknown)}, but the corpus has {', '.join(names)}"
        )
    return (
        Mixture.normalise(names, [given.get(name, 0.0) for name in names])
        if given
        else Mixture.natural(domains)
    )


@register_policy("ado")
class ADOPolicy:
    """The policy of ADO.

    - `prior`: μ by domain name.
    - `credit`: s ≥ 0.
    - `smoothing`: γ, above 0 and at most 1.
    - `credit_smoothing`: γ_h, above 0 and at most 1.
    - `floor`: δ, at least 0 and below 1.
    - `warmup`: fraction of the run, at least 0 and below 1.
    """

    probes: Sequence[Probe] = ()

    def __init__(
        self,
        prior: Mapping[str, float],
        credit: float = 0.5,
        smoothing: float = 0.1,
        credit_smoothing: float = 0.1,
        floor: float = 0.01,
        warmup: float = 0.05,
    ) -> None:
        if not credit >= 0:
            raise PolicyError(f"credit is {credit}: it must be at least 0")
        for name, value in (("smoothing", smoothing), ("credit_smoothing", credit_smoothing)):
            if not 0 < value <= 1:
                raise PolicyError(f"{name} is {value}: it must be above 0 and at most 1")
        for name, value in (("floor", floor), ("warmup", warmup)):
            if not 0 <= value < 1:
                raise PolicyError(f"{name} is {value}: it must be at least 0 and below 1")
        self._prior = dict(prior)
        self._credit = credit
        self._smoothing = smoothing
        self._credit_smoothing = credit_smoothing
        self._floor = floor
        self._warmup = warmup
        self._recent: dict[str, float] = {}
        self._mean: dict[str, float] = {}
        self._next: dict[str, float] = {}
        self._laws: dict[str, Law] = {}

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the next mixture: the prior until there are laws.

        A domain that joins later has weight 1/K in the prior.
        """
        return _over(so_far.names, self._next or self._prior)

    def learn(self, so_far: Trajectory) -> Metrics:
        names = so_far.names
        executed = so_far.last_mixture
        assert executed is not None, "learn is called after an interval"
        recent, mean = (
            _over(names, known or executed.as_dict()).weights_K
            for known in (self._recent, self._mean)
        )
        weights_K = executed.weights_K
        recent_K = recent + self._credit_smoothing * (weights_K - recent)
        mean_K = mean + (weights_K - mean) / len(so_far)
        self._recent = dict(zip(names, recent_K.tolist(), strict=True))
        self._mean = dict(zip(names, mean_K.tolist(), strict=True))
        fitted = self._refit(so_far) if so_far.last.progress >= self._warmup else {}
        laws = {name: self._laws[name] for name in names if name in self._laws}
        if not laws:
            return {"laws": None}
        tokens = float(so_far.tokens_T1()[-1])
        speeds = {name: law.speed(tokens) for name, law in laws.items()}
        self._next = self._steer(names, speeds, recent_K, mean_K).as_dict()
        new = {name: law._asdict() for name, law in laws.items() if name in fitted}
        return {"laws": new, "speeds": speeds}

    def _steer(
        self, names: Sequence[str], speeds: Mapping[str, float], recent_K: Any, mean_K: Any
    ) -> Mixture:
        typical = float(np.mean(list(speeds.values())))
        speeds_K = np.array([speeds.get(name, typical) for name in names])
        prior_K = _over(names, self._prior).weights_K
        preferred_K = prior_K * recent_K**self._credit * speeds_K
        if not preferred_K.sum() > 0:  # no loss decreases any more
            preferred_K = prior_K
        aim_K = preferred_K / preferred_K.sum()
        mixed = Mixture.normalise(names, self._smoothing * aim_K + (1 - self._smoothing) * mean_K)
        floor_K = np.full(len(names), min(self._floor, 1 / len(names)))
        return nearest_within(mixed, floor_K, np.ones(len(names)))

    def _refit(self, so_far: Trajectory) -> Mapping[str, int]:
        """Fit the laws whose turn it is, of domains with enough measured losses. Return the turn.

        Intervals of the first half of the warm-up are not used.
        """
        names = so_far.names
        turn = (len(so_far) - 1) * _MOST_FITS
        places = [(turn + i) % len(names) for i in range(min(_MOST_FITS, len(names)))]
        now = {names[k]: k for k in places}
        tokens_T = so_far.tokens_T1()
        first = self._first(so_far)
        steps = np.unique(np.linspace(first, len(so_far), _MOST_POINTS).astype(int))
        # The mean loss of an interval belongs to its middle.
        middle_P = 0.5 * (tokens_T[steps - 1] + tokens_T[steps])
        losses_PD = np.array([_losses(so_far.at(t), names, now) for t in steps.tolist()])
        for name, losses_P in zip(now, losses_PD.T, strict=True):
            known_P = np.isfinite(losses_P)
            if known_P.sum() >= _FEWEST_POINTS:
                self._laws[name] = fit_law(middle_P[known_P], losses_P[known_P])
            else:
                self._laws.pop(name, None)
        return now

    def _first(self, so_far: Trajectory) -> int:
        """Return the first interval that is used, by bisection: progress never falls."""
        start = self._warmup / 2
        return max(1, bisect_left(range(len(so_far)), start, key=lambda t: so_far.at(t).progress))

    def settings(self) -> dict[str, Any]:
        return {
            "prior": dict(self._prior),
            "credit": self._credit,
            "smoothing": self._smoothing,
            "credit_smoothing": self._credit_smoothing,
            "floor": self._floor,
            "warmup": self._warmup,
        }

    def state_dict(self) -> State:
        shares = {"recent": self._recent, "mean": self._mean, "next": self._next}
        laws = {name: list(law) for name, law in self._laws.items()}
        return {**{name: dict(share) for name, share in shares.items()}, "laws": laws}

    def load_state_dict(self, state: State) -> None:
        self._recent = dict(state["recent"])
        self._mean = dict(state["mean"])
        self._next = dict(state["next"])
        self._laws = {name: Law(*law) for name, law in state.get("laws", {}).items()}


def _over(names: Sequence[str], shares: Mapping[str, float]) -> Mixture:
    """Return the mixture over `names` with the given shares; a missing share counts as 1/K."""
    return Mixture.normalise(names, [shares.get(name, 1.0 / len(names)) for name in names])


def _losses(signals: Signals, names: tuple[str, ...], wanted: Mapping[str, int]) -> FloatArray:
    """Return the losses of the `wanted` domains, NaN where there is none.

    `wanted` gives their places among `names`, those of the newest signals.
    """
    loss_K = np.where(signals.loss.present, signals.loss.values, np.nan)
    if signals.names == names:
        return loss_K[list(wanted.values())]
    known = dict(zip(signals.names, loss_K.tolist(), strict=True))
    return np.array([known.get(name, np.nan) for name in wanted])

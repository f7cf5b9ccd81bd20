"""Random walk on the simplex: the baseline that shows what any movement at all is worth.

    α_0 = natural shares        ln α_{t+1} = ln α_t + σ z_t + const,   z_t ~ N(0, 1) by domain

A step multiplies each share by a log-normal factor. Small and large domains therefore move alike, and every mixture can be
reached. Data Mixing Agent (arXiv 2507.15640 §4) has such a baseline, but its paper does not give the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Metrics, Policy, Probe, State
from cuvee.core.registry import register_method, register_policy
from cuvee.core.trajectory import Run, Trajectory

_LEAST = 1e-3  # of a uniform share: where a domain with no share at all starts


@register_method("random_walk")
@dataclass(frozen=True)
class RandomWalk:
    step: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        RandomWalkPolicy(
            self.seed, self.step
        )  # refuses a bad value now and not when the run starts

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return RandomWalkPolicy(self.seed, self.step)


@register_policy("random_walk")
class RandomWalkPolicy:
    """`step` is σ. The mixture is a function of settings and history alone."""

    probes: Sequence[Probe] = ()

    def __init__(self, seed: int = 0, step: float = 0.2) -> None:
        if not step > 0:
            raise PolicyError(f"step is {step}: it must be above 0")
        self._seed, self._step = seed, step

    def mixture(self, so_far: Trajectory) -> Mixture:
        K, last = len(so_far.names), so_far.last_mixture
        shares = (last or Mixture.natural(so_far.domains)).as_dict()
        log_K = np.log(np.maximum([shares.get(name, 0.0) for name in so_far.names], _LEAST / K))
        if last is not None:
            log_K += self._step * np.random.default_rng([self._seed, len(so_far)]).normal(size=K)
        return Mixture.normalise(so_far.names, np.exp(log_K - log_K.max()))

    def learn(self, so_far: Trajectory) -> Metrics:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"seed": self._seed, "step": self._step}

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass

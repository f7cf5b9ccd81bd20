"""Random walk on the simplex: a baseline that shows the effect of random changes of the mixture.

    α_0 = natural shares
    ln α_{t+1} = ln α_t + σ z_t + const,   z_t ~ N(0, 1) for each domain

A step multiplies each weight by a log-normal factor. The relative change is the same for small and
large domains, and every mixture can be reached. Data Mixing Agent (arXiv 2507.15640 §4) has such a
baseline but does not give its distribution.
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

_LEAST = 1e-3  # fraction of 1/K from which a domain with weight 0 starts


@register_method("random_walk")
@dataclass(frozen=True)
class RandomWalk:
    """The baseline. `step` is σ."""

    step: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        # Raises for a bad value here, not when the run starts.
        RandomWalkPolicy(self.seed, self.step)

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return ()

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        return RandomWalkPolicy(self.seed, self.step)


@register_policy("random_walk")
class RandomWalkPolicy:
    """The policy of the random walk. `step` is σ.

    The mixture depends on the settings and the history only.
    """

    probes: Sequence[Probe] = ()

    def __init__(self, seed: int = 0, step: float = 0.2) -> None:
        if not step > 0:
            raise PolicyError(f"step is {step}: it must be above 0")
        self._seed = seed
        self._step = step

    def mixture(self, so_far: Trajectory) -> Mixture:
        K = len(so_far.names)
        last = so_far.last_mixture
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

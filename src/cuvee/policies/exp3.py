"""`Exp3`: online data mixing as a bandit whose reward is the training loss.

Source: ODM, Albalak et al. 2023, arXiv 2312.02406, §3.

    R̂_i ← ξ R̂_i + (1 − ξ) ℓ_i / α_i               for every domain i drawn in the interval
    α_i = (1 − K ε_t) softmax(ε_{t−1} R̂)_i + ε_t
    ε_t = min(1/K, √(ln K / (K t)))               t counts optimizer steps

The paper changes its weights in every step. With t in intervals instead, the first K ln K intervals
would be uniform: most of a short run. Exploration therefore ends after K ln K steps.

Deviations: the paper draws one domain per batch and updates one arm. Here a batch is mixed, so
every domain that was drawn is updated, and the others keep their R̂. The softmax subtracts the
maximum, so it cannot overflow in long runs. R̂ is stored by domain name; a domain that joins later
starts from the mean of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.trajectory import Trajectory


@register_policy("exp3")
class Exp3:
    """The Exp3 bandit policy.

    `smoothing` is ξ, at least 0 and below 1: the fraction of the old reward estimate that is kept
    per interval.
    """

    probes: Sequence[Probe] = ()

    def __init__(self, smoothing: float = 0.9) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise PolicyError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
        self._smoothing = smoothing
        self._rewards: dict[str, float] = {}

    def mixture(self, so_far: Trajectory) -> Mixture:
        K = len(so_far.names)
        t = so_far.last.step
        logits_K = _exploration(K, t) * self._rewards_K(so_far.names)
        softmax_K = np.exp(logits_K - logits_K.max())
        softmax_K /= softmax_K.sum()
        floor = _exploration(K, t + 1)
        return Mixture.normalise(so_far.names, (1.0 - K * floor) * softmax_K + floor)

    def learn(self, so_far: Trajectory) -> Metrics:
        executed = so_far.last_mixture
        after = so_far.last
        assert executed is not None, "learn is called after an interval"
        rewards_K = self._rewards_K(so_far.names)
        drawn_K = after.loss.present & (executed.weights_K > 0)
        importance_K = after.loss.values[drawn_K] / executed.weights_K[drawn_K]
        rewards_K[drawn_K] = (
            self._smoothing * rewards_K[drawn_K] + (1.0 - self._smoothing) * importance_K
        )
        self._rewards = dict(zip(so_far.names, rewards_K.tolist(), strict=True))
        return {"reward": dict(self._rewards)}

    def _rewards_K(self, names: Sequence[str]) -> FloatArray:
        known = [self._rewards[name] for name in names if name in self._rewards]
        newcomer = float(np.mean(known)) if known else 0.0
        return np.array([self._rewards.get(name, newcomer) for name in names], dtype=np.float64)

    def settings(self) -> dict[str, Any]:
        return {"smoothing": self._smoothing}

    def state_dict(self) -> State:
        return {"rewards": dict(self._rewards)}

    def load_state_dict(self, state: State) -> None:
        self._rewards = dict(state["rewards"])


def _exploration(K: int, t: int) -> float:
    """Return ε_t, the smallest weight of a domain.

    It is 1/K, that is uniform weights, in the first K ln K steps.
    """
    return 1.0 / K if t == 0 else min(1.0 / K, math.sqrt(math.log(K) / (K * t)))

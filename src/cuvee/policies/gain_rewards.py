"""Rewards of agents that start from the closed form `Paced`: what the closed form did not foresee.

Of domain i in one interval, with mean gain x_i of its rows and standard error e_i:

    r_i = τ (x_i − m_i) / (τ² + e_i²)      m_i: the estimate before the interval, τ as in
                                           `policies.gain_estimate`

r is in units of z. If the estimates are right, its mean is 0, and the best mixture is that of the
closed form. Noise is shrunken as in z. Rewards of scarce domains are 0, because a plan gives their
weights.

HDS adds two terms, each with mean 0 over the domains:

    quality     progress times the domain's score
    stability   −(variance of the domain's gains): steps that disturb the objective cost something
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.protocols import Probe, State
from cuvee.core.registry import register_reward
from cuvee.core.trajectory import Trajectory
from cuvee.policies.gain_estimate import GainEstimate, RowGains, row_gains
from cuvee.policies.rewards import Reward, quality_scores
from cuvee.probes.target_gain import TargetGain

_LARGEST = 5.0  # larger rewards are outliers


@register_reward("gain")
class GainReward:
    """The reward above. `kept`, `objective`, `probe` and `noise` are settings of `Paced`."""

    def __init__(
        self,
        kept: float = 0.97,
        objective: Mapping[str, float] | None = None,
        probe: Mapping[str, Any] | None = None,
        noise: int | None = None,
    ) -> None:
        self._noise = noise
        self._estimate = GainEstimate(kept, noise)
        self.probes: Sequence[Probe] = (TargetGain(objective=objective or {}, **(probe or {})),)

    def __call__(self, so_far: Trajectory, free_K: BoolArray) -> Reward | None:
        """Return the reward, or None while there is no estimate or if nothing was measured."""
        return self.with_terms(so_far, free_K, 1.0, {})

    def with_terms(
        self,
        so_far: Trajectory,
        free_K: BoolArray,
        weight: float,
        terms_K: Mapping[str, FloatArray],
    ) -> Reward | None:
        """Return `weight` times the reward, with more terms (K,) added."""
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        gains = row_gains(so_far.last, self._noise)
        gain_K = None if gains is None else self._unforeseen(so_far, gains, free_K)
        self._estimate.add(so_far.last)
        if gain_K is None:
            return None
        terms_K = {"gain": weight * gain_K, **terms_K}
        vector_K: FloatArray = np.sum(list(terms_K.values()), axis=0)
        terms = {name: float(mixture.weights_K @ term_K) for name, term_K in terms_K.items()}
        return Reward(vector_K, float(mixture.weights_K @ vector_K), terms)

    def _unforeseen(
        self, so_far: Trajectory, gains: RowGains, free_K: BoolArray
    ) -> FloatArray | None:
        expected = self._estimate.gains(so_far.names, free_K)
        tau = expected.deviation
        if tau == 0.0:
            return None
        rows_K = np.maximum(gains.rows_K, 1.0)
        error_K = self._estimate.row_deviation(so_far.names) / np.sqrt(rows_K)
        surprise_K = gains.mean.values - expected.centre - tau * expected.z_K
        shrunken_K = tau * surprise_K / (tau**2 + error_K**2)
        reward_K: FloatArray = np.clip(shrunken_K, -_LARGEST, _LARGEST)
        return np.where(free_K & gains.mean.present, reward_K, 0.0)

    def state_dict(self) -> State:
        return self._estimate.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._estimate.load_state_dict(state)


@register_reward("holistic")
class HolisticReward:
    """Gain, quality and stability, weighted by `weights`.

    `quality` is the name of a domain score, or scores by domain name. The rest as in `GainReward`.
    """

    def __init__(
        self,
        weights: tuple[float, float, float] = (1.0, 0.1, 0.1),
        quality: str | Mapping[str, float] = "mtld",
        **gain: Any,
    ) -> None:
        self._weights = weights
        self._quality = quality
        self._noise = gain.get("noise")
        self._gain = GainReward(**gain)
        self.probes: Sequence[Probe] = self._gain.probes

    def __call__(self, so_far: Trajectory, free_K: BoolArray) -> Reward | None:
        for_gain, for_quality, for_stability = self._weights
        terms_K: dict[str, FloatArray] = {}
        if for_quality:
            quality_K = so_far.last.progress * quality_scores(so_far, self._quality)
            terms_K["quality"] = for_quality * _centred(quality_K, free_K)
        gains = row_gains(so_far.last, self._noise)
        if for_stability and gains is not None:
            variance_K = np.clip(gains.square.values - gains.mean.values**2, 0.0, _LARGEST)
            terms_K["stability"] = -for_stability * _centred(variance_K, free_K)
        return self._gain.with_terms(so_far, free_K, for_gain, terms_K)

    def state_dict(self) -> State:
        return self._gain.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._gain.load_state_dict(state)


def _centred(x_K: FloatArray, among_K: BoolArray) -> FloatArray:
    """Return x minus its mean over the domains of `among_K`; 0 elsewhere."""
    return np.where(among_K, x_K - x_K[among_K].mean(), 0.0) if among_K.any() else 0.0 * x_K

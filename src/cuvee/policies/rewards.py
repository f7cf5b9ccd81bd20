"""Rewards of agents, computed from raw signals. A trajectory stores no rewards.

    W_i = ⟨g_i, Σ_{j≠i} v_j g_j⟩                   how domain i helps the other valued domains
                                                   (AC-ODM, arXiv 2505.23878 §3)
    W̃_i = W_i / (‖g_i‖ ‖Σ_{j≠i} v_j g_j‖)          the same as a cosine, within ±1
    r̂_i ← ξ r̂_i + (1 − ξ) W̃_i / (K α_i)            smoothed, importance-corrected: vector reward
    Σ_i α_i W̃_i                                    scalar reward of AC-ODM
    U_i = Σ_j v_j ⟨∇ℓ_i, ∇ℓ_j⟩,  r_i = Ū_i / mean_v Ū      the gain; it includes j = i
    w_a Σ_i α_i r_i + w_q t′ Σ_i α_i q_i + w_s min(1/Σ_l |Δ‖w_l‖|, 5)
                                                   scalar reward of HDS (arXiv 2606.24133 §3)

Deviations from the papers:

- The papers use W_i, which shrinks by orders of magnitude as gradients shrink, so that the critic
  must follow its scale. The cosine W̃_i keeps its scale. HDS uses the gain r_i here.
- In the papers all values v are 1, so junk domains are rewarded for alignment with other junk. Here
  v is 1 for domains that have a validation loss and 0 for others, unless the user says which
  domains count.
- In the importance correction, α_i is at least `least_weight`/K. Otherwise one rarely drawn domain
  would dominate.
- Rewards are not z-scored over domains, because the mean would then be 0 whatever the agent does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe, State
from cuvee.core.registry import register_reward
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.probes.alignment import UNBIASED, GradientAlignment
from cuvee.probes.norms import WeightNorms

_LARGEST_GAIN = 3.0


@dataclass(frozen=True)
class Reward:
    """The reward of one interval.

    `vector_K` has one entry per domain, and `scalar` is one number. `terms` are the summands of
    `scalar`, for the log.
    """

    vector_K: FloatArray
    scalar: float
    terms: Mapping[str, float] = field(default_factory=dict)


class RewardFunction(Protocol):
    """Computes the reward of each interval. It may have a state."""

    @property
    def probes(self) -> Sequence[Probe]: ...

    def __call__(self, so_far: Trajectory) -> Reward | None:
        """Return the reward of the last interval, or None if an input was not measured.

        Called once per interval, in order.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def valued_alignment(gram: Measured, values_K: FloatArray) -> Measured:
    """Return W̃ (K,): the cosine of each domain's gradient with the valued sum of the others'.

    `gram` (K, K) holds ⟨g_i, g_j⟩. The result is absent for a domain without a gradient, and where
    one of the two vectors is 0.
    """
    present_K = gram.present.diagonal()
    gram_KK = np.where(np.outer(present_K, present_K), gram.values, 0.0)
    values_K = np.where(present_K, values_K, 0.0)
    diagonal_K = gram_KK.diagonal()
    towards_K = gram_KK @ values_K
    alignment_K = towards_K - values_K * diagonal_K
    # ‖Σ_{j≠i} v_j g_j‖²
    others_K = values_K @ towards_K - 2 * values_K * towards_K + values_K**2 * diagonal_K
    size_K = np.sqrt(np.maximum(others_K, 0.0) * np.maximum(diagonal_K, 0.0))
    measured_K = present_K & (size_K > 0)
    cosine_K = np.divide(alignment_K, size_K, out=np.zeros_like(alignment_K), where=measured_K)
    return Measured(np.clip(cosine_K, -1.0, 1.0), measured_K)


def values_of(so_far: Trajectory, given: Mapping[str, float] | None) -> FloatArray:
    """Return the values v (K,) of the domains.

    With `given`, they are taken from it by name; the default is 1. Without it, they are 1 for
    domains with a validation loss and 0 for others, or 1 for all if no domain has one. Domains that
    join later have value 1. Raises `PolicyError` if `given` names an unknown domain or all values
    are 0.
    """
    names = so_far.names
    if given:
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise PolicyError(
                f"values name {', '.join(unknown)}, but the run has {', '.join(names)}"
            )
        values_K = np.array([given.get(name, 1.0) for name in names], dtype=np.float64)
        if not values_K.any():
            raise PolicyError("all values are 0: at least one domain must count")
        return values_K
    first = so_far.signals[0]
    validated = first.probes.get("valid_loss")
    if validated is None or not validated.present.any():
        return np.ones(len(names))
    known = dict(zip(first.names, validated.present.tolist(), strict=True))
    return np.array([float(known.get(name, True)) for name in names])


@register_reward("gain")
class GainReward:
    """How much a step on each domain lowers the valued loss, relative to the average valued domain.

    It differs from `AlignmentReward` in three ways (see docs/lab/ac_odm.md for their effects):

    - A domain's effect on its own loss counts.
    - Inner products are unbiased (`GradientAlignment(halves=True)`). The cosine of noisy gradients
      depends on the length of a domain's rows.
    - Numerator and denominator are smoothed separately, with `smoothing`, and then divided. So 1 is
      the average, and junk gets 0.

    `values` as in `values_of`; gradients are measured every `stride` steps.
    """

    def __init__(
        self, smoothing: float = 0.9, values: Mapping[str, float] | None = None, stride: int = 1
    ) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise PolicyError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
        self._smoothing = smoothing
        self._values = dict(values or {})
        self._smoothed: dict[str, float] = {}
        self.probes: Sequence[Probe] = (GradientAlignment(stride=stride, halves=True),)

    def __call__(self, so_far: Trajectory) -> Reward | None:
        gram = so_far.last.probes.get(UNBIASED)
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        if gram is None or not gram.present.any():
            return None
        values_K = values_of(so_far, self._values)
        present_K = gram.present.diagonal()
        gain_K = np.where(gram.present, gram.values, 0.0) @ values_K
        for name, gain, present in zip(
            so_far.names, gain_K.tolist(), present_K.tolist(), strict=True
        ):
            if present:
                self._smoothed[name] = (
                    self._smoothing * self._smoothed.get(name, gain) + (1 - self._smoothing) * gain
                )
        smoothed_K = np.array([self._smoothed.get(name, 0.0) for name in so_far.names])
        known_K = values_K * np.array([name in self._smoothed for name in so_far.names])
        average = float(known_K @ smoothed_K) / max(float(known_K.sum()), 1e-12)
        if average <= 0.0:  # only noise so far
            return None
        gain_K = np.clip(smoothed_K / average, -_LARGEST_GAIN, _LARGEST_GAIN)
        scalar = float(mixture.weights_K @ gain_K)
        return Reward(gain_K, scalar, {"gain": scalar})

    def state_dict(self) -> State:
        return {"smoothed": dict(self._smoothed)}

    def load_state_dict(self, state: State) -> None:
        self._smoothed = dict(state["smoothed"])


@register_reward("alignment")
class AlignmentReward:
    """The reward of AC-ODM, with cosines.

    `smoothing` is ξ; `values` as in `values_of`; gradients are measured every `stride` steps.
    """

    def __init__(
        self,
        smoothing: float = 0.9,
        values: Mapping[str, float] | None = None,
        least_weight: float = 0.1,
        stride: int = 5,
    ) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise PolicyError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
        self._smoothing = smoothing
        self._values = dict(values or {})
        self._least_weight = least_weight
        self._smoothed: dict[str, float] = {}
        self.probes: Sequence[Probe] = (GradientAlignment(stride=stride),)

    def __call__(self, so_far: Trajectory) -> Reward | None:
        gram = so_far.last.probes.get("alignment")
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        if gram is None or not gram.present.any():
            return None
        alignment = valued_alignment(gram, values_of(so_far, self._values))
        smoothed_K = self._smooth(so_far.names, alignment, mixture)
        scalar = float(mixture.weights_K @ alignment.values)
        return Reward(smoothed_K, scalar, {"alignment": scalar})

    def _smooth(self, names: Sequence[str], alignment: Measured, mixture: Mixture) -> FloatArray:
        weights_K = np.maximum(mixture.weights_K, self._least_weight / len(names))
        for k, name in enumerate(names):
            if alignment.present[k]:
                # Divided by K, so that it is 1 for uniform weights and a cosine of 1.
                new = float(alignment.values[k] / weights_K[k]) / len(names)
                self._smoothed[name] = (
                    self._smoothing * self._smoothed.get(name, new) + (1 - self._smoothing) * new
                )
        return np.array([self._smoothed.get(name, 0.0) for name in names], dtype=np.float64)

    def state_dict(self) -> State:
        return {"smoothed": dict(self._smoothed)}

    def load_state_dict(self, state: State) -> None:
        self._smoothed = dict(state["smoothed"])


@register_reward("holistic")
class HolisticReward:
    """The reward of HDS: gain, quality and stability, weighted by `weights`.

    `quality` is the name of a domain score, or scores by domain name. `mtld` is measured when a
    corpus is built. `largest_calm` bounds the stability term.
    """

    def __init__(
        self,
        weights: tuple[float, float, float] = (1.0, 10.0, 10.0),
        quality: str | Mapping[str, float] = "mtld",
        largest_calm: float = 5.0,
        smoothing: float = 0.9,
        values: Mapping[str, float] | None = None,
        stride: int = 1,
    ) -> None:
        self._weights = weights
        self._quality = quality
        self._largest_stability = largest_calm
        self._values = dict(values or {})
        self._gain = GainReward(smoothing, values, stride)
        self.probes: Sequence[Probe] = (*self._gain.probes, WeightNorms())

    def __call__(self, so_far: Trajectory) -> Reward | None:
        gain = self._gain(so_far)
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        if gain is None:
            return None
        for_influence, for_quality, for_stability = self._weights
        quality_K = so_far.last.progress * self._quality_K(so_far)
        stability = self._stability(so_far.last, so_far.signals[-2])
        terms = {
            "influence": for_influence * gain.scalar,
            "quality": for_quality * float(mixture.weights_K @ quality_K),
            "stability": for_stability * stability,
        }
        vector_K = for_influence * gain.vector_K + for_quality * quality_K + terms["stability"]
        return Reward(vector_K, sum(terms.values()), terms)

    def _quality_K(self, so_far: Trajectory) -> FloatArray:
        """Return each domain's score, relative to the largest, times its value; from 0 to 1.

        The division makes the weight of this term independent of the score's scale. The value is a
        factor because random text has the highest diversity and is not wanted.
        """
        scores: Mapping[str, float]
        if isinstance(self._quality, str):
            scores = {
                d.name: d.scores[self._quality] for d in so_far.domains if self._quality in d.scores
            }
        else:
            scores = self._quality
        missing = [name for name in so_far.names if name not in scores]
        if missing:
            raise PolicyError(
                f"no quality score {self._quality!r} for {', '.join(missing)}: "
                "name a score that all domains have"
            )
        quality_K = np.array([scores[name] for name in so_far.names]) * values_of(
            so_far, self._values
        )
        return quality_K / max(float(quality_K.max()), 1e-12)

    def _stability(self, now: Signals, before: Signals) -> float:
        """Return min(1/Σ_l |Δ‖w_l‖|, `largest_calm`), or 0 if the norms were not measured twice."""
        new = now.probes.get("weight_norms")
        old = before.probes.get("weight_norms")
        if new is None or old is None or new.shape != old.shape:
            return 0.0
        moved = float(np.abs(new.values - old.values)[new.present & old.present].sum())
        return min(1.0 / moved, self._largest_stability) if moved > 0 else self._largest_stability

    def state_dict(self) -> State:
        return self._gain.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._gain.load_state_dict(state)


@register_reward("random")
class RandomReward:
    """Random rewards, for ablations.

    The gain is measured so that the cost is the same, and then noise from −1 to 1 is returned.
    """

    def __init__(self, seed: int = 0, **gain: Any) -> None:
        self._seed = seed
        self.probes: Sequence[Probe] = GainReward(**gain).probes

    def __call__(self, so_far: Trajectory) -> Reward | None:
        noise_K = np.random.default_rng([self._seed, len(so_far)]).uniform(
            -1.0, 1.0, len(so_far.names)
        )
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        scalar = float(mixture.weights_K @ noise_K)
        return Reward(noise_K, scalar, {"noise": scalar})

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass

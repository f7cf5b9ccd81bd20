"""What an agent is rewarded for, from raw signals. Rewards are views: a trajectory stores none of them.

    W_i = ⟨g_i, Σ_{j≠i} v_j g_j⟩                        how domain i helps the valued others (AC-ODM, arXiv 2505.23878 §3)
    W̃_i = W_i / (‖g_i‖ ‖Σ_{j≠i} v_j g_j‖)               the same as a cosine, within ±1
    r̂_i ← ξ r̂_i + (1 − ξ) W̃_i / α_i                    smoothed and importance-corrected: the vector reward
    Σ_i α_i W̃_i                                         the scalar reward of AC-ODM
    w_a Σ_i α_i W̃_i + w_q t′ Σ_i α_i q_i + w_s min(1/Σ_l |Δ‖w_l‖|, 5)      the scalar reward of HDS (arXiv 2606.24133 §3)

Deviations. The papers use W_i itself, whose size falls by orders of magnitude while the gradients shrink, so that a critic chases
its scale; the cosine keeps it. The values v are all one in the papers, and then junk is rewarded for aligning with junk: here the
user can say which domains count. α_i is taken as at least `least_weight`/K in the correction, or one rarely drawn domain would
drown the others. No reward is z-scored over domains: the mean of such a vector is zero whatever the agent does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cuvee.core.errors import PolicyError
from cuvee.core.mixture import FloatArray, Mixture
from cuvee.core.protocols import Probe, State
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.norms import WeightNorms


@dataclass(frozen=True)
class Reward:
    """The reward of one interval: by domain, as one number, and the terms it is the sum of, for the log."""

    vector_K: FloatArray
    scalar: float
    terms: Mapping[str, float] = field(default_factory=dict)


class RewardFunction(Protocol):
    @property
    def probes(self) -> Sequence[Probe]: ...

    def __call__(self, so_far: Trajectory) -> Reward | None:
        """The reward of the last interval; None if what it needs was not measured. Called once an interval, in order."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def valued_alignment(gram: Measured, values_K: FloatArray) -> Measured:
    """W̃ (K,): the cosine between each domain's gradient and the valued sum of the others'. Absent for a domain without a
    gradient, and where one of the two is zero. `gram` is (K, K), ⟨g_i, g_j⟩."""
    present_K = gram.present.diagonal()
    gram_KK = np.where(np.outer(present_K, present_K), gram.values, 0.0)
    values_K = np.where(present_K, values_K, 0.0)
    diagonal_K, towards_K = gram_KK.diagonal(), gram_KK @ values_K
    alignment_K = towards_K - values_K * diagonal_K
    others_K = values_K @ towards_K - 2 * values_K * towards_K + values_K**2 * diagonal_K  # ‖Σ_{j≠i} v_j g_j‖²
    size_K = np.sqrt(np.maximum(others_K, 0.0) * np.maximum(diagonal_K, 0.0))
    measured_K = present_K & (size_K > 0)
    cosine_K = np.divide(alignment_K, size_K, out=np.zeros_like(alignment_K), where=measured_K)
    return Measured(np.clip(cosine_K, -1.0, 1.0), measured_K)


class AlignmentReward:
    """AC-ODM's. `smoothing` is ξ; `values` is v by name, 1 where not given."""

    def __init__(
        self,
        smoothing: float = 0.9,
        values: Mapping[str, float] | None = None,
        least_weight: float = 0.1,
        stride: int = 5,
    ) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise PolicyError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
        self._smoothing, self._values, self._least_weight = smoothing, dict(values or {}), least_weight
        self._smoothed: dict[str, float] = {}
        self.probes: Sequence[Probe] = (GradientAlignment(stride=stride),)

    def __call__(self, so_far: Trajectory) -> Reward | None:
        gram, mixture = so_far.last.probes.get("alignment"), so_far.last_mixture
        assert mixture is not None, "a reward is for an interval that is over"
        if gram is None or not gram.present.any():
            return None
        alignment = valued_alignment(gram, self.values_for(so_far.names))
        smoothed_K = self._smooth(so_far.names, alignment, mixture)
        scalar = float(mixture.weights_K @ alignment.values)
        return Reward(smoothed_K, scalar, {"alignment": scalar})

    def values_for(self, names: Sequence[str]) -> FloatArray:
        """v (K,). Raises `PolicyError` if a value names a domain that the run does not have."""
        unknown = sorted(set(self._values) - set(names))
        if unknown:
            raise PolicyError(f"values name {', '.join(unknown)}, but the run has {', '.join(names)}")
        return np.array([self._values.get(name, 1.0) for name in names], dtype=np.float64)

    def _smooth(self, names: Sequence[str], alignment: Measured, mixture: Mixture) -> FloatArray:
        weights_K = np.maximum(mixture.weights_K, self._least_weight / len(names))
        for k, name in enumerate(names):
            if alignment.present[k]:
                new = float(alignment.values[k] / weights_K[k]) / len(names)  # 1 at uniform weights and cosine 1
                self._smoothed[name] = self._smoothing * self._smoothed.get(name, new) + (1 - self._smoothing) * new
        return np.array([self._smoothed.get(name, 0.0) for name in names], dtype=np.float64)

    def state_dict(self) -> State:
        return {"smoothed": dict(self._smoothed)}

    def load_state_dict(self, state: State) -> None:
        self._smoothed = dict(state["smoothed"])


class HolisticReward:
    """HDS's three terms. `quality` names a score of the domains (`mtld` is measured when a corpus is built)."""

    def __init__(
        self,
        weights: tuple[float, float, float] = (1.0, 10.0, 10.0),
        quality: str | Mapping[str, float] = "mtld",
        largest_calm: float = 5.0,
        **alignment: Any,
    ) -> None:
        self._weights, self._quality, self._largest_calm = weights, quality, largest_calm
        self._alignment = AlignmentReward(**alignment)
        self.probes: Sequence[Probe] = (*self._alignment.probes, WeightNorms())

    def __call__(self, so_far: Trajectory) -> Reward | None:
        aligned, mixture = self._alignment(so_far), so_far.last_mixture
        assert mixture is not None, "a reward is for an interval that is over"
        if aligned is None:
            return None
        for_alignment, for_quality, for_calm = self._weights
        quality_K = so_far.last.progress * self._quality_K(so_far)
        calm = self._calm(so_far.last, so_far.signals[-2])
        terms = {
            "alignment": for_alignment * aligned.scalar,
            "quality": for_quality * float(mixture.weights_K @ quality_K),
            "stability": for_calm * calm,
        }
        vector_K = for_alignment * aligned.vector_K + for_quality * quality_K + for_calm * calm
        return Reward(vector_K, sum(terms.values()), terms)

    def _quality_K(self, so_far: Trajectory) -> FloatArray:
        """Each domain's score over the largest, within 0 and 1, so that another scale of quality needs no other weight."""
        scores: Mapping[str, float]
        if isinstance(self._quality, str):
            scores = {d.name: d.scores[self._quality] for d in so_far.domains if self._quality in d.scores}
        else:
            scores = self._quality
        missing = [name for name in so_far.names if name not in scores]
        if missing:
            raise PolicyError(
                f"no quality score {self._quality!r} for {', '.join(missing)}: name a score that all domains have"
            )
        quality_K = np.array([scores[name] for name in so_far.names], dtype=np.float64)
        return quality_K / max(float(quality_K.max()), 1e-12)

    def _calm(self, now: Signals, before: Signals) -> float:
        """min(1/Σ_l |Δ‖w_l‖|, 5); 0 where the norms were not measured twice."""
        new, old = now.probes.get("weight_norms"), before.probes.get("weight_norms")
        if new is None or old is None or new.shape != old.shape:
            return 0.0
        moved = float(np.abs(new.values - old.values)[new.present & old.present].sum())
        return min(1.0 / moved, self._largest_calm) if moved > 0 else self._largest_calm

    def state_dict(self) -> State:
        return self._alignment.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._alignment.load_state_dict(state)


class RandomReward:
    """The ablation: the alignment is measured, so that the cost is the same, and then noise of the same range is returned."""

    def __init__(self, seed: int = 0, **alignment: Any) -> None:
        self._alignment = AlignmentReward(**alignment)
        self._seed = seed
        self.probes: Sequence[Probe] = self._alignment.probes

    def __call__(self, so_far: Trajectory) -> Reward | None:
        noise_K = np.random.default_rng([self._seed, len(so_far)]).uniform(-1.0, 1.0, len(so_far.names))
        mixture = so_far.last_mixture
        assert mixture is not None, "a reward is for an interval that is over"
        scalar = float(mixture.weights_K @ noise_K)
        return Reward(noise_K, scalar, {"noise": scalar})

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass

"""Rewards of agents, computed from raw signals, and the published rewards of AC-ODM and HDS.

    W_i = ⟨g_i, Σ_{j≠i} v_j g_j⟩                   how domain i helps the other domains that count
                                                   (AC-ODM, arXiv 2505.23878 §3)
    W̃_i = W_i / (‖g_i‖ ‖Σ_{j≠i} v_j g_j‖)          the same as a cosine, within ±1
    r̂_i ← ξ r̂_i + (1 − ξ) W̃_i / (K α_i)            smoothed, importance-corrected: vector reward
    Σ_i α_i W̃_i                                    scalar reward of AC-ODM
    w_a Σ_i α_i W_i + w_q t′ Σ_i α_i q_i + w_s min(1/Σ_l |Δ‖w_l‖|, 5)
                                                   scalar reward of HDS (arXiv 2606.24133 §3)

A trajectory stores no rewards. The papers use W_i and count all domains (v = 1); the option
`published` does the same. Deviations without it:

- W_i shrinks by orders of magnitude as gradients shrink, so that the critic must follow its scale.
  The cosine W̃_i keeps its scale.
- With all v = 1, junk domains are rewarded for alignment with other junk. Here v is the objective.

In the importance correction, α_i is at least `least_weight`/K, with and without `published`.
Otherwise one rarely drawn domain would dominate. Rewards are not z-scored over domains, because the
mean would then be 0 whatever the agent does.

The default rewards of AC-ODM and HDS are in `policies.gain_rewards`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe, State
from cuvee.core.registry import register_reward
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.objective import objective_K
from cuvee.probes.alignment import GradientAlignment
from cuvee.probes.norms import WeightNorms


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

    def __call__(self, so_far: Trajectory, free_K: BoolArray) -> Reward | None:
        """Return the reward of the last interval, or None if an input was not measured.

        `free_K` (K,) marks the domains whose weights the agent chooses. The weights of the others
        are given by a plan. Called once per interval, in order.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def valued_alignment(gram: Measured, values_K: FloatArray, cosine: bool = True) -> Measured:
    """Return W̃ (K,), or W if not `cosine`: alignment with the valued sum of the others' gradients.

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
    if not cosine:
        return Measured(np.where(measured_K, alignment_K, 0.0), measured_K)
    cosine_K = np.divide(alignment_K, size_K, out=np.zeros_like(alignment_K), where=measured_K)
    return Measured(np.clip(cosine_K, -1.0, 1.0), measured_K)


@register_reward("alignment")
class AlignmentReward:
    """The reward of AC-ODM.

    `smoothing` is ξ; `objective` as in `policies.objective`; gradients are measured every `stride`
    steps. With `published`, W is used instead of W̃, and all domains count.
    """

    def __init__(
        self,
        smoothing: float = 0.9,
        objective: Mapping[str, float] | None = None,
        least_weight: float = 0.1,
        stride: int = 5,
        published: bool = False,
    ) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise PolicyError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
        self._smoothing = smoothing
        self._objective = dict(objective or {})
        self._least_weight = least_weight
        self._published = published
        self._smoothed: dict[str, float] = {}
        self.probes: Sequence[Probe] = (GradientAlignment(stride=stride),)

    def __call__(self, so_far: Trajectory, free_K: BoolArray) -> Reward | None:
        gram = so_far.last.probes.get("alignment")
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        if gram is None or not gram.present.any():
            return None
        counts_K = np.ones(len(so_far.names))
        if not self._published:
            counts_K = objective_K(so_far, self._objective)
        alignment = valued_alignment(gram, counts_K, cosine=not self._published)
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


@register_reward("holistic_published")
class PublishedHolisticReward:
    """The published reward of HDS: alignment, quality and stability, weighted by `weights`.

    `quality` is the name of a domain score, or scores by domain name. `mtld` is measured when a
    corpus is built. `largest_stability` bounds the stability term.
    """

    def __init__(
        self,
        weights: tuple[float, float, float] = (1.0, 10.0, 10.0),
        quality: str | Mapping[str, float] = "mtld",
        largest_stability: float = 5.0,
        smoothing: float = 0.9,
        objective: Mapping[str, float] | None = None,
        stride: int = 5,
    ) -> None:
        self._weights = weights
        self._quality = quality
        self._largest_stability = largest_stability
        self._alignment = AlignmentReward(smoothing, objective, stride=stride, published=True)
        self.probes: Sequence[Probe] = (*self._alignment.probes, WeightNorms())

    def __call__(self, so_far: Trajectory, free_K: BoolArray) -> Reward | None:
        alignment = self._alignment(so_far, free_K)
        mixture = so_far.last_mixture
        assert mixture is not None, "rewards are for finished intervals"
        if alignment is None:
            return None
        for_alignment, for_quality, for_stability = self._weights
        quality_K = so_far.last.progress * quality_scores(so_far, self._quality)
        stability = self._stability(so_far.last, so_far.at(len(so_far) - 1))
        terms = {
            "alignment": for_alignment * alignment.scalar,
            "quality": for_quality * float(mixture.weights_K @ quality_K),
            "stability": for_stability * stability,
        }
        vector_K = for_alignment * alignment.vector_K + for_quality * quality_K
        return Reward(vector_K + terms["stability"], sum(terms.values()), terms)

    def _stability(self, now: Signals, before: Signals) -> float:
        """Return min(1/Σ_l |Δ‖w_l‖|, 5), or 0 if the norms were not measured twice."""
        new = now.probes.get("weight_norms")
        old = before.probes.get("weight_norms")
        if new is None or old is None or new.shape != old.shape:
            return 0.0
        moved = float(np.abs(new.values - old.values)[new.present & old.present].sum())
        return min(1.0 / moved, self._largest_stability) if moved > 0 else self._largest_stability

    def state_dict(self) -> State:
        return self._alignment.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._alignment.load_state_dict(state)


def quality_scores(so_far: Trajectory, quality: str | Mapping[str, float]) -> FloatArray:
    """Return each domain's score relative to the largest (K,).

    `quality` is the name of a domain score, or scores by domain name. Raises `PolicyError` if a
    domain has none.
    """
    scores = quality
    if isinstance(scores, str):
        scores = {d.name: d.scores[scores] for d in so_far.domains if scores in d.scores}
    missing = [name for name in so_far.names if name not in scores]
    if missing:
        raise PolicyError(
            f"no quality score {quality!r} for {', '.join(missing)}: "
            "name a score that all domains have"
        )
    scores_K: FloatArray = np.array([scores[name] for name in so_far.names], dtype=np.float64)
    return scores_K / max(float(scores_K.max()), 1e-12)

"""What the Data Mixing Agent sees of a run (arXiv 2507.15640 §3): features of every moment, one call a moment, O(K).

The paper's state is ρ_0, the mixtures so far, the feedback so far and progress, over 52 fixed domains. Ours says the same of any
domains, without their names or their order: weights and shares are relative to uniform, on a logarithmic scale, so that they
mean the same at 2 domains as at 104; what is absent is 0 with a flag beside it; everything is clipped to ±3, so that a run
unlike those learned from cannot drive the policy out of the range that it knows.

The features of a moment depend on it and on running sums alone. The network that reads them has the moments before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cuvee.agents.base import Observation, check_observation
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, available_K, natural_K
from cuvee.core.epochs import TokensRead
from cuvee.core.errors import PolicyError
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.core.views import prefixes
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.heuristics import role_shares

HISTORY_FEATURES = (
    "reference",  # ½ ln(K ρ) of the reference mixture; `HistoryActor` leans on this one
    "last",  # ½ ln(K α) of the mixture in force, ρ_0 at first; and on this one
    "weight",  # K α − 1 of the mixture in force
    "target",  # 1 for a domain that is to be learned
    "share_in_role",  # ½ ln of its share of the tokens of its role, relative to uniform there
    "share",  # ½ ln(K · its share of all tokens)
    "epochs",  # ln(1 + tokens drawn so far / tokens available)
    "loss",  # 5 (ℓ / its first known value − 1); 0 where absent
    "loss_known",
)
HISTORY_GLOBALS = (
    "progress",
    "feedback",  # 5 e_t
    "general",  # 5 e_t of the general questions alone
    "target",  # and of the target's
    "feedback_change",  # 50 (e_t − e_{t−1}); 0 where either is absent
    "feedback_known",
    "target_weight",  # target domains' share of the mixture in force
    "target_drawn",  # and of the tokens drawn so far
    "target_share",  # and of the tokens available
    "domains",  # ¼ ln K
)
_CLIP = 3.0
_LEAST = np.exp(-2 * _CLIP)


def reference_mixture(domains: tuple[Domain, ...]) -> FloatArray:
    """(K,) half for source domains and half for target domains, each in proportion to its tokens: what an untrained policy
    plays. Raises `PolicyError` if there is nothing to divide between."""
    parts = [role_shares(domains, role) for role in ("source", "target")]
    for role, part_K in zip(("source", "target"), parts, strict=True):
        if not part_K.any():
            raise PolicyError(
                f"this policy divides a run between source domains, which are not to be forgotten, and target domains, which "
                f"are to be learned; of {', '.join(domain.name for domain in domains)} none is a {role} domain with tokens: "
                "build the corpus with --target NAME, or take another policy for training from scratch"
            )
    return 0.5 * (parts[0] + parts[1])


class HistoryEncoder:
    """Observes the moments of one run in order. Sums by domain are kept by name, so domains may come and go."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self._parts = {
            "feedback": feedback,
            "general": replace(feedback, weight=1.0),
            "target": replace(feedback, weight=0.0),
        }
        self._first: Signals | None = None
        self._before: float | None = None
        self._read = TokensRead()
        self._first_loss: dict[str, float] = {}
        self.timesteps = 0

    def observe(self, so_far: Trajectory) -> Observation:
        """(K, 9) features by domain and (10,) of the run at the newest moment, float32, each within ±3.

        Raises `PolicyError` if there are no source or no target domains, and then has not observed it.
        """
        assert len(so_far) == self.timesteps, "each moment is observed once, in order"
        now, domains = so_far.last, so_far.domains
        reference_K, source_K = reference_mixture(domains), role_shares(domains, "source")
        in_force = so_far.last_mixture
        weights_K = source_K if in_force is None else in_force.to(now.names).weights_K
        first = self._first or now
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # against a base score of almost nothing, absent
            said = {name: _finite(part.at(first, now)) for name, part in self._parts.items()}
        self._first, self.timesteps = first, self.timesteps + 1
        self._read.add(now)
        drawn_K = self._read.of(now.names)
        observation = Observation(
            self._of_domains(domains, reference_K, weights_K, drawn_K, self._relative(now)),
            self._of_run(now, weights_K, drawn_K, said),
        )
        self._before = said["feedback"]
        check_observation(observation)
        return observation

    def _of_domains(
        self,
        domains: tuple[Domain, ...],
        reference_K: FloatArray,
        weights_K: FloatArray,
        drawn_K: FloatArray,
        loss: Measured,
    ) -> npt.NDArray[np.float32]:
        K = len(domains)
        target_K = _targets(domains)
        in_role_K = 2 * reference_K * np.where(target_K > 0, target_K.sum(), K - target_K.sum())
        columns = [
            _log(K * reference_K),
            _log(K * weights_K),
            K * weights_K - 1,
            target_K,
            _log(in_role_K),
            _log(K * natural_K(domains)),
            np.log1p(drawn_K / np.maximum(available_K(domains), 1.0)),
            loss.values,
            loss.present,
        ]
        return _clipped(np.stack(columns, axis=1))

    def _of_run(
        self,
        now: Signals,
        weights_K: FloatArray,
        drawn_K: FloatArray,
        said: dict[str, float | None],
    ) -> npt.NDArray[np.float32]:
        target_K, e = _targets(now.domains), said["feedback"]
        change = 0.0 if e is None or self._before is None else e - self._before
        shares_K = natural_K(now.domains)
        numbers = [
            now.progress,
            *(5.0 * (said[name] or 0.0) for name in self._parts),
            50.0 * change,
            float(e is not None),
            *(
                float(target_K @ share_K)
                for share_K in (weights_K, drawn_K / max(drawn_K.sum(), 1.0), shares_K)
            ),
            0.25 * np.log(len(target_K)),
        ]
        return _clipped(np.array(numbers))

    def _relative(self, now: Signals) -> Measured:
        """(K,) 5 (ℓ / first ℓ − 1)."""
        for k in np.flatnonzero(now.loss.present):
            self._first_loss.setdefault(now.names[k], float(now.loss.values[k]))
        first_K = np.array([self._first_loss.get(name, 1.0) for name in now.names])
        ratio_K = np.clip(now.loss.values, 0.0, 1e6) / np.clip(first_K, 1e-6, 1e6)
        return Measured(5.0 * (ratio_K - 1.0), now.loss.present)


def encode_trajectory(trajectory: Trajectory, feedback: Feedback) -> Observation:
    """(T+1, K, 9) and (T+1, 10): what a `HistoryEncoder` observes of each moment, stacked.

    Where domains came or went on the way, only the moments since the last time they did, which are fewer.
    """
    encoder = HistoryEncoder(feedback)
    seen = [(so_far.names, encoder.observe(so_far)) for so_far in prefixes(trajectory)]
    names_now = trajectory.names
    start = max((t + 1 for t, (names, _) in enumerate(seen) if names != names_now), default=0)
    kept = [observation for _, observation in seen[start:]]
    return Observation(
        np.stack([observation.domains_KF for observation in kept]),
        np.stack([observation.globals_G for observation in kept]),
    )


def _targets(domains: tuple[Domain, ...]) -> FloatArray:
    return np.array([float(domain.is_target) for domain in domains])


def _clipped(features: FloatArray) -> npt.NDArray[np.float32]:
    within: npt.NDArray[np.float32] = np.clip(features, -_CLIP, _CLIP).astype(np.float32)
    return within


def _log(relative_K: FloatArray) -> FloatArray:
    """½ ln, and −3 for what is nothing."""
    return 0.5 * np.log(np.maximum(relative_K, _LEAST))


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None

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
import torch
from torch import Tensor

from cuvee.agents.base import Observation, check_observation
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, available_K, natural_K
from cuvee.core.epochs import TokensRead
from cuvee.core.errors import PolicyError
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Trajectory, prefixes
from cuvee.policies.feedback import Feedback
from cuvee.policies.history.features import Timestep
from cuvee.policies.history.heuristics import role_shares


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
        before, self._before = self._before, said["feedback"]
        seen = Timestep(
            reference_K=_tensor(reference_K),
            target_K=_tensor([domain.is_target for domain in domains]),
            natural_K=_tensor(natural_K(domains)),
            available_K=_tensor(available_K(domains)),
            weights_K=_tensor(weights_K),
            drawn_K=_tensor(self._read.of(now.names)),
            loss_K=_tensor(now.loss.values),
            first_loss_K=_tensor(self._first_losses(now)),
            loss_known_K=_tensor(now.loss.present),
            progress_1=_tensor([now.progress]),
            feedback_3=_tensor([said[name] or 0.0 for name in self._parts]),
            change_1=_tensor([_change(before, said["feedback"])]),
            feedback_known_1=_tensor([said["feedback"] is not None]),
        )
        observation = Observation(
            seen.domain_features().float().numpy(), seen.run_features().float().numpy()
        )
        check_observation(observation)
        return observation

    def _first_losses(self, now: Signals) -> FloatArray:
        """(K,) the first known loss of each domain, 1 where there is none yet."""
        for k in np.flatnonzero(now.loss.present):
            self._first_loss.setdefault(now.names[k], float(now.loss.values[k]))
        return np.array([self._first_loss.get(name, 1.0) for name in now.names])


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


def _tensor(values: npt.ArrayLike) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def _change(before: float | None, now: float | None) -> float:
    return 0.0 if before is None or now is None else now - before


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None

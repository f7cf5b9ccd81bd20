"""What the Data Mixing Agent sees of a run (arXiv 2507.15640 §3): features of every timestep.

The paper's state is ρ_0, all mixtures, all feedback and the progress, over 52 fixed domains. Our
features carry the same information for any domains, without their names or order:

- Weights and shares are relative to uniform and logarithmic, so they mean the same for 2 or 104
  domains.
- Absent values are 0, with a flag.
- Everything is clipped to ±3, so that an unusual run stays in the range that the policy was trained
  on.

Features depend on the timestep and on running sums only. The network that reads them sees earlier
timesteps itself. The cost is O(K) per timestep.
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
    """Return the (K,) reference mixture, which an untrained policy plays.

    Source domains together get one half, in proportion to their tokens. Target domains get the
    other half in the same way. Raises `PolicyError` if there are no source or no target domains
    with tokens.
    """
    parts = [role_shares(domains, role) for role in ("source", "target")]
    for role, part_K in zip(("source", "target"), parts, strict=True):
        if not part_K.any():
            raise PolicyError(
                "this policy divides a run between source domains (to be retained) and target "
                "domains (to be learned); of "
                f"{', '.join(domain.name for domain in domains)} none is a {role} domain with "
                "tokens: build the corpus with --target NAME, or use another policy to train "
                "from scratch"
            )
    return 0.5 * (parts[0] + parts[1])


class HistoryEncoder:
    """Encodes the timesteps of one run in order.

    Running sums are stored by domain name, so domains may be added or removed.
    """

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
        """Return (K, 9) domain features and (10,) global features of the newest timestep.

        They are float32 and clipped to ±3. Raises `PolicyError` if there are no source or no target
        domains; the encoder is then unchanged.
        """
        assert len(so_far) == self.timesteps, "each timestep is observed once, in order"
        now = so_far.last
        domains = so_far.domains
        reference_K = reference_mixture(domains)
        last = so_far.last_mixture
        weights_K = role_shares(domains, "source") if last is None else last.to(now.names).weights_K
        first = self._first or now
        # A base score near 0 overflows the ratio. The score then counts as absent.
        with np.errstate(over="ignore", invalid="ignore"):
            scores = {name: _finite(part.at(first, now)) for name, part in self._parts.items()}
        self._first = first
        self.timesteps += 1
        self._read.add(now)
        before = self._before
        self._before = scores["feedback"]
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
            feedback_3=_tensor([scores[name] or 0.0 for name in self._parts]),
            change_1=_tensor([_change(before, scores["feedback"])]),
            feedback_known_1=_tensor([scores["feedback"] is not None]),
        )
        observation = Observation(
            seen.domain_features().float().numpy(), seen.run_features().float().numpy()
        )
        check_observation(observation)
        return observation

    def _first_losses(self, now: Signals) -> FloatArray:
        """Return the (K,) first known loss of each domain, 1 where none is known yet."""
        for k in np.flatnonzero(now.loss.present):
            self._first_loss.setdefault(now.names[k], float(now.loss.values[k]))
        return np.array([self._first_loss.get(name, 1.0) for name in now.names])


def encode_trajectory(trajectory: Trajectory, feedback: Feedback) -> Observation:
    """Return the features of all timesteps: (T+1, K, 9) and (T+1, 10).

    If domains were added or removed, returns only the timesteps since the last such change.
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

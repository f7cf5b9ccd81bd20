"""What an agent sees of a run: a `Trajectory` → an `Observation`, for any number of domains.

The state of AC-ODM and HDS (arXiv 2505.23878 §3, 2606.24133 §3) is (samples drawn, losses, loss
changes, weight norms, their changes, progress).

Deviations from the papers. All make observations comparable between models, corpora and trainers,
so that a policy file can be used in other runs:

- Features are standardised over the domains of the same timestep, not by running statistics. The
  last rewards are not standardised: noise of rewards would then look like a difference.
- Loss changes are relative to the previous decision, not to step 1.
- Weight norms enter as mean and standard deviation over layers, because the number of layers
  differs between models.
- Added: the last mixture, natural shares, the target flag, the domain's value and its last reward.

Encoders have no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cuvee.agents.base import Observation
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import available_K, natural_K
from cuvee.core.registry import register_encoder
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory

DOMAIN_FEATURES = (
    "drawn",  # tokens drawn so far, standardised
    "loss",  # standardised; 0 where absent
    "loss_change",  # since the previous interval, standardised; 0 where absent
    "loss_known",  # 1 where a loss was measured
    "weight",  # K α − 1 of the last mixture: 0 at uniform
    "epochs",  # log(1 + tokens drawn / tokens available)
    "natural",  # log natural share, standardised
    "target",  # 1 for a target domain
    "value",  # ln(weight in the objective / largest weight), at least ln 0.05
    "reward",  # of the last interval, not standardised; 0 where absent
)
GLOBAL_FEATURES = (
    "progress",
    "loss_level",  # mean loss over the measured domains, in units of ten nats
    "loss_trend",  # mean loss change since the previous interval, in nats
    "norm_change",  # mean over layers of the relative change of the weight norms, in percent
    "norm_spread",  # standard deviation over layers of the same
)
_CLIP = 3.0
_LEAST_VALUE = 0.05


class Encoder(Protocol):
    """Computes what an agent observes. Register it with `register_encoder`.

    Its constructor takes no arguments, and it has no state. The features are named in the order of
    their columns.
    """

    domain_features: Sequence[str]
    global_features: Sequence[str]

    def __call__(
        self, so_far: Trajectory, values_K: FloatArray, rewards: Measured | None = None
    ) -> Observation:
        """Return (K, F) domain features and (G,) global features, finite, float32.

        The arguments are those of `observe`.
        """
        ...


def observe(
    so_far: Trajectory, values_K: FloatArray, rewards: Measured | None = None
) -> Observation:
    """Return (K, 10) domain features and (5,) global features, float32, clipped to ±3.

    `values_K` says how much each domain counts. `rewards` (K,) are the last rewards of the domains;
    the feature is 0 where they are absent.
    """
    rewards = rewards or Measured.absent(len(so_far.names))
    now = so_far.last
    before = so_far.at(len(so_far) - 1) if len(so_far) else None
    K = len(so_far.names)
    drawn_K = so_far.tokens_read().of(so_far.names)
    change = _change(now, before)
    weights_K = (
        so_far.last_mixture.weights_K if so_far.last_mixture is not None else np.full(K, 1 / K)
    )
    shares_K = natural_K(so_far.domains)
    everything_K = np.ones(K, dtype=np.bool_)
    domains_KF = np.stack(
        [
            _standardised(drawn_K, everything_K),
            _standardised(now.loss.values, now.loss.present),
            _standardised(change.values, change.present),
            now.loss.present.astype(np.float64),
            K * weights_K - 1.0,
            np.log1p(drawn_K / np.maximum(available_K(so_far.domains), 1.0)),
            _standardised(np.log(np.maximum(shares_K, 1e-12)), everything_K),
            np.array([float(domain.is_target) for domain in so_far.domains]),
            log_value(values_K),
            np.where(rewards.present, rewards.values, 0.0),
        ],
        axis=1,
    )
    norm_change, norm_spread = _norm_changes(now, before)
    globals_G = np.array(
        [
            now.progress,
            _mean(now.loss) / 10.0,
            _mean(change),
            100.0 * norm_change,
            100.0 * norm_spread,
        ]
    )
    clipped = (
        np.clip(features, -_CLIP, _CLIP).astype(np.float32) for features in (domains_KF, globals_G)
    )
    return Observation(*clipped)


@register_encoder("standard")
class StandardEncoder:
    """Encodes `DOMAIN_FEATURES` and `GLOBAL_FEATURES`. Calls `observe`."""

    domain_features = DOMAIN_FEATURES
    global_features = GLOBAL_FEATURES

    def __call__(
        self, so_far: Trajectory, values_K: FloatArray, rewards: Measured | None = None
    ) -> Observation:
        return observe(so_far, values_K, rewards)


def log_value(values_K: FloatArray) -> FloatArray:
    """Return ln v (K,), 0 for the largest value and at least ln 0.05."""
    return np.log(np.maximum(values_K / max(float(values_K.max()), 1e-12), _LEAST_VALUE))


def _change(now: Signals, before: Signals | None) -> Measured:
    """Return the (K,) loss now minus loss before. Absent where either is absent."""
    if before is None:
        return Measured.absent(len(now.names))
    index = {name: k for k, name in enumerate(before.names)}
    past = [before.loss.values[index[name]] if name in index else 0.0 for name in now.names]
    known = [bool(name in index and before.loss.present[index[name]]) for name in now.names]
    return Measured(now.loss.values - np.array(past), now.loss.present & np.array(known))


def _norm_changes(now: Signals, before: Signals | None) -> tuple[float, float]:
    """Return mean and std over layers of the relative change of the weight norms.

    Returns (0, 0) unless all norms were measured twice.
    """
    new = now.probes.get("weight_norms")
    old = before.probes.get("weight_norms") if before else None
    if (
        new is None
        or old is None
        or new.shape != old.shape
        or not (new.present.all() and old.present.all())
    ):
        return 0.0, 0.0
    relative = new.values / np.maximum(old.values, 1e-12) - 1.0
    return float(relative.mean()), float(relative.std())


def _standardised(values_K: FloatArray, present_K: npt.NDArray[np.bool_]) -> FloatArray:
    """Return (x − mean) / std over the present domains; 0 elsewhere.

    If all present values are equal, everything is 0.
    """
    if not present_K.any():
        return np.zeros_like(values_K)
    known = values_K[present_K]
    deviation = max(float(known.std()), 1e-8 * max(1.0, float(np.abs(known).max())))
    return np.where(present_K, (values_K - known.mean()) / deviation, 0.0)


def _mean(measured: Measured) -> float:
    return float(measured.values[measured.present].mean()) if measured.present.any() else 0.0

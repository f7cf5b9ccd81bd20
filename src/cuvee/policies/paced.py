"""`Paced`: spreads scarce domains over the run, and gives the rest to domains that help.

A domain is scarce if it is part of the objective and has an epoch cap.

    weight of a scarce domain        its share by plan (`policies.pacing`)
    weight of the others             ∝ ref_k exp(κ z_k) h_k, none above its own cap

ref is uniform or natural. z is the shrunken standardised gain towards the objective, and h the
probability that a domain does no harm (`policies.gain_estimate`). With κ = 0 nothing is measured.

The policy has no networks. The methods `even`, `late` and `gain` are this policy with different
settings. Agents start from it and have to beat it (`policies.agent_policy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from cuvee.core.arrays import BoolArray, FloatArray
from cuvee.core.domain import available_K, natural_K
from cuvee.core.epochs import EpochCaps, allowed, caps_K
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Policy, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.trajectory import Trajectory
from cuvee.policies.gain_estimate import GainEstimate, Gains
from cuvee.policies.guard.epochs import BudgetForecast, EpochBudget
from cuvee.policies.objective import objective_K
from cuvee.policies.pacing import LATE, allocate, paced_shares
from cuvee.probes.target_gain import TargetGain

MOST = 0.5
"""What scarce domains get together at most. Above that they are not scarce."""


@runtime_checkable
class ReadsCaps(Protocol):
    """A policy that plans ahead, and therefore needs the epoch caps and the length of its run."""

    def capped(self, epochs: EpochCaps, tokens: int | None) -> Policy:
        """Return the same policy for a run of `tokens` tokens with these caps."""
        ...


@register_policy("paced")
class Paced:
    """Paces scarce domains by a plan and weights the others by their gain.

    - `power`: n ≥ 0 of the plan: 0 is even, and a higher one reads scarce domains later.
    - `rest`: the weights of the other domains before gains: uniform or natural.
    - `sharpness`: κ ≥ 0.
    - `kept`: weight of an interval's gains after one more interval.
    - `objective`: weights by name, as in `policies.objective`.
    - `epochs`, `tokens`: epoch caps and length of the run, see `ReadsCaps`.
    - `probe`: settings of `TargetGain`.
    - `noise`: a seed. Gains are then replaced by noise, to test what they are worth.
    - `frozen`: the gains of the state are used as they are, and nothing is measured.
    - `evidence`: what the method that chose the settings reports about them, as plain JSON.

    Raises `PolicyError` for settings out of range.
    """

    def __init__(
        self,
        *,
        power: float = LATE,
        rest: Literal["uniform", "natural"] = "uniform",
        sharpness: float = 0.0,
        kept: float = 0.97,
        objective: Mapping[str, float] | None = None,
        epochs: EpochCaps = None,
        tokens: int | None = None,
        probe: Mapping[str, Any] | None = None,
        noise: int | None = None,
        frozen: bool = False,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0.0 <= power < np.inf or not 0.0 <= sharpness < np.inf or not 0.0 <= kept < 1.0:
            raise PolicyError(
                f"power is {power}, sharpness {sharpness} and kept {kept}: power and sharpness must "
                "be 0 or more, and kept at least 0 and below 1"
            )
        if rest not in ("uniform", "natural"):
            raise PolicyError(f"rest is {rest!r}: use uniform or natural")
        self._settings: dict[str, Any] = {
            "power": power,
            "rest": rest,
            "sharpness": sharpness,
            "kept": kept,
            "objective": dict(objective or {}),
            "epochs": dict(epochs) if isinstance(epochs, Mapping) else epochs,
            "tokens": tokens,
            "probe": dict(probe or {}),
            "noise": noise,
            "frozen": frozen,
            **({"evidence": dict(evidence)} if evidence else {}),
        }
        target_gain = TargetGain(objective=self._settings["objective"], **self._settings["probe"])
        self.probes: Sequence[Probe] = (target_gain,) if sharpness and not frozen else ()
        self._budget = EpochBudget()
        self._gain = GainEstimate(kept, noise)

    def capped(self, epochs: EpochCaps, tokens: int | None) -> Paced:
        copy = Paced(**{**self._settings, "epochs": epochs, "tokens": tokens})
        copy.load_state_dict(self.state_dict())
        return copy

    def mixture(self, so_far: Trajectory) -> Mixture:
        names = so_far.names
        rest_K = np.ones(len(names))
        if self._settings["rest"] == "natural":
            rest_K = natural_K(so_far.domains)
        if self._settings["sharpness"]:
            gains = self.gains(so_far)
            rest_K = rest_K * np.exp(self._settings["sharpness"] * gains.z_K) * gains.helps_K
        return self.distribute(so_far, rest_K)

    def distribute(self, so_far: Trajectory, weights_K: FloatArray) -> Mixture:
        """Return the mixture that gives scarce domains their shares, and the rest by `weights_K`.

        Weights of scarce domains are ignored.
        """
        left_K, forecast = self._left(so_far)
        scarce_K = self.scarce(so_far)
        to_come = self._to_come(forecast)
        if to_come is None:  # until the first interval shows how long the run is
            paced_K = np.where(np.isfinite(left_K), natural_K(so_far.domains), np.inf)
        else:
            interval = forecast.interval or 0.01 * to_come
            power = self._settings["power"]
            progress = so_far.last.progress
            paced_K = paced_shares(left_K, to_come, interval, progress, power, MOST)
        return Mixture.normalise(so_far.names, allocate(weights_K, paced_K, scarce_K, MOST))

    def scarce(self, so_far: Trajectory) -> BoolArray:
        """Return (K,) whether a domain has a cap and is part of the objective."""
        counts_K = objective_K(so_far, self._settings["objective"]) > 0
        capped_K: BoolArray = np.isfinite(self._allowed(so_far)) & counts_K
        return capped_K

    def gains(self, so_far: Trajectory) -> Gains:
        """Return the estimated gains of the domains that are not scarce."""
        return self._gain.gains(so_far.names, ~self.scarce(so_far))

    def uncertainty(self, so_far: Trajectory) -> FloatArray:
        """Return s / √(τ² + s²) (K,): the share of a gain's deviation that is not known yet.

        s is the standard error of the domain's gain. It is 1 for a domain without measurements, and
        0 for scarce domains and while no domain's gain differs from the others'.
        """
        _, error_K = self._gain.moments(so_far.names)
        tau = self.gains(so_far).deviation
        error_K = np.where(np.isfinite(error_K), error_K, 1e6)
        share_K = error_K / np.sqrt(tau**2 + error_K**2)
        return np.where(self.scarce(so_far), 0.0, share_K) if tau > 0 else np.zeros(len(share_K))

    def left_share(self, so_far: Trajectory) -> FloatArray:
        """Return (K,) what is left of each cap, over the tokens to come.

        Infinite without a cap, and for all domains while the length of the run is not known.
        """
        left_K, forecast = self._left(so_far)
        to_come = self._to_come(forecast)
        return left_K / max(to_come, 1.0) if to_come is not None else np.full(len(left_K), np.inf)

    def _allowed(self, so_far: Trajectory) -> FloatArray:
        epochs_K = caps_K(self._settings["epochs"], so_far.names)
        return allowed(epochs_K, available_K(so_far.domains))

    def _left(self, so_far: Trajectory) -> tuple[FloatArray, BudgetForecast]:
        forecast = self._budget.forecast(so_far)
        return np.maximum(self._allowed(so_far) - forecast.drawn_K, 0.0), forecast

    def _to_come(self, forecast: BudgetForecast) -> float | None:
        tokens: float | None = self._settings["tokens"]
        return forecast.to_come if forecast.to_come is not None else tokens

    def learn(self, so_far: Trajectory) -> Metrics:
        if not self.probes:
            return {}
        self._gain.add(so_far.last)
        mean_K, error_K = self._gain.moments(so_far.names)
        known = [k for k, error in enumerate(error_K.tolist()) if np.isfinite(error)]
        return {
            "gain": {so_far.names[k]: float(mean_K[k]) for k in known},
            "gain_error": {so_far.names[k]: float(error_K[k]) for k in known},
        }

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What the method that chose the settings reports about them."""
        known: Mapping[str, Any] = self._settings.get("evidence", {})
        return known

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def state_dict(self) -> State:
        return {"gain": self._gain.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._gain.load_state_dict(state["gain"])

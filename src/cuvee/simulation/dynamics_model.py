"""`DynamicsModel`: a `Trainer` fitted to logged runs. It predicts the signals of untried mixtures.

    y_t = y_0 + ȳ_t + ψ_t · W
    ψ_t = (n, ln(1 + n/ε)) for each decay ρ,    n_t = ρ n_{t−1} + α_{t−1} / T

y are the two fields of the feedback and the losses of all domains. n is the fraction of the budget
that a domain has received; old tokens count less because models forget. ȳ is the mean of the data
at that timestep.

ψ has three kinds of features: per domain; for the mean domain of each role; and each role's mean of
the logarithms, which says how evenly its domains were read. W is a ridge regression over all
timesteps of all runs, with the ridge chosen by cross-validation over runs. The penalty of features
that all K domains share is √K times smaller. Feedback depends mostly on roles, and would otherwise
have to be composed of strongly shrunk domain features.

With few runs, this regression is far more accurate than a Q function (see
docs/lab/off_policy_evaluation.md). It uses only numpy and is deterministic. Use `cuvee.loop.run` to
roll out a policy in it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Probe, State
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost, Trajectory

_DECAYS = (1.0, 0.9, 0.7)  # per twentieth of the budget
_EPSILON = 0.02
_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
_FIELDS = 2  # fields of the feedback, the first columns of y


def path_features(weights_TK: FloatArray, target_K: npt.NDArray[np.bool_]) -> FloatArray:
    """Return ψ before and after each interval, (T+1, 6·K + S).

    The 6·K columns are per domain; the S others are shared and include progress. `target_K` marks
    target domains. A role without domains has no columns. Leading axes of `weights_TK` are kept.
    """
    *leading, T, K = weights_TK.shape
    fields = [field_K for field_K in (~target_K, target_K) if field_K.any()]
    own = []
    shared = []
    for decay in _DECAYS:
        had_TK = np.zeros((*leading, T + 1, K))
        for t in range(T):
            kept_K = decay ** (20 / T) * had_TK[..., t, :]
            had_TK[..., t + 1, :] = kept_K + weights_TK[..., t, :] / T
        logs_TK = np.log1p(had_TK / _EPSILON)
        own += [had_TK, logs_TK]
        for field_K in fields:
            mean_T = had_TK[..., field_K].mean(axis=-1)
            logs_T = logs_TK[..., field_K].mean(axis=-1)
            shared += [mean_T, np.log1p(mean_T / _EPSILON), logs_T]
    progress_T = np.broadcast_to(np.arange(T + 1) / T, (*leading, T + 1))
    shared += [progress_T, np.sqrt(progress_T)]
    return np.concatenate([*own, np.stack(shared, axis=-1)], axis=-1)


@dataclass(frozen=True, eq=False)
class Logged:
    """A logged run as numbers.

    `weights_TK` (T, K) are the mixtures that were played, `measured_TY` (T+1, Y) the measurements
    to predict, and `target_K` (K,) marks target domains. Timesteps whose feedback was not measured,
    because the run was stopped, are NaN.
    """

    weights_TK: FloatArray
    measured_TY: FloatArray
    target_K: npt.NDArray[np.bool_]


class Regression:
    """The ridge regression over `runs`.

    All runs must have the same number of intervals and domains. At least 2 are needed. The ridge is
    chosen by the prediction of the first `fields` columns of the measurements: feedback, by
    default.
    """

    def __init__(self, runs: Sequence[Logged], fields: int = _FIELDS) -> None:
        assert len(runs) > 1, "a regression needs at least 2 runs"
        assert len({run.weights_TK.shape for run in runs}) == 1, (
            "the runs of a regression have equally many intervals and domains"
        )
        self._target_K = runs[0].target_K
        raw = np.stack([path_features(run.weights_TK, self._target_K) for run in runs])
        y_NTY = np.stack([run.measured_TY - run.measured_TY[0] for run in runs])
        seen_NT1 = np.isfinite(y_NTY).all(axis=-1, keepdims=True)
        self._centre_F = raw.mean(axis=(0, 1), where=seen_NT1)
        self._scale_F = np.maximum(raw.std(axis=(0, 1), where=seen_NT1), 1e-9)
        x_NTF = np.where(seen_NT1, self._standardised(raw), 0.0)
        self.start_Y = np.mean([run.measured_TY[0] for run in runs], axis=0)
        self._stage_TY = y_NTY.mean(axis=0, where=seen_NT1)
        y_NTY = np.where(seen_NT1, y_NTY - self._stage_TY, 0.0)
        self._gram_NFF = np.einsum("ntf,ntg->nfg", x_NTF, x_NTF, optimize=True)
        self._cross_NFY = np.einsum("ntf,nty->nfy", x_NTF, y_NTY, optimize=True)
        self.runs = len(runs)
        self.ridge = self._choose(x_NTF[:, -1], y_NTY[:, -1, :fields], seen_NT1[:, -1, 0])
        self.weights_FY = self._solve(np.ones(len(runs)), self.ridge)

    def at_end(self, weights_TK: FloatArray) -> FloatArray:
        """Predict the change (Y,) of the measurements from start to end under `weights_TK` (T, K).

        Leading axes of `weights_TK` are kept.
        """
        return np.asarray(self.at_ends(weights_TK, [self.weights_FY])[0])

    def at_ends(self, weights_TK: FloatArray, solutions: Sequence[FloatArray]) -> FloatArray:
        """Return the same for each of S other `solutions` (F, Y), as an array (S, Y).

        `resampled` returns such solutions.
        """
        x_F = self._standardised(path_features(weights_TK, self._target_K)[..., -1, :])
        return np.stack([self._stage_TY[-1] + x_F @ solution_FY for solution_FY in solutions])

    def after(self, weights_TK: FloatArray, whole: int) -> FloatArray:
        """Predict the measurements (Y,) after t of `whole` intervals, under `weights_TK` (t, K)."""
        padded_TK = np.concatenate(
            [weights_TK, np.zeros((whole - len(weights_TK), weights_TK.shape[1]))]
        )
        x_F = self._standardised(path_features(padded_TK, self._target_K)[len(weights_TK)])
        return np.asarray(self.start_Y + self._stage_TY[len(weights_TK)] + x_F @ self.weights_FY)

    def resampled(self, counts_N: FloatArray) -> FloatArray:
        """Return the solution (F, Y) for data in which run n appears `counts_N[n]` times."""
        return self._solve(counts_N, self.ridge)

    def redrawn(self, rng: np.random.Generator) -> Regression:
        """Return a regression fitted to runs drawn with replacement (a bootstrap sample)."""
        other = copy.copy(self)
        other.weights_FY = self.resampled(
            rng.multinomial(self.runs, np.full(self.runs, 1 / self.runs)).astype(np.float64)
        )
        return other

    def _choose(
        self, last_NF: FloatArray, wanted_NY: FloatArray, ended_N: npt.NDArray[np.bool_]
    ) -> float:
        """Return the ridge that best predicts the final `wanted_NY` of runs that are left out.

        Only runs that `ended` are left out. The others are always fitted.
        """
        fold_N = np.where(ended_N, (np.cumsum(ended_N) - 1) % min(_FOLDS, int(ended_N.sum())), -1)
        spread_Y = np.maximum(wanted_NY[ended_N].std(axis=0), 1e-12)
        errors = []
        for ridge in _RIDGES:
            missed = [
                (
                    wanted_NY[fold_N == fold]
                    - last_NF[fold_N == fold]
                    @ self._solve((fold_N != fold) * 1.0, ridge)[:, : wanted_NY.shape[1]]
                )
                / spread_Y
                for fold in np.unique(fold_N[ended_N])
            ]
            errors.append(float(np.square(np.concatenate(missed)).mean()))
        return _RIDGES[int(np.argmin(errors))]

    def _solve(self, counts_N: FloatArray, ridge: float) -> FloatArray:
        gram_FF = np.tensordot(counts_N, self._gram_NFF, axes=1)
        K = len(self._target_K)
        penalty_F = np.full(len(gram_FF), ridge / K**0.5)
        penalty_F[: 2 * len(_DECAYS) * K] = ridge
        penalty_F[-1] = 1e-6  # the constant
        return np.linalg.solve(
            gram_FF + np.diag(penalty_F), np.tensordot(counts_N, self._cross_NFY, axes=1)
        )

    def _standardised(self, raw: FloatArray) -> FloatArray:
        scaled = (raw - self._centre_F) / self._scale_F
        return np.concatenate([scaled, np.ones_like(scaled[..., :1])], axis=-1)


def domain_change(trajectory: Trajectory) -> str | None:
    """Describe when and how the domains of a run first changed. None if they did not.

    A regression needs runs whose domains did not change.
    """
    for number, (before, _, after) in enumerate(trajectory, start=1):
        if before.names != after.names:
            changes = [f"{name} was added" for name in after.names if name not in before.names]
            changes += [f"{name} was removed" for name in before.names if name not in after.names]
            return f"its domains changed in interval {number} ({', '.join(changes) or 'order'})"
    return None


def as_logged(trajectory: Trajectory) -> Logged:
    """Return a run as numbers: the evaluation fields, then the losses by domain.

    An absent loss is replaced by the last known one, or else by the next one. Timesteps without
    feedback are NaN. Raises `PolicyError` if the domains changed during the run.
    """
    if change := domain_change(trajectory):
        raise PolicyError(f"a run cannot be fitted: {change}. Leave it out")
    losses_TK = np.array([signals.loss.filled(np.nan) for signals in trajectory.signals])
    for t in range(1, len(losses_TK)):
        losses_TK[t] = np.where(np.isnan(losses_TK[t]), losses_TK[t - 1], losses_TK[t])
    for t in reversed(range(len(losses_TK) - 1)):
        losses_TK[t] = np.where(np.isnan(losses_TK[t]), losses_TK[t + 1], losses_TK[t])
    fields_T2 = np.array(
        [signals.probes["evaluation"].filled(np.nan) for signals in trajectory.signals]
    )
    measured_TY = np.concatenate([fields_T2, np.nan_to_num(losses_TK, nan=0.0)], axis=1)
    target_K = np.array([domain.is_target for domain in trajectory.domains])
    return Logged(trajectory.weights_TK(), measured_TY, target_K)


class DynamicsModel:
    """A `Trainer` whose signals are predictions of a regression.

    Domains, steps and tokens are those of the logged run `example`.
    """

    def __init__(self, regression: Regression, example: Trajectory) -> None:
        self._regression = regression
        self._example = example
        self._played: list[FloatArray] = []

    @property
    def done(self) -> bool:
        return len(self._played) >= len(self._example)

    @property
    def cost(self) -> Cost:
        """Always zero, because no tokens are read."""
        return Cost()

    def start(self, probes: Sequence[Probe]) -> Signals:
        return self._example.signals[0]

    def advance(self, mixture: Mixture) -> Signals:
        """Return the predicted signals after one more interval under `mixture`."""
        then = self._example.signals[len(self._played) + 1]
        self._played.append(mixture.weights_K)
        measured_Y = self._regression.after(np.array(self._played), len(self._example))
        tokens_K = np.rint(mixture.weights_K * then.tokens_K.sum()).astype(np.int64)
        return Signals(
            domains=then.domains,
            step=then.step,
            progress=then.progress,
            tokens_K=tokens_K,
            loss=Measured(np.where(tokens_K > 0, measured_Y[2:], 0.0), tokens_K > 0),
            probes={"evaluation": Measured.all(measured_Y[:2])},
        )

    def state_dict(self) -> State:
        return {"played": np.array(self._played)}

    def restore(self, state: State, probes: Sequence[Probe]) -> None:
        """Continue from `state`, which holds the mixtures played so far."""
        self._played = list(state["played"])

    def export(self, folder: Path) -> None:
        """Write nothing, because there is no model."""

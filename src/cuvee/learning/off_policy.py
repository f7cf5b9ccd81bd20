"""Off-policy evaluation: the return of a policy, estimated from logged runs, and whether these support the estimate.

The policy is rolled out in a run fitted to the logged ones (`fitted_run`), and the path that it takes is valued. Two things
make that value uncertain, and the interval holds both: which runs happened to be logged (runs are drawn anew with
replacement and the fit is repeated), and how far off a fit is on a path that it has not seen (the errors it makes on runs left
out of it). Values are returns, feedback at the end less that at the start. Behaviour is the mean return of the runs, and two
values are compared on the same draws.

The fit is to all runs, those among them that the policy was learned from. A fit to a quarter of them, held out, owes the policy
nothing and knows next to nothing: on real text it could not rank mixtures (docs/decisions.md).

METHODS asks for fitted Q evaluation. Linear fitted Q, in closed form, was tried first: at 16 to 64 runs its interval is two to
twenty times as wide (docs/lab/off_policy_evaluation.md), since Q has to find out what the fitted run is told: that tokens add up.

*Support*: a mixture that nobody has tried at that stage of a run is extrapolation, whatever the interval says. Its distance is
total variation to the nearest mixture that another run played at that stage. Pure numpy; deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import divided_shares
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Trajectory
from cuvee.evaluation.statistics import Estimate
from cuvee.loop import run
from cuvee.simulation.dynamics_model import DynamicsModel, Logged, Regression, as_logged

_RESAMPLES = 200
_FAR = 0.95  # quantile of the data's own distances: what lies further out is outside
_MOST_OUTSIDE = 0.25  # of decisions
_COMPARED = 4096
_FOLDS = 8
_LEVEL = 0.95
_DIVISIONS = [
    (round(0.1 * tenth, 1), flatness) for tenth in range(1, 10) for flatness in (0.0, 0.5, 1.0)
]


@dataclass(frozen=True)
class OffPolicyEstimate:
    """`gain` is value − behaviour, `over_static` value − that of the best static mixture, `static_K`. `by_role` is the best of
    those that say no more than a target share and a flatness. `outside` is the share of decisions further than `reach` from what
    others played; `error` the standard error of the fit on runs that it has not seen."""

    value: Estimate
    behaviour: Estimate
    gain: Estimate
    static: Estimate
    over_static: Estimate
    static_K: FloatArray
    by_role: tuple[float, float]
    outside: float
    reach: float
    error: float
    path: Trajectory

    @property
    def within_reach(self) -> bool:
        return self.outside <= _MOST_OUTSIDE

    @property
    def supported(self) -> bool:
        """The policy stays where there are data, and the whole intervals are above 0 of its gain over behaviour and of that over
        the best static mixture, which is played in its place if not."""
        lows = (self.gain.low, self.over_static.low)
        return self.within_reach and all(low is not None and low > 0 for low in lows)

    def figures(self) -> dict[str, Any]:
        """As plain JSON."""
        estimates = {
            name: getattr(self, name)
            for name in ("value", "behaviour", "gain", "static", "over_static")
        }
        numbers: dict[str, Any] = {
            "supported": self.supported,
            "within_reach": self.within_reach,
            "runs": self.value.pairs,
        }
        for name, estimate in estimates.items():
            numbers |= {
                name: estimate.mean,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        return numbers | {"outside": self.outside, "reach": self.reach, "error": self.error}


class OffPolicyEvaluator:
    """Judges policies by `runs`.

    They say what is within reach, and which mixture within it is the best one to hold from start to end: one that divides the
    run by role (`_DIVISIONS`), or one of `statics` if it surely ends higher. All runs have the same domains and equally many
    intervals; at least four are needed. `weight` is λ of the feedback.
    """

    def __init__(
        self, runs: Sequence[Trajectory], statics: Mapping[str, FloatArray], weight: float = 0.5
    ) -> None:
        self._weight, self._example = weight, runs[0]
        self._runs = [as_logged(trajectory) for trajectory in runs]
        self._seen_NTK = np.stack([run.weights_TK for run in self._runs])
        self._regression = Regression(self._runs)
        self._base_2 = np.abs(self._regression.start_Y[:2])
        missed_N = self._missed()
        self.error = float(np.sqrt(np.mean(np.square(missed_N))))
        rng = np.random.Generator(np.random.PCG64(0))
        n = len(self._runs)
        self._counts_RN = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
        self._solutions = [self._regression.resampled(counts_N) for counts_N in self._counts_RN]
        self._missed_R = rng.choice(missed_N, size=_RESAMPLES)
        returns_N = np.array([self._return(run) for run in self._runs])
        self._behaviour_R = np.append(returns_N.mean(), self._counts_RN @ returns_N / n)
        self._reach = float(np.quantile(_own_distances(self._seen_NTK), _FAR))

        def best(mixtures: Mapping[Any, FloatArray]) -> Any:
            near = [
                name
                for name, mixture_K in mixtures.items()
                if self._outside(self._held(mixture_K)) <= _MOST_OUTSIDE
            ]
            return max(near or mixtures, key=lambda name: self._earned(self._held(mixtures[name])))

        divisions = {
            one: np.array(list(divided_shares(runs[0].domains, *one).values()))
            for one in _DIVISIONS
        }
        self.by_role: tuple[float, float] = best(divisions)
        self.static_K = divisions[self.by_role]
        self._static_R = self._values(self._held(self.static_K))
        challenger = best(statics)
        challenger_R = self._values(self._held(statics[challenger]))
        if (_compared(challenger_R, self._static_R, n).low or 0.0) > 0:
            self.static_K, self._static_R = statics[challenger], challenger_R

    def __call__(self, policy: Policy) -> OffPolicyEstimate:
        path = run(DynamicsModel(self._regression, self._example), policy)
        weights_TK, n = path.weights_TK(), len(self._runs)
        value_R = self._values(weights_TK)
        nothing_R = np.zeros_like(value_R)
        return OffPolicyEstimate(
            value=_compared(value_R, nothing_R, n),
            behaviour=_compared(self._behaviour_R, nothing_R, n),
            gain=_compared(value_R, self._behaviour_R, n),
            static=_compared(self._static_R, nothing_R, n),
            over_static=_compared(value_R, self._static_R, n),
            static_K=self.static_K,
            by_role=self.by_role,
            outside=self._outside(weights_TK),
            reach=self._reach,
            error=self.error,
            path=path,
        )

    def _outside(self, weights_TK: FloatArray) -> float:
        far_T = np.array(
            [_nearest(self._seen_NTK, t, weights_K).min() for t, weights_K in enumerate(weights_TK)]
        )
        return float((far_T > self._reach).mean())

    def _held(self, mixture_K: FloatArray) -> FloatArray:
        return np.broadcast_to(mixture_K, self._seen_NTK.shape[1:])

    def _values(self, weights_TK: FloatArray) -> FloatArray:
        """(1 + R,) the value of a path by the fit, and by each resampled one with an error it is known to make."""
        drawn = [
            self._score(change_Y[:2])
            for change_Y in self._regression.at_ends(weights_TK, self._solutions)
        ]
        return np.append(self._earned(weights_TK), np.array(drawn) + self._missed_R)

    def _missed(self) -> FloatArray:
        """(N,) by how much a fit to other runs is off on each run."""
        fold_N = np.arange(len(self._runs)) % _FOLDS
        missed_N = np.array([self._return(run) for run in self._runs])
        for fold in np.unique(fold_N):
            others = Regression([self._runs[n] for n in np.flatnonzero(fold_N != fold)])
            for n in np.flatnonzero(fold_N == fold):
                missed_N[n] -= self._earned(self._runs[n].weights_TK, others)
        return missed_N

    def _earned(self, weights_TK: FloatArray, regression: Regression | None = None) -> float:
        return self._score((regression or self._regression).at_end(weights_TK)[:2])

    def _return(self, run: Logged) -> float:
        return self._score(run.measured_TY[-1, :2] - run.measured_TY[0, :2])

    def _score(self, change_2: FloatArray) -> float:
        return float(np.array([self._weight, 1 - self._weight]) @ (change_2 / self._base_2))


def static_candidates(
    runs: Sequence[Trajectory], returns: Sequence[float], quantile: float
) -> dict[str, FloatArray]:
    """Mixtures (K,) that might be the best to hold: the means of the best runs' paths, the mean of those, and uniform."""
    order = np.argsort(-np.asarray(returns))[: max(1, int(np.ceil(quantile * len(runs))))]
    means = {f"mean of run {int(n)}": runs[int(n)].weights_TK().mean(axis=0) for n in order}
    K = len(runs[0].names)
    return {
        **means,
        "mean of the best runs": np.mean(list(means.values()), axis=0),
        "uniform": np.full(K, 1 / K),
    }


def _compared(ours_R: FloatArray, theirs_R: FloatArray, runs: int) -> Estimate:
    """Ours − theirs on the same draws; the first is the data as they are."""
    differences_R = ours_R - theirs_R
    low, high = np.quantile(differences_R[1:], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(differences_R[0]), float(low), float(high), runs, _LEVEL)


def _nearest(runs_NTK: FloatArray, t: int, mixture_K: FloatArray) -> FloatArray:
    """(N,) total variation of a mixture to what each run played within one interval of `t`."""
    near = runs_NTK[:, max(0, t - 1) : t + 2]
    return np.asarray(0.5 * np.abs(near - mixture_K).sum(axis=-1).min(axis=1))


def _own_distances(runs_NTK: FloatArray) -> FloatArray:
    """How far mixtures of the data are from the nearest of another run; evenly spaced runs speak for very many."""
    N, T, _ = runs_NTK.shape
    rows = np.unique(np.linspace(0, N - 1, min(N, max(2, _COMPARED // T))).astype(int))
    return np.array(
        [
            np.delete(_nearest(runs_NTK, t, runs_NTK[row, t]), row).min()
            for row in rows
            for t in range(T)
        ]
    )

"""Off-policy evaluation: estimates the return of a policy from logged runs.

The policy is rolled out in a dynamics model that is fitted to the logged runs
(`simulation.dynamics_model`). The path of mixtures that it takes is valued by that model. Values
are returns: feedback at the end minus feedback at the start. "Behaviour" is the mean return of the
logged runs.

The confidence interval covers two kinds of uncertainty: which runs happened to be logged (bootstrap
over runs, with a new fit for each sample), and the error of a fit on paths that it has not seen.
Two values are compared on the same fits. The error of their *difference* is that of pairs of runs
that one fit has not seen (`_DifferenceError`); it grows with the distance of the two paths. These
errors include the noise of the measurements, which is not known separately. The intervals are
therefore rather too wide than too narrow.

If several policies are compared and the best is kept, its estimate is too high. `looks` is the
number of policies: the intervals that decide have confidence 1 − 0.05/looks (Bonferroni). So have the
intervals that decide about the static mixture, with the number of its candidates.

*The static mixture* is what is played without a supported policy. It is the prior, what somebody would
play who knows nothing: half for each role, the domains of a role alike. Another candidate is taken only
if it is surely better than the prior. Among candidates that the logged runs cannot tell apart, the
prior wins. This is safe policy improvement: leave the baseline where the data show enough (Thomas et
al. 2015, High Confidence Policy Improvement; Laroche et al. 2019, SPIBB, arXiv:1712.06924). Scarce
domains are read at most four times, evenly over the run, as a policy plays them
(`policies.history.readable`). So on scarce targets the prior is the method `even`.

The model is fitted to all runs, including those that the policy was learned from. A fit to the
held-out quarter alone would be independent of the policy but too weak: on real text it could not
rank mixtures (see docs/decisions.md).

Linear fitted Q evaluation was tried first. With 16 to 64 runs, its interval is 2 to 20 times wider
(see docs/lab/off_policy_evaluation.md), because Q must learn that tokens add up, which the dynamics
model assumes.

*Support*: if nobody has tried a similar mixture at that timestep, the value is an extrapolation,
whatever the interval says. The distance is the total variation to the nearest mixture that another
run played at about that timestep. The module uses only numpy and is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import divided_shares
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Trajectory
from cuvee.evaluation.statistics import Estimate
from cuvee.loop import run
from cuvee.policies.history.readable import Readable
from cuvee.simulation.dynamics_model import DynamicsModel, Logged, Regression, as_logged

_RESAMPLES = 200
_QUANTILES = 200
_FAR = 0.95  # quantile of the data's own distances; mixtures further away are outside
_MOST_OUTSIDE = 0.25  # largest fraction of decisions outside
_COMPARED = 4096
_FOLDS = 8
_FEWEST_LEFT_OUT = 3  # runs in a fold: differences need several
_FLOOR = 0.02  # of the pairs' mean squared error: that of two equal paths
_LEVEL = 0.95
PRIOR = (0.5, 1.0)
"""Target share and flatness of the prior: half for each role, the domains of a role alike."""
_DIVISIONS = [
    (round(0.1 * tenth, 1), flatness) for tenth in range(1, 10) for flatness in (0.0, 0.5, 1.0)
]
# Quantiles are used instead of draws, so that the ends of the intervals have no sampling noise.
_NORMAL_E = np.array(
    [NormalDist().inv_cdf((number + 0.5) / _QUANTILES) for number in range(_QUANTILES)]
)
IntArray = npt.NDArray[np.int_]


@dataclass(frozen=True)
class OffPolicyEstimate:
    """The result of off-policy evaluation.

    - `value`: estimated return of the policy.
    - `behaviour`: mean return of the logged runs. `gain` is value − behaviour.
    - `static`: value of the static mixture `static_K`, which is played without a supported policy.
      `over_static` is value − static. The intervals of `gain` and `over_static` allow for the
      policies that were compared (`looks`).
    - `by_role`: (target share, flatness) of that mixture, or of the prior or another that is surely
      better, if it is not divided by role.
    - `is_prior`: whether it is the prior.
    - `outside`: fraction of decisions further than `reach` from what other runs played.
    - `error`: standard error of the fit on runs that it has not seen.
    - `path`: the rollout of the policy.
    """

    value: Estimate
    behaviour: Estimate
    gain: Estimate
    static: Estimate
    over_static: Estimate
    static_K: FloatArray
    by_role: tuple[float, float]
    is_prior: bool
    outside: float
    reach: float
    error: float
    path: Trajectory

    @property
    def within_reach(self) -> bool:
        """Whether the policy stays close to the data."""
        return self.outside <= _MOST_OUTSIDE

    @property
    def supported(self) -> bool:
        """Whether the data show that the policy is better than the alternatives.

        The alternatives are behaviour and the static mixture. The policy must stay within
        reach of the data, and the confidence intervals of both gains must be above 0. If not, the
        static mixture is played instead.
        """
        lows = (self.gain.low, self.over_static.low)
        return self.within_reach and all(low is not None and low > 0 for low in lows)

    def figures(self) -> dict[str, Any]:
        """Return the estimate as plain JSON."""
        estimates = {
            name: getattr(self, name)
            for name in ("value", "behaviour", "gain", "static", "over_static")
        }
        numbers: dict[str, Any] = {
            "supported": self.supported,
            "within_reach": self.within_reach,
            "static_is_prior": self.is_prior,
            "runs": self.value.pairs,
        }
        for name, estimate in estimates.items():
            numbers |= {
                name: estimate.mean,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
        distance = {"outside": self.outside, "reach": self.reach, "error": self.error}
        return numbers | distance | {"level": self.over_static.level}


@dataclass(frozen=True)
class _DifferenceError:
    """The squared error of a difference between two paths: `floor` + `slope` · distance².

    The distance is the mean total variation between the mixtures of the same timestep. A smooth
    error of the fit is the same for equal paths and differs in proportion to their distance.
    """

    floor: float
    slope: float

    @classmethod
    def of(cls, missed_N: FloatArray, fold_N: IntArray, weights_NTK: FloatArray) -> Self:
        """Fit the line from its floor through the mean of all pairs of runs of one fold.

        The same fit has not seen either run of a pair. `missed_N` are its errors.
        """
        first, second = np.triu_indices(len(missed_N), 1)
        together = fold_N[first] == fold_N[second]
        first, second = first[together], second[together]
        squared = float(np.square(missed_N[first] - missed_N[second]).mean())
        distance_P = 0.5 * np.abs(weights_NTK[first] - weights_NTK[second]).sum(-1).mean(-1)
        floor = _FLOOR * squared
        return cls(floor, (squared - floor) / max(float(np.square(distance_P).mean()), 1e-12))

    def errors(self, ours_TK: FloatArray, theirs_TK: FloatArray) -> FloatArray:
        """Return (E,) equally likely errors of the difference between two paths."""
        distance = float(0.5 * np.abs(ours_TK - theirs_TK).sum(axis=-1).mean())
        return float(np.sqrt(self.floor + self.slope * distance**2)) * _NORMAL_E


class OffPolicyEvaluator:
    """Evaluates policies by the logged `runs`.

    All runs must have the same domains and equally many intervals; at least four are needed. A run
    without feedback at its end, because it was stopped, informs the fit and is not compared with.
    `weight` is λ of the feedback, `looks` the number of policies that are compared.

    The evaluator also finds the static mixture. It is `PRIOR`, unless another within reach is surely
    better: one that is divided by role (`_DIVISIONS`) or one of `statics` (mixtures by name). These
    are the `candidates`. The one is taken whose gain over the prior has the highest lower bound.
    """

    def __init__(
        self,
        runs: Sequence[Trajectory],
        statics: Mapping[str, FloatArray],
        weight: float = 0.5,
        looks: int = 1,
    ) -> None:
        self._level = 1 - (1 - _LEVEL) / looks
        self._weight = weight
        self._example = runs[0]
        self._readable = Readable(None, int(runs[0].tokens_T1()[-1]))
        self._runs = [as_logged(trajectory) for trajectory in runs]
        played_NTK = np.stack([run.weights_TK for run in self._runs])
        ended_N = np.array([np.isfinite(run.measured_TY[-1, :2]).all() for run in self._runs])
        self._seen_NTK = played_NTK[ended_N]
        self._regression = Regression(self._runs)
        self._base_2 = np.abs(self._regression.start_Y[:2])
        n = len(self._runs)
        folds = min(_FOLDS, max(2, int(ended_N.sum()) // _FEWEST_LEFT_OUT))
        self._fold_N = np.where(ended_N, (np.cumsum(ended_N) - 1) % folds, -1)
        missed_N = self._missed()[ended_N]
        self._difference = _DifferenceError.of(missed_N, self._fold_N[ended_N], self._seen_NTK)
        self._missed_N = missed_N
        self.error = float(np.sqrt(np.mean(np.square(missed_N))))
        rng = np.random.Generator(np.random.PCG64(0))
        self._counts_RN = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
        self._solutions = [self._regression.resampled(counts_N) for counts_N in self._counts_RN]
        returns_N = np.array([self._return(run) for run in self._runs])[ended_N]
        counts_RN = self._counts_RN[:, ended_N]
        drawn_R = counts_RN @ returns_N / np.maximum(counts_RN.sum(axis=1), 1)
        self._behaviour_R = np.append(returns_N.mean(), drawn_R)
        self._reach = float(np.quantile(_own_distances(self._seen_NTK), _FAR))

        divisions = {one: _divided(runs[0], one) for one in _DIVISIONS}
        self.by_role: tuple[float, float] = PRIOR
        self.static_K = self.prior_K = _divided(runs[0], PRIOR)
        candidates: dict[Any, FloatArray] = {**divisions, **statics}
        self.candidates = candidates
        surely = self._surely_better(candidates, self.prior_K)
        if of_role := [name for name in surely if name in divisions]:
            self.by_role = of_role[0]
        self.is_prior = not surely
        if surely:
            self.static_K = candidates[surely[0]]
        self._static_R = self._values(self.held(self.static_K))

    def __call__(self, policy: Policy) -> OffPolicyEstimate:
        """Roll out `policy` and return its estimate."""
        path = run(DynamicsModel(self._regression, self._example), policy)
        weights_TK = path.weights_TK()
        n = len(self._runs)
        value_R = self._values(weights_TK)
        nothing_R = np.zeros_like(value_R)
        missed_N = self._missed_N
        errors_E = self._difference.errors(weights_TK, self.held(self.static_K))
        return OffPolicyEstimate(
            value=_compared(value_R, nothing_R, missed_N, n),
            behaviour=_compared(self._behaviour_R, nothing_R, np.zeros(1), n),
            gain=_compared(value_R, self._behaviour_R, missed_N, n, self._level),
            static=_compared(self._static_R, nothing_R, missed_N, n),
            over_static=_compared(value_R, self._static_R, errors_E, n, self._level),
            static_K=self.static_K,
            by_role=self.by_role,
            is_prior=self.is_prior,
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

    def held(self, mixture_K: FloatArray) -> FloatArray:
        """Return the path (T, K) of a run like the logged ones that holds a mixture.

        Scarce domains are limited as in a policy (`policies.history.readable`). The caps of the
        logged runs are not known here.
        """
        limited_K = self._readable.limit(Trajectory.start(self._example.signals[0]), mixture_K)
        return np.broadcast_to(limited_K, self._seen_NTK.shape[1:])

    def compared(self, first_K: FloatArray, second_K: FloatArray, looks: float = 1) -> Estimate:
        """Estimate by how much holding the first mixture is better than holding the second.

        The interval allows for `looks` such comparisons.
        """
        first_TK, second_TK = self.held(first_K), self.held(second_K)
        errors_E = self._difference.errors(first_TK, second_TK)
        values = (self._values(first_TK), self._values(second_TK))
        return _compared(*values, errors_E, len(self._runs), 1 - (1 - _LEVEL) / looks)

    def near(self, mixture_K: FloatArray) -> bool:
        """Return whether holding a mixture stays close to the data."""
        return self._outside(self.held(mixture_K)) <= _MOST_OUTSIDE

    def _surely_better(self, mixtures: Mapping[Any, FloatArray], than_K: FloatArray) -> list[Any]:
        """Return the names of the mixtures within reach that are surely better, the surest first."""
        lows = {
            name: self.compared(mixture_K, than_K, looks=len(mixtures)).low or 0.0
            for name, mixture_K in mixtures.items()
            if self.near(mixture_K)
        }
        return sorted((name for name in lows if lows[name] > 0), key=lambda name: -lows[name])

    def _values(self, weights_TK: FloatArray) -> FloatArray:
        """Return the values (1 + R,) of a path.

        The first is by the fit to all runs. The others are by the bootstrap fits.
        """
        drawn = [
            self._score(change_Y[:2])
            for change_Y in self._regression.at_ends(weights_TK, self._solutions)
        ]
        return np.append(self._earned(weights_TK), drawn)

    def _missed(self) -> FloatArray:
        """Return the (N,) errors on each run of a fit to other runs; NaN if it did not end."""
        fold_N = self._fold_N
        missed_N = np.array([self._return(run) for run in self._runs])
        for fold in np.unique(fold_N[fold_N >= 0]):
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
    """Return mixtures (K,) by name that may be the best static mixture.

    They are the mean mixtures of the best runs, the mean of those, and uniform.
    """
    order = np.argsort(-np.asarray(returns))[: max(1, int(np.ceil(quantile * len(runs))))]
    means = {f"mean of run {int(n)}": runs[int(n)].weights_TK().mean(axis=0) for n in order}
    K = len(runs[0].names)
    return {
        **means,
        "mean of the best runs": np.mean(list(means.values()), axis=0),
        "uniform": np.full(K, 1 / K),
    }


def _divided(run: Trajectory, division: tuple[float, float]) -> FloatArray:
    return np.array(list(divided_shares(run.domains, *division).values()))


def _compared(
    ours_R: FloatArray, theirs_R: FloatArray, errors_E: FloatArray, runs: int, level: float = _LEVEL
) -> Estimate:
    """Estimate ours − theirs on the same fits. The first entry belongs to the original data.

    Each of the others is taken with each of `errors_E`. The errors belong to the comparison, not
    to either side, so that they cannot cancel.
    """
    differences_R = ours_R - theirs_R
    spread_RE = differences_R[1:, None] + errors_E
    low, high = np.quantile(spread_RE, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(differences_R[0]), float(low), float(high), runs, level)


def _nearest(runs_NTK: FloatArray, t: int, mixture_K: FloatArray) -> FloatArray:
    """Return the (N,) total variation of a mixture from what each run played near timestep `t`.

    "Near" is at most one interval earlier or later.
    """
    near = runs_NTK[:, max(0, t - 1) : t + 2]
    return np.asarray(0.5 * np.abs(near - mixture_K).sum(axis=-1).min(axis=1))


def _own_distances(runs_NTK: FloatArray) -> FloatArray:
    """Return how far mixtures of the data are from the nearest mixture of another run.

    If there are many runs, evenly spaced ones are used.
    """
    N, T, _ = runs_NTK.shape
    rows = np.unique(np.linspace(0, N - 1, min(N, max(2, _COMPARED // T))).astype(int))
    return np.array(
        [
            np.delete(_nearest(runs_NTK, t, runs_NTK[row, t]), row).min()
            for row in rows
            for t in range(T)
        ]
    )

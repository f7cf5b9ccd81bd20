"""What a policy would earn, judged from logged runs that it was not learned from, and whether those can say so.

The policy is rolled out in a run fitted to the held-out runs (`fitted_run`), and the path that it takes is valued. Two things
make that value uncertain, and the interval holds both: which runs happened to be logged (runs are drawn anew with
replacement and the fit is repeated), and how far off a fit is on a path that it has not seen (the errors it makes on the runs
that the policy was learned from). Values are returns, feedback at the end less that at the start. Behaviour is the mean return
of the held-out runs, and two values are compared on the same draws.

METHODS asks for fitted Q evaluation. Linear fitted Q, in closed form, was tried first: at 16 to 64 runs its interval is two to
twenty times as wide (docs/methods/data_mixing_agent.md), since Q has to find out what the fitted run is told: that tokens add up.

*Support*: a mixture that nobody has tried at that stage of a run is extrapolation, whatever the interval says. Its distance is
total variation to the nearest mixture that another run played at that stage. Pure numpy; deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.core.domain import Domain, divided_shares
from cuvee.core.mixture import FloatArray
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Trajectory
from cuvee.evaluation.fitted_run import FittedRun, Logged, Regression, as_logged
from cuvee.evaluation.statistics import Estimate
from cuvee.loop import run

_RESAMPLES = 200
_FAR = 0.95  # quantile of the data's own distances: what lies further out is outside
_MOST_OUTSIDE = 0.25  # of decisions
_COMPARED = 4096
_LEVEL = 0.95
_SURELY = 0.05  # quantile
Line = tuple[float, float, float]
"""Target share at the start, at the end, and flatness of either field."""
_SHARES = [round(0.1 * tenth, 1) for tenth in range(1, 10)]
_LINES = [(start, end, flatness) for start in _SHARES for end in _SHARES for flatness in (0.0, 0.5, 1.0)]


@dataclass(frozen=True)
class Judgement:
    """`gain` is value − behaviour, `over_simple` value − that of the best simple path, `simple_TK`: a static mixture, or a line.
    `by_role` is the best of those that say no more than the target share at start and end and a flatness. `outside` is the share
    of decisions further than `reach` from what others played; `error` the standard error of the fit on runs it has not seen."""

    value: Estimate
    behaviour: Estimate
    gain: Estimate
    simple: Estimate
    over_simple: Estimate
    simple_TK: FloatArray
    by_role: tuple[float, float, float]
    outside: float
    reach: float
    error: float
    path: Trajectory

    @property
    def within_reach(self) -> bool:
        return self.outside <= _MOST_OUTSIDE

    @property
    def supported(self) -> bool:
        """The whole interval of the gain is above 0, the best simple path, which is played in its place if not, is not expected
        to end higher, and the policy stays where there are data."""
        return self.gain.low is not None and self.gain.low > 0 and self.over_simple.mean >= 0 and self.within_reach

    def figures(self) -> dict[str, Any]:
        """As plain JSON."""
        estimates = {name: getattr(self, name) for name in ("value", "behaviour", "gain", "simple", "over_simple")}
        numbers: dict[str, Any] = {
            "supported": self.supported,
            "within_reach": self.within_reach,
            "runs": self.value.pairs,
        }
        for name, estimate in estimates.items():
            numbers |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return numbers | {"outside": self.outside, "reach": self.reach, "error": self.error}


class Judge:
    """Judges policies by `held_out` runs.

    `learned_from` say how good the fit is, what is within reach, and which simple path within it is the best one: to hold one of
    `statics`, or a mixture that divides the run by role (`divided_shares`), or a line, along which the target share goes from
    start to end. A line has to be better than the best held mixture in nearly all fits to runs drawn anew, and the one that is
    furthest ahead in those is taken, since there are many lines to choose from. All runs have the same domains and equally many
    intervals; at least two of each are needed. `weight` is λ of the feedback.
    """

    def __init__(
        self,
        held_out: Sequence[Trajectory],
        learned_from: Sequence[Trajectory],
        statics: Mapping[str, FloatArray],
        weight: float = 0.5,
    ) -> None:
        self._weight, self._example = weight, held_out[0]
        self._runs = [as_logged(trajectory) for trajectory in held_out]
        seen = [as_logged(trajectory) for trajectory in learned_from]
        self._seen_NTK = np.stack([run.weights_TK for run in seen])
        self._regression = Regression(self._runs)
        self._base_2 = np.abs(self._regression.start_Y[:2])
        missed_N = np.array([self._return(run) - self._earned(run.weights_TK) for run in seen])
        self.error = float(np.sqrt(np.mean(np.square(missed_N))))
        rng = np.random.Generator(np.random.PCG64(0))
        n = len(self._runs)
        self._counts_RN = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
        self._solutions = [self._regression.resampled(counts_N) for counts_N in self._counts_RN]
        self._missed_R = rng.choice(missed_N, size=_RESAMPLES)
        returns_N = np.array([self._return(run) for run in self._runs])
        self._behaviour_R = np.append(returns_N.mean(), self._counts_RN @ returns_N / n)
        self._reach = float(np.quantile(_own_distances(self._seen_NTK), _FAR))
        self.held, (self.by_role, self.simple_TK) = self._simple(Regression(seen), held_out[0].domains, statics)
        self._simple_R = self._values(self.simple_TK)

    def __call__(self, policy: Policy) -> Judgement:
        path = run(FittedRun(self._regression, self._example), policy)
        weights_TK, n = path.weights_TK(), len(self._runs)
        value_R = self._values(weights_TK)
        nothing_R = np.zeros_like(value_R)
        return Judgement(
            value=_compared(value_R, nothing_R, n),
            behaviour=_compared(self._behaviour_R, nothing_R, n),
            gain=_compared(value_R, self._behaviour_R, n),
            simple=_compared(self._simple_R, nothing_R, n),
            over_simple=_compared(value_R, self._simple_R, n),
            simple_TK=self.simple_TK,
            by_role=self.by_role,
            outside=self._outside(weights_TK),
            reach=self._reach,
            error=self.error,
            path=path,
        )

    def _simple(
        self, chooser: Regression, domains: tuple[Domain, ...], statics: Mapping[str, FloatArray]
    ) -> tuple[tuple[Line, FloatArray], tuple[Line, FloatArray]]:
        """The best held mixture by role, and the best of all held ones; and the same with lines."""
        T, K = self._seen_NTK.shape[1:]
        solutions = [chooser.weights_FY, *(chooser.resampled(counts_N) for counts_N in _redrawn(chooser.runs))]

        def within_reach(paths: Mapping[Any, FloatArray]) -> Mapping[Any, FloatArray]:
            near = {name: path_TK for name, path_TK in paths.items() if self._outside(path_TK) <= _MOST_OUTSIDE}
            return near or paths

        def best(paths: Mapping[Any, FloatArray]) -> Any:
            near = within_reach(paths)
            return max(near, key=lambda name: self._earned(near[name], chooser))

        def by_each_fit(path_TK: FloatArray) -> FloatArray:
            return np.array([self._score(change_2) for change_2 in chooser.at_ends(path_TK, solutions)[:, :2]])

        lines = within_reach({line: along(domains, line, T) for line in _LINES})
        values = {line: by_each_fit(path_TK) for line, path_TK in lines.items()}

        def surely_better(static_TK: FloatArray) -> Line | None:
            """The line that is furthest ahead in nearly all fits, if one is ahead at all."""
            static_R = by_each_fit(static_TK)
            ahead = {line: float(np.quantile(value_R - static_R, _SURELY)) for line, value_R in values.items()}
            line = max(ahead, key=ahead.__getitem__)
            return line if ahead[line] > 0 else None

        held = {line: along(domains, line, T) for line in _LINES if line[0] == line[1]}
        division: Line = best(held)
        every: dict[Any, FloatArray] = {division: held[division]}
        every |= {name: np.broadcast_to(mixture_K, (T, K)) for name, mixture_K in statics.items()}
        static_TK = every[best(every)]
        line = surely_better(static_TK)
        by_role = surely_better(held[division]) or division
        return (division, static_TK), (by_role, static_TK if line is None else lines[line])

    def _outside(self, weights_TK: FloatArray) -> float:
        far_T = np.array([_nearest(self._seen_NTK, t, weights_K).min() for t, weights_K in enumerate(weights_TK)])
        return float((far_T > self._reach).mean())

    def _values(self, weights_TK: FloatArray) -> FloatArray:
        """(1 + R,) the value of a path by the fit, and by each resampled one with an error it is known to make."""
        drawn = [self._score(change_Y[:2]) for change_Y in self._regression.at_ends(weights_TK, self._solutions)]
        return np.append(self._earned(weights_TK), np.array(drawn) + self._missed_R)

    def _earned(self, weights_TK: FloatArray, regression: Regression | None = None) -> float:
        return self._score((regression or self._regression).at_end(weights_TK)[:2])

    def _return(self, run: Logged) -> float:
        return self._score(run.measured_TY[-1, :2] - run.measured_TY[0, :2])

    def _score(self, change_2: FloatArray) -> float:
        return float(np.array([self._weight, 1 - self._weight]) @ (change_2 / self._base_2))


def _redrawn(runs: int) -> FloatArray:
    """(R, runs) how often each run counts where as many are drawn with replacement."""
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=_RESAMPLES).astype(np.float64)


def along(domains: tuple[Domain, ...], line: Line, intervals: int) -> FloatArray:
    """The mixtures (T, K) of a path along which the target share goes from start to end."""
    start, end, flatness = line
    shares = [start + (end - start) * number / intervals for number in range(intervals)]
    return np.array([list(divided_shares(domains, share, flatness).values()) for share in shares])


def static_candidates(runs: Sequence[Trajectory], returns: Sequence[float], quantile: float) -> dict[str, FloatArray]:
    """Mixtures (K,) that might be the best to hold: the means of the best runs' paths, the mean of those, and uniform."""
    order = np.argsort(-np.asarray(returns))[: max(1, int(np.ceil(quantile * len(runs))))]
    means = {f"mean of run {int(n)}": runs[int(n)].weights_TK().mean(axis=0) for n in order}
    K = len(runs[0].names)
    return {**means, "mean of the best runs": np.mean(list(means.values()), axis=0), "uniform": np.full(K, 1 / K)}


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
    return np.array([np.delete(_nearest(runs_NTK, t, runs_NTK[row, t]), row).min() for row in rows for t in range(T)])

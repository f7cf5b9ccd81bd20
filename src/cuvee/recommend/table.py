"""`Runs`: what is known of N small runs.

For each the mixture of each phase, and any number of metrics measured at its end.

A phase is a part of the token budget under one mixture. All runs of a table have the same phases. A
missing metric is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray, IntArray
from cuvee.core.errors import ConfigError, nearest
from cuvee.core.mixture import Mixture
from cuvee.core.trajectory import Run, Trajectory
from cuvee.fleet.store.tabular import BadRow
from cuvee.methods.regmix.runs import FEWEST_RUNS
from cuvee.recommend.tokens import planned_against_achieved
from cuvee.simulation.dynamics_model import Logged

_MOST_PHASES = 3
_MOST_RUNS = 4096
_STATIC = 1e-6  # the largest total variation between mixtures of a run under one mixture
_SCORES = {
    "acc",
    "accuracy",
    "score",
    "f1",
    "em",
    "exact",
    "bleu",
    "rouge",
    "auc",
    "mmlu",
    "pass@1",
}
_LOSSES = {"loss", "nll", "bpb", "ppl", "perplexity", "error", "entropy"}
_SAME = 1e-9  # two runs whose mixtures differ by less are repeats of one mixture


@dataclass(frozen=True, eq=False)
class Runs:
    """`mixtures_NPK` sums to 1 over K.

    `shares_P` is each phase's share of the token budget. `values_ND` has NaN where a metric is
    missing. `higher` are metrics for which more is better. `available` is tokens by domain, where
    known. `curves` are the runs' whole trajectories, where every run has one of the same length.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    mixtures_NPK: FloatArray
    values_ND: FloatArray
    shares_P: FloatArray
    higher: frozenset[str] = frozenset()
    available: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[BadRow, ...] = ()
    notes: tuple[str, ...] = ()
    curves: tuple[Logged, ...] = ()

    @property
    def mean_NK(self) -> FloatArray:
        """(N, K) each domain's share of a run's whole budget: its exposure."""
        return np.asarray(np.einsum("npk,p->nk", self.mixtures_NPK, self.shares_P))

    @property
    def groups_N(self) -> IntArray:
        """(N,) the same number for runs of the same mixtures, which repeat each other."""
        flat_NF = np.round(self.mixtures_NPK.reshape(len(self.names), -1) / _SAME)
        return np.unique(flat_NF, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    @property
    def moves(self) -> bool:
        """Whether any run changes its mixture, without which nothing is known of order."""
        change_NK = np.abs(np.diff(self.mixtures_NPK, axis=1)).sum(axis=2)
        return bool((0.5 * change_NK > _STATIC).any())

    def noise_D(self) -> FloatArray | None:
        """(D,) standard deviation between runs of one mixture, pooled; None if no mixture was run
        twice.
        """
        groups_N = self.groups_N
        squares_D = np.zeros(len(self.metrics))
        freedom_D = np.zeros(len(self.metrics))
        for group in np.flatnonzero(np.bincount(groups_N) > 1):
            for d, values_N in enumerate(self.values_ND[groups_N == group].T):
                there = values_N[np.isfinite(values_N)]
                if len(there) > 1:
                    squares_D[d] += np.square(there - there.mean()).sum()
                    freedom_D[d] += len(there) - 1
        if not (freedom_D > 0).all():
            return None
        return np.sqrt(squares_D / freedom_D)

    def only(self, rows_N: npt.NDArray[np.bool_] | IntArray) -> Runs:
        """The runs of these rows."""
        kept = np.arange(len(self.names))[rows_N]
        return replace(
            self,
            names=tuple(self.names[n] for n in kept),
            mixtures_NPK=self.mixtures_NPK[kept],
            values_ND=self.values_ND[kept],
            curves=tuple(self.curves[n] for n in kept) if self.curves else (),
        )

    def usable(self, objective: Mapping[str, float] | None) -> tuple[Runs, dict[str, float]]:
        """The runs and metrics that can be fitted, and the objective: what each metric counts for,
        the lower the better.

        Without `objective`, the mean of all usable metrics. Raises `ConfigError` for an objective
        over an unusable metric and for too few runs.
        """
        different = len(np.unique(self.groups_N))
        if different < FEWEST_RUNS:
            raise ConfigError(
                f"the table has {len(self.names)} runs of {different} different mixtures, and a "
                "fit needs at least "
                f"{FEWEST_RUNS}: run more mixtures first"
            )
        if len(self.names) > _MOST_RUNS:
            raise ConfigError(
                f"the table has {len(self.names):,} runs, and a fit takes at most {_MOST_RUNS:,}, "
                "since "
                "its time grows with their cube: give a random part of the rows"
            )
        reasons = {name: why for name in self.metrics if (why := self._unusable(name))}
        if objective and not any(objective.values()):
            raise ConfigError(
                f"the objective weighs {', '.join(objective)} by 0: give a weight that is not 0"
            )
        for name in objective or ():
            if name not in self.metrics:
                raise ConfigError(f"no metric {name!r} in the table{nearest(name, self.metrics)}")
            if name in reasons:
                raise ConfigError(f"objective {name} cannot be fitted: it {reasons[name]}")
        kept = [d for d, name in enumerate(self.metrics) if name not in reasons]
        if not kept:
            raise ConfigError(
                "no metric can be fitted: "
                + "; ".join(f"{name} {why}" for name, why in list(reasons.items())[:3])
            )
        notes = tuple(f"{name} is left out: it {why}" for name, why in reasons.items())
        metrics = tuple(self.metrics[d] for d in kept)
        runs = replace(
            self, metrics=metrics, values_ND=self.values_ND[:, kept], notes=self.notes + notes
        )
        given = objective or dict.fromkeys(metrics, 1 / len(metrics))
        signed = {
            name: -weight if name in self.higher else weight for name, weight in given.items()
        }
        if objective is None:
            runs._check_directions()
        runs._check_overlap(signed)
        return runs, signed

    def with_available(self, available: Mapping[str, int]) -> Runs:
        """The same with tokens by domain.

        Raises `ConfigError` for a domain that the table does not have.
        """
        for name in available:
            if name not in self.domains:
                raise ConfigError(
                    f"tokens are given of {name!r}, which is no domain of the "
                    f"table{nearest(name, self.domains)}"
                )
        unknown = [name for name in self.domains if name not in available]
        notes = (f"the tokens of {', '.join(unknown)} are not known, so they have no cap",)
        return replace(self, available=available, notes=self.notes + (notes if unknown else ()))

    def _check_directions(self) -> None:
        """Raises `ConfigError` if a metric's name says that more of it is better and nobody has."""
        scores = [name for name in self.metrics if is_score(name) and name not in self.higher]
        if scores:
            options = " ".join(f"--higher {name}" for name in scores[:3])
            raise ConfigError(
                f"more of {', '.join(scores[:5])} looks better, but the default objective "
                "minimises every metric: "
                f"add {options}, or choose with --objective METRIC=WEIGHT"
            )

    def _check_overlap(self, costs: Mapping[str, float]) -> None:
        """Raises `ConfigError` if too few mixtures have all metrics of the objective, so that its
        error is unknown.
        """
        valued = [self.metrics.index(name) for name, cost in costs.items() if cost]
        whole_N = np.isfinite(self.values_ND[:, valued]).all(axis=1)
        different = len(np.unique(self.groups_N[whole_N]))
        if different < FEWEST_RUNS:
            raise ConfigError(
                f"{different} different mixtures have all {len(valued)} metrics of the objective, "
                "and a fit needs "
                f"{FEWEST_RUNS}: choose metrics that the same runs have with --objective "
                "METRIC=WEIGHT"
            )

    def _unusable(self, name: str) -> str | None:
        values_N = self.values_ND[:, self.metrics.index(name)]
        there = values_N[np.isfinite(values_N)]
        different = len(np.unique(self.groups_N[np.isfinite(values_N)]))
        if different < FEWEST_RUNS:
            return f"is there for {different} different mixtures, and a fit needs {FEWEST_RUNS}"
        if np.ptp(there) == 0:
            return f"is {there[0]:.6g} in every run"
        return None


def is_score(name: str) -> bool:
    """Whether a metric's name says that more of it is better, as with accuracies."""
    words = set(re.split(r"[^a-z0-9@]+", name.lower()))
    return bool(words & _SCORES) and not words & _LOSSES


def runs_of(logged: Sequence[Run]) -> Runs:
    """The table of runs of a store: validation losses by domain, `loss/NAME`, and evaluation scores
    where there are any.

    A run whose mixture moves is averaged over three phases of a third of its budget each. Runs that
    did not finish, or that have other domains than the first, are set aside.
    """
    whole = [run for run in logged if len(run.trajectory) and run.trajectory.last.progress >= 1.0]
    if not whole:
        raise ConfigError(f"none of {len(logged)} runs is finished: run the proxies first")
    domains = whole[0].trajectory.names
    kept = [run for run in whole if _names(run.trajectory) == {domains}]
    bad = [
        BadRow(run.id, 0, "did not finish" if run not in whole else "has other domains")
        for run in logged
        if run not in kept
    ]
    moves = any(_moves(run.trajectory) for run in kept)
    P = _MOST_PHASES if moves and min(len(run.trajectory) for run in kept) >= _MOST_PHASES else 1
    ends = [_metrics(run.trajectory) for run in kept]
    metrics = tuple(dict.fromkeys(name for end in ends for name in end))
    if not metrics:
        raise ConfigError("no run has a validation loss: set train.validation_tokens above 0")
    return Runs(
        names=tuple(run.id for run in kept),
        domains=domains,
        metrics=metrics,
        mixtures_NPK=np.stack([in_phases(run.trajectory.weights_TK(), P) for run in kept]),
        values_ND=np.array([[end.get(name, np.nan) for name in metrics] for end in ends]),
        shares_P=np.full(P, 1 / P),
        higher=frozenset(name for name in metrics if name.startswith("evaluation/")),
        available={domain.name: domain.tokens for domain in whole[0].trajectory.domains},
        bad=tuple(bad),
        notes=(
            *([f"runs that move are averaged over {P} equal phases"] if P > 1 else []),
            *_achieved(kept),
        ),
        curves=_curves(kept, metrics),
    )


def in_phases(weights_TK: FloatArray, phases: int) -> FloatArray:
    """(P, K) the mean mixtures of equal parts of a path of T equal intervals; intervals across a
    border are split.
    """
    T = len(weights_TK)
    edges = np.linspace(0, T, phases + 1)
    starts = np.arange(T)
    inside_PT = np.minimum(starts + 1, edges[1:, None]) - np.maximum(starts, edges[:-1, None])
    return np.asarray(np.maximum(inside_PT, 0.0) @ weights_TK * (phases / T))


def _achieved(runs: Sequence[Run]) -> list[str]:
    """The run whose tokens read differ most from its planned mixture, with the domain that differs
    most.
    """
    worst: tuple[float, str] | None = None
    for run in runs:
        tokens_K = np.sum([signals.tokens_K for signals in run.trajectory.signals], axis=0)
        if not tokens_K.sum():  # logs of others do not say what was read
            continue
        planned_K = run.trajectory.weights_TK().mean(axis=0)
        planned = Mixture.normalise(run.trajectory.names, planned_K)
        apart = float(0.5 * np.abs(tokens_K / tokens_K.sum() - planned_K).sum())
        if worst is None or apart > worst[0]:
            read = dict(zip(planned.names, tokens_K.tolist(), strict=True))
            worst = apart, f"in {run.id}, {planned_against_achieved(planned, read)[0]}"
    if worst is None:
        return []
    return [f"tokens read differ from the plan by at most {worst[0]:.2%} of a run: {worst[1]}"]


def _names(trajectory: Trajectory) -> set[tuple[str, ...]]:
    return {mixture.names for mixture in trajectory.mixtures}


def _moves(trajectory: Trajectory) -> bool:
    weights_TK = trajectory.weights_TK()
    return bool((0.5 * np.abs(weights_TK - weights_TK[0]).sum(axis=1) > _STATIC).any())


def _metrics(trajectory: Trajectory) -> dict[str, float]:
    found: dict[str, float] = {}
    for probe, prefix, names in (
        ("valid_loss", "loss", trajectory.names),
        ("evaluation", "evaluation", ("source", "target")),
    ):
        measured = trajectory.last.probes.get(probe)
        if measured is not None and measured.shape == (len(names),):
            there = zip(names, measured.values, measured.present, strict=True)
            found |= {
                f"{prefix}/{name}": float(value) for name, value, is_there in there if is_there
            }
    return found


def _curves(runs: Sequence[Run], metrics: tuple[str, ...]) -> tuple[Logged, ...]:
    """Whole trajectories with metrics at every timestep, the last known value where one was not
    measured; () if they differ
    in length or have no metric at their start.
    """
    lengths = {len(run.trajectory) for run in runs}
    if len(lengths) != 1 or lengths == {1}:
        return ()
    found = []
    for run in runs:
        rows = [_metrics(run.trajectory)] * 0
        for t in range(len(run.trajectory) + 1):
            step = Trajectory(run.trajectory.signals[: t + 1], run.trajectory.mixtures[:t])
            rows.append((rows[-1] if rows else {}) | _metrics(step))
        if any(name not in rows[0] for name in metrics):
            return ()
        measured_TD = np.array([[row[name] for name in metrics] for row in rows])
        target_K = np.array([domain.is_target for domain in run.trajectory.domains])
        found.append(Logged(run.trajectory.weights_TK(), measured_TD, target_K))
    return tuple(found)

"""`recommend`: a table of runs → a plan, and predictions of its metrics with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.epochs import check_epochs
from cuvee.core.errors import ConfigError, MixtureError
from cuvee.core.mixture import Mixture
from cuvee.evaluation.statistics import Estimate
from cuvee.recommend.choose import Bounds, Choice, cautious, choose, optimise
from cuvee.recommend.fits import LEVEL, Surrogate, fit_surrogate
from cuvee.recommend.mixmin import mixmin_of
from cuvee.recommend.plan import Plan, Stage
from cuvee.recommend.table import Runs

_FRONT = 9  # points of the Pareto front


@dataclass(frozen=True)
class Request:
    """The request to `recommend`.

    `objective` weighs metrics (default: the mean of all). `tokens` is the target run's budget.
    `caps` and `floors` are shares by domain. `present` is the blend to compare with: natural,
    uniform, or shares by domain. `pareto` names two metrics. `outputs` is a table of
    log-probabilities for MixMin.
    """

    objective: Mapping[str, float] | None = None
    tokens: int | None = None
    epoch_cap: float = 4.0
    caps: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    present: str | Mapping[str, float] = "natural"
    most_stages: int = 3
    caution: float = 1.0
    pareto: tuple[str, str] | None = None
    outputs: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens is {self.tokens}: give the target run's budget, 1 or more")
        check_epochs("epoch_cap", self.epoch_cap)
        if not 0 <= self.caution < math.inf:
            raise ConfigError(f"caution is {self.caution:g}: give standard deviations, 0 or more")
        if self.pareto and self.pareto[0] == self.pareto[1]:
            raise ConfigError(f"pareto names {self.pareto[0]} twice: give two metrics")
        if not 1 <= self.most_stages <= 3:
            raise ConfigError(f"stages is {self.most_stages}: use 1, 2 or 3")


@dataclass(frozen=True)
class Interval:
    """`mean` with the interval in which a run's value lies at `fits.LEVEL`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """Of one plan: the objective and each metric."""

    objective: Interval
    metrics: Mapping[str, Interval]


@dataclass(frozen=True, eq=False)
class Recommendation:
    """`plan` and why.

    `change` is the plan's objective less that of the present blend, paired. `front` are plans with
    the values of the two metrics of `Request.pareto`.
    """

    plan: Plan
    choice: Choice
    predicted: Prediction
    present: Mixture
    present_predicted: Prediction
    change: Estimate
    front: tuple[tuple[Plan, Prediction], ...]
    mixmin: tuple[Mixture, Prediction] | None
    runs: Runs
    surrogate: Surrogate
    bounds: Bounds
    request: Request

    def to_json(self) -> dict[str, Any]:
        """Everything but the fits, as plain JSON."""
        costs = zip(self.surrogate.metrics, self.surrogate.costs_D.tolist(), strict=True)
        return {
            "plan": self.plan.to_json(),
            "epochs": self.plan.epochs(),
            "predicted": asdict(self.predicted),
            "level": LEVEL,
            "objective": {name: cost for name, cost in costs if cost},
            "stages_gain": self.choice.gained and asdict(self.choice.gained),
            "more_stages": self.choice.compared and asdict(self.choice.compared),
            "present": {"weights": self.present.as_dict(), **asdict(self.present_predicted)},
            "change": asdict(self.change),
            "front": [{**plan.to_json(), **asdict(found)} for plan, found in self.front],
            "mixmin": self.mixmin
            and {"weights": self.mixmin[0].as_dict(), **asdict(self.mixmin[1])},
            "evidence": asdict(self.surrogate.evidence),
            "runs": len(self.runs.names),
            "quarantined": [row.as_dict() for row in self.runs.bad],
            "notes": list(self.runs.notes),
        }


def recommend(runs: Runs, request: Request | None = None) -> Recommendation:
    """Fits the runs and chooses.

    Raises `ConfigError` for a table, an objective or bounds that allow no answer.

    Example: `recommend(read_runs([Path("runs.csv")]), Request(tokens=10**10)).plan`.
    """
    request = request or Request()
    runs, costs = runs.usable(request.objective)
    bounds = Bounds.of(
        runs.domains,
        available=runs.available,
        tokens=request.tokens,
        epoch_cap=request.epoch_cap,
        caps=request.caps,
        floors=request.floors,
    )
    if request.present == "natural" and not all(runs.available.get(n) for n in runs.domains):
        request = replace(request, present="uniform")
        note = (
            "tokens by domain are not known (--available): the present blend is taken to be uniform"
        )
        runs = replace(runs, notes=(*runs.notes, note))
    if request.tokens is not None and not runs.available:
        note = "tokens by domain are not known (--available): there are no epochs and no epoch caps"
        runs = replace(runs, notes=(*runs.notes, note))
    present = _present(runs, bounds, request.present)
    if request.pareto:
        for name in request.pareto:
            if name not in runs.metrics:
                raise ConfigError(
                    f"no metric {name!r} to trade; there are {', '.join(runs.metrics)}"
                )
    mixmin = mixmin_of(request.outputs, runs.domains) if request.outputs else None
    surrogate = fit_surrogate(runs, costs)
    choice = choose(
        surrogate,
        bounds,
        runs.mixtures_NPK,
        most_stages=request.most_stages,
        caution=request.caution,
        seed=request.seed,
    )
    path_PK = choice.path_PK
    present_PK = np.broadcast_to(present.weights_K, path_PK.shape)
    return Recommendation(
        plan=_plan(choice, runs, request.tokens),
        choice=choice,
        predicted=predict(surrogate, path_PK),
        present=present,
        present_predicted=predict(surrogate, present_PK),
        change=surrogate.difference(path_PK, present_PK),
        front=_front(runs, surrogate, bounds, request),
        mixmin=(mixmin, _static(surrogate, mixmin)) if mixmin else None,
        runs=runs,
        surrogate=surrogate,
        bounds=bounds,
        request=request,
    )


def predict(surrogate: Surrogate, path_PK: FloatArray) -> Prediction:
    """What a run along `path_PK` would measure."""
    paths = path_PK[None]
    means_D, widths_D = surrogate.means(paths)[0], surrogate.half_widths(paths)[0]
    value = float(surrogate.objective(paths)[0])
    width = float(surrogate.objective_half_width(paths)[0])
    metrics = {
        name: Interval(float(mean), float(mean - half), float(mean + half))
        for name, mean, half in zip(surrogate.metrics, means_D, widths_D, strict=True)
    }
    return Prediction(Interval(value, value - width, value + width), metrics)


def _present(runs: Runs, bounds: Bounds, given: str | Mapping[str, float]) -> Mixture:
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(runs.domains))
        if unknown:
            raise ConfigError(
                f"--from names {', '.join(unknown)}; the table has {', '.join(runs.domains)}"
            )
        try:
            return Mixture.normalise(runs.domains, [given.get(name, 0.0) for name in runs.domains])
        except MixtureError as error:
            raise ConfigError(f"--from: {error}") from error
    if given == "natural":
        return Mixture.normalise(runs.domains, bounds.natural_K)
    if given == "uniform":
        return Mixture.uniform(runs.domains)
    raise ConfigError(f"--from is {given!r}: use natural, uniform, or a JSON file of shares")


def _plan(choice: Choice, runs: Runs, tokens: int | None) -> Plan:
    edges = np.concatenate([[0.0], np.cumsum(runs.shares_P)])
    edges[-1] = 1.0
    stages = tuple(
        Stage(
            float(edges[phases[0]]),
            float(edges[phases[-1] + 1]),
            Mixture.normalise(runs.domains, choice.path_PK[phases[0]]),
        )
        for phases in choice.stages
    )
    return Plan(stages, tokens, runs.available)


def _front(
    runs: Runs, surrogate: Surrogate, bounds: Bounds, request: Request
) -> tuple[tuple[Plan, Prediction], ...]:
    """Plans of one stage between the best for one metric and the best for the other; the metrics
    weigh by their spread.
    """
    if request.pareto is None:
        return ()
    found = []
    first, second = (runs.metrics.index(name) for name in request.pareto)
    signs_D = np.array([-1.0 if name in runs.higher else 1.0 for name in runs.metrics])
    scale_D = signs_D / np.nanstd(runs.values_ND, axis=0)
    phases = (tuple(range(len(runs.shares_P))),)
    for share in np.linspace(0, 1, _FRONT):
        costs_D = np.zeros(len(runs.metrics))
        costs_D[first] += (1 - share) * scale_D[first]
        costs_D[second] += share * scale_D[second]
        traded = replace(surrogate, costs_D=costs_D)
        path_PK = optimise(
            cautious(traded, 0.0), bounds, runs.mixtures_NPK, runs.shares_P, phases, request.seed
        )
        plan = _plan(Choice(path_PK, phases), runs, request.tokens)
        found.append((plan, predict(surrogate, path_PK)))
    return tuple(found)


def _static(surrogate: Surrogate, mixture: Mixture) -> Prediction:
    """What a run under one mixture would measure."""
    P = len(surrogate.shares_P)
    return predict(surrogate, np.broadcast_to(mixture.weights_K, (P, len(mixture))))

"""The numbers of a report: a view of each run, and runs grouped into methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, Split
from cuvee.core.errors import ConfigError
from cuvee.core.trajectory import Cost, Run
from cuvee.evaluation.statistics import bits_per_byte, steps_to_reach


@dataclass(frozen=True)
class Scores:
    """Losses of one model on one split, in nats per token. Each domain has the same weight.

    `source`, `target` and their mean `balance` are None unless the corpus has domains of both
    roles.
    """

    mean: float
    source: float | None
    target: float | None
    balance: float | None
    worst: float
    worst_domain: str
    perplexity: float
    """exp of `mean`."""
    bits_per_byte: float | None
    """Mean over domains of loss / ln 2 / (bytes per token); None unless known for all domains."""

    @property
    def headline(self) -> float:
        """The loss by which methods are ranked: `balance` if there are two roles, else `mean`."""
        return self.mean if self.balance is None else self.balance


def score(
    domains: Sequence[Domain], loss_K: FloatArray, bytes_per_token: Mapping[str, float]
) -> Scores:
    target_K = np.array([domain.is_target for domain in domains])
    both = bool(target_K.any() and not target_K.all())
    source = float(loss_K[~target_K].mean()) if both else None
    target = float(loss_K[target_K].mean()) if both else None
    width = [bytes_per_token.get(domain.name, 0.0) for domain in domains]
    bits = [bits_per_byte(float(loss), w) for loss, w in zip(loss_K, width, strict=True) if w > 0]
    mean = float(loss_K.mean())
    worst = int(loss_K.argmax())
    return Scores(
        mean=mean,
        source=source,
        target=target,
        balance=(source + target) / 2 if source is not None and target is not None else None,
        worst=float(loss_K[worst]),
        worst_domain=domains[worst].name,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=sum(bits) / len(bits) if len(bits) == len(domains) else None,
    )


@dataclass(frozen=True)
class RunView:
    """One run in a report. `domains` are the K domains measured in every run of the report.

    `split` is the split of the final scores, the same in all runs of a report.
    """

    run: Run
    label: str
    domains: tuple[Domain, ...]
    status: str
    finished: bool
    bytes_per_token: Mapping[str, float]
    split: Split = "valid"

    @cached_property
    def tokens_T1(self) -> npt.NDArray[np.int64]:
        """(T+1,) training tokens up to each signal."""
        return np.cumsum([int(signals.tokens_K.sum()) for signals in self.run.trajectory.signals])

    @cached_property
    def _points(self) -> list[int]:
        names = {domain.name for domain in self.domains}
        return [
            t
            for t in range(len(self.tokens_T1))
            if names and names <= set(held_out_loss(self.run, t, "valid"))
        ]

    @cached_property
    def tokens_P(self) -> npt.NDArray[np.int64]:
        """(P,) tokens at the points where all domains were validated."""
        return self.tokens_T1[self._points]

    @cached_property
    def loss_PK(self) -> FloatArray:
        """(P, K) validation losses at these points."""
        measured = [held_out_loss(self.run, t, "valid") for t in self._points]
        rows = [[losses[domain.name] for domain in self.domains] for losses in measured]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.domains))

    @cached_property
    def untested(self) -> tuple[str, ...]:
        """Names of the domains without a test loss of the final model."""
        losses = held_out_loss(self.run, len(self.run.trajectory), "test")
        return tuple(domain.name for domain in self.domains if domain.name not in losses)

    @cached_property
    def test_K(self) -> FloatArray | None:
        """(K,) test losses of the final model; None unless all domains were tested."""
        if self.untested or not self.domains:
            return None
        losses = held_out_loss(self.run, len(self.run.trajectory), "test")
        return np.array([losses[domain.name] for domain in self.domains])

    @cached_property
    def scores_P(self) -> list[Scores]:
        return [score(self.domains, loss_K, self.bytes_per_token) for loss_K in self.loss_PK]

    @property
    def proxies(self) -> Cost | None:
        """The cost of the runs from which the run's policy was learned; None if unknown."""
        spent = self.run.config.get("proxies")
        if isinstance(spent, Mapping):
            return Cost(int(spent["tokens"]), float(spent["flops"]), float(spent["seconds"]))
        return None if self.run.config.get("policy") else Cost()

    @property
    def final_K(self) -> FloatArray | None:
        """(K,) losses behind `final`."""
        if self.split == "test":
            return self.test_K
        return self.loss_PK[-1] if len(self.loss_PK) else None

    @cached_property
    def final(self) -> Scores | None:
        """Scores of the final model on `split`.

        For an unfinished run these are the scores at its last validation if `split` is "valid", and
        None if it is "test".
        """
        if self.final_K is None:
            return None
        return score(self.domains, self.final_K, self.bytes_per_token)

    @property
    def last_validation(self) -> Scores | None:
        return self.scores_P[-1] if self.scores_P else None

    @property
    def start(self) -> Scores | None:
        """Validation scores before training, if they were measured."""
        return self.scores_P[0] if self.scores_P and self._points[0] == 0 else None


@dataclass(frozen=True)
class MethodView:
    """The runs of one method, by seed."""

    label: str
    runs: tuple[RunView, ...]

    @property
    def finished(self) -> tuple[RunView, ...]:
        return tuple(view for view in self.runs if view.finished and view.final)

    @property
    def scored(self) -> tuple[RunView, ...]:
        """The finished runs; if there are none, all runs that were validated."""
        return self.finished or tuple(view for view in self.runs if view.last_validation)

    def by_seed(self, value: Callable[[Scores], float | None]) -> dict[int, float]:
        """`value` of the final scores of each finished run, by seed. Absent values are left out."""
        found = {view.run.seed: value(view.final) for view in self.finished if view.final}
        return {seed: number for seed, number in found.items() if number is not None}

    @property
    def cost(self) -> Cost:
        """The mean cost of a run, without proxies."""
        return _mean_cost([view.run.cost for view in self.scored or self.runs])

    @property
    def proxies(self) -> Cost | None:
        """The mean cost of the proxies behind a run's policy; None if it is unknown for a run."""
        spent = [view.proxies for view in self.scored or self.runs]
        known = [cost for cost in spent if cost is not None]
        return _mean_cost(known) if len(known) == len(spent) else None

    def mean(self, value: Callable[[Scores], float | None]) -> float | None:
        """Mean of `value` of the final scores of the scored runs; None if one of them lacks it."""
        return _mean([value(view.final) for view in self.scored if view.final])

    def validated_mean(self, value: Callable[[Scores], float | None]) -> float | None:
        """`mean`, of the scores at the last validation."""
        scores = [view.last_validation for view in self.scored]
        return _mean([value(one) for one in scores if one])


def shares_of_tokens(method: MethodView, baseline: MethodView) -> list[float | None]:
    """Return the share of the baseline's tokens at which the method reaches its final validation loss.

    One value per shared seed; None where it is never reached.
    """
    theirs: Mapping[int, RunView] = {view.run.seed: view for view in baseline.finished}
    shares: list[float | None] = []
    for view in method.finished:
        if (other := theirs.get(view.run.seed)) and other.last_validation:
            losses = [scores.headline for scores in view.scores_P]
            reached = steps_to_reach(view.tokens_P, losses, other.last_validation.headline)
            shares.append(None if reached is None else reached / max(int(other.tokens_P[-1]), 1))
    return shares


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    total = sum(costs, Cost())
    count = len(costs)
    return Cost(round(total.tokens / count), total.flops / count, total.seconds / count)


@dataclass(frozen=True)
class Summary:
    """Everything that the page shows. `unmeasured` are domains without validation loss in a run."""

    methods: tuple[MethodView, ...]
    baseline: str
    domains: tuple[Domain, ...]
    unmeasured: tuple[str, ...]

    @property
    def runs(self) -> list[RunView]:
        return [view for method in self.methods for view in method.runs]

    @property
    def split(self) -> Split:
        """The split of the final scores: "test" if every finished run was tested, else "valid"."""
        return self.runs[0].split

    @property
    def seeds(self) -> list[int]:
        return sorted({view.run.seed for view in self.runs})

    @property
    def longest(self) -> int:
        """Tokens of the longest run."""
        return max(int(view.tokens_T1[-1]) for view in self.runs)

    @property
    def has_roles(self) -> bool:
        """Whether the corpus has both source and target domains."""
        return len({domain.role for domain in self.domains}) == 2


def held_out_loss(run: Run, t: int, split: Split) -> dict[str, float]:
    """Return the loss on `split` by domain at signal t, without domains that were not measured."""
    signals = run.trajectory.signals[t]
    measured = signals.probes.get(f"{split}_loss")
    if measured is None or measured.shape != (len(signals.domains),):
        return {}
    return {
        name: float(v)
        for name, v, seen in zip(signals.names, measured.values, measured.present, strict=True)
        if seen
    }


def method_label(config: Mapping[str, Any]) -> str:
    """Return the method's label or name, or the policy's label."""
    method = config.get("method")
    if isinstance(method, Mapping):
        return str(method.get("label") or method.get("name") or "unnamed")
    return str(method or config.get("policy") or "unnamed")


def summarise(
    runs: Sequence[Run],
    baseline: str | None = None,
    statuses: Mapping[str, str] | None = None,
    bytes_per_token: Mapping[str, float] | None = None,
) -> Summary:
    """Group runs into methods in the order of the runs, with the baseline first.

    Final scores are test losses if every finished run has one of each domain that was validated.
    Otherwise they are validation losses.

    Bytes per token come from the runs' configurations (`bytes_per_token` by domain) unless they are
    given. Raises `ConfigError` if there is no run, if the runs have no domain in common, or if no
    run has the baseline's label.
    """
    if not runs:
        raise ConfigError(
            "a report needs at least one run, got none: train one with `cuvee train CONFIG.yaml`"
        )
    labels = list(dict.fromkeys(method_label(run.config) for run in runs))
    if baseline is None:
        baseline = "natural" if "natural" in labels else labels[0]
    elif baseline not in labels:
        raise ConfigError(
            f"the baseline {baseline!r} is not one of the methods that ran: {', '.join(labels)}"
        )
    labels.sort(key=lambda label: label != baseline)
    common = _common_domains(runs)
    measured = _measured(runs, common)
    views = [_view(run, measured, statuses or {}, bytes_per_token or _widths(run)) for run in runs]
    finished = [view for view in views if view.finished]
    if finished and all(view.test_K is not None for view in finished):
        views = [replace(view, split="test") for view in views]
    methods = [
        MethodView(
            label,
            tuple(sorted((v for v in views if v.label == label), key=lambda view: view.run.seed)),
        )
        for label in labels
    ]
    gone = tuple(domain.name for domain in common if domain not in measured)
    return Summary(tuple(methods), baseline, measured, gone)


def _widths(run: Run) -> Mapping[str, float]:
    widths = run.config.get("bytes_per_token")
    usable = widths if isinstance(widths, Mapping) else {}
    return {
        name: float(width)
        for name, width in usable.items()
        if isinstance(width, (int, float)) and 0 < width < math.inf
    }


def _common_domains(runs: Sequence[Run]) -> tuple[Domain, ...]:
    shared = set.intersection(*(set(run.trajectory.names) for run in runs))
    if not shared:
        raise ConfigError("the runs have no domain in common: write a report for each corpus")
    return tuple(domain for domain in runs[0].trajectory.domains if domain.name in shared)


def _measured(runs: Sequence[Run], common: tuple[Domain, ...]) -> tuple[Domain, ...]:
    """Domains that are in the last validation of every run that was validated."""
    seen = []
    for run in runs:
        found = (held_out_loss(run, t, "valid") for t in range(len(run.trajectory), -1, -1))
        if last := next((losses for losses in found if losses), None):
            seen.append(set(last))
    return tuple(
        domain for domain in common if seen and all(domain.name in names for names in seen)
    )


def _view(
    run: Run,
    domains: tuple[Domain, ...],
    statuses: Mapping[str, str],
    bytes_per_token: Mapping[str, float],
) -> RunView:
    progress = run.trajectory.last.progress
    given = statuses.get(run.id, "")
    finished = progress >= 1.0 and not given.startswith("failed")
    status = "finished" if finished else f"{given or 'not finished'}, {progress:.0%} of the budget"
    return RunView(run, method_label(run.config), domains, status, finished, bytes_per_token)

"""Views of a run and of a method's runs: their scores, costs, and who steered them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, Split
from cuvee.core.trajectory import Cost, Run
from cuvee.evaluation.statistics import bits_per_byte, steps_to_reach
from cuvee.report.steering import Steering


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
    objective: float | None = None
    """Mean over the domains of the objective, with its weights; None without an objective."""
    beside: float | None = None
    """Mean over the domains that the objective leaves out; None if it leaves none out."""

    @property
    def headline(self) -> float:
        """The loss by which methods are ranked: `objective`, else `balance`, else `mean`."""
        if self.objective is not None:
            return self.objective
        return self.mean if self.balance is None else self.balance


def score(
    domains: Sequence[Domain],
    loss_K: FloatArray,
    bytes_per_token: Mapping[str, float],
    objective: Mapping[str, float] | None = None,
) -> Scores:
    """Return the scores of a model with losses `loss_K`. `objective` has weights by domain."""
    target_K = np.array([domain.is_target for domain in domains])
    both = bool(target_K.any() and not target_K.all())
    source = float(loss_K[~target_K].mean()) if both else None
    target = float(loss_K[target_K].mean()) if both else None
    width = [bytes_per_token.get(domain.name, 0.0) for domain in domains]
    bits = [bits_per_byte(float(loss), w) for loss, w in zip(loss_K, width, strict=True) if w > 0]
    mean = float(loss_K.mean())
    worst = int(loss_K.argmax())
    weights_K = np.array([(objective or {}).get(domain.name, 0.0) for domain in domains])
    weighed_K = weights_K > 0
    return Scores(
        mean=mean,
        source=source,
        target=target,
        balance=(source + target) / 2 if source is not None and target is not None else None,
        worst=float(loss_K[worst]),
        worst_domain=domains[worst].name,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=sum(bits) / len(bits) if len(bits) == len(domains) else None,
        objective=float(np.average(loss_K, weights=weights_K)) if weighed_K.any() else None,
        beside=float(loss_K[~weighed_K].mean()) if 0 < weighed_K.sum() < len(domains) else None,
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
    steering: Steering | None = None
    objective: Mapping[str, float] | None = None
    """Weights by domain, the same in all runs of a report."""

    @cached_property
    def tokens_T1(self) -> npt.NDArray[np.int64]:
        """(T+1,) training tokens up to each signal."""
        return self.run.trajectory.tokens_T1()

    def weights_TK(self, names: Sequence[str]) -> FloatArray:
        """(T, K) shares of the batch of these domains; 0 before a domain was added."""
        shares = [mixture.as_dict() for mixture in self.run.trajectory.mixtures]
        rows = [[share.get(name, 0.0) for name in names] for share in shares]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))

    def read_TK(self, names: Sequence[str]) -> FloatArray:
        """(T+1, K) training tokens of these domains up to each signal."""
        drawn_TK = np.zeros((len(self.run.trajectory) + 1, len(names)))
        for row_K, signals in zip(drawn_TK, self.run.trajectory.signals, strict=True):
            if signals.names == tuple(names):
                row_K[:] = signals.tokens_K
            else:
                tokens = dict(zip(signals.names, signals.tokens_K.tolist(), strict=True))
                row_K[:] = [tokens.get(name, 0) for name in names]
        return np.cumsum(drawn_TK, axis=0)

    @cached_property
    def _validations(self) -> list[dict[str, float]]:
        signals = range(len(self.run.trajectory) + 1)
        return [held_out_loss(self.run, t, "valid") for t in signals]

    @cached_property
    def _points(self) -> list[int]:
        names = {domain.name for domain in self.domains}
        return [t for t, losses in enumerate(self._validations) if names and names <= losses.keys()]

    @cached_property
    def tokens_P(self) -> npt.NDArray[np.int64]:
        """(P,) tokens at the points where all domains were validated."""
        return self.tokens_T1[self._points]

    @cached_property
    def loss_PK(self) -> FloatArray:
        """(P, K) validation losses at these points."""
        measured = [self._validations[t] for t in self._points]
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
        return [self._score(loss_K) for loss_K in self.loss_PK]

    def _score(self, loss_K: FloatArray) -> Scores:
        return score(self.domains, loss_K, self.bytes_per_token, self.objective)

    @property
    def proxies(self) -> Cost | None:
        """The cost of the runs from which the run's policy was learned; None if unknown."""
        spent = self.run.config.get("proxies")
        if isinstance(spent, Mapping):
            return Cost(int(spent["tokens"]), float(spent["flops"]), float(spent["seconds"]))
        return None if self.run.config.get("policy") else Cost()

    @property
    def lost(self) -> Cost:
        """The part of the cost that went into interrupted attempts and was trained again.

        These are the tokens beyond those of the trajectory, with FLOPs and seconds in proportion.
        """
        spent = self.run.cost
        tokens = max(0, spent.tokens - int(self.tokens_T1[-1]))
        share = tokens / spent.tokens if tokens else 0.0
        return Cost(tokens, share * spent.flops, share * spent.seconds)

    @property
    def cost(self) -> Cost:
        """The cost of the run without lost work and without proxies."""
        spent, lost = self.run.cost, self.lost
        return Cost(
            spent.tokens - lost.tokens, spent.flops - lost.flops, spent.seconds - lost.seconds
        )

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
        return None if self.final_K is None else self._score(self.final_K)

    @property
    def last_validation(self) -> Scores | None:
        return self.scores_P[-1] if self.scores_P else None

    @property
    def start(self) -> Scores | None:
        """Validation scores before training, if they were measured."""
        return self.scores_P[0] if self.scores_P and self._points[0] == 0 else None


@dataclass(frozen=True)
class Crossed:
    """Values by the seeds of `parts`, one seed for each part."""

    parts: tuple[str, ...]
    values: Mapping[tuple[int, ...], float]

    def minus(self, other: Crossed) -> Crossed:
        """The differences where both have a value."""
        shared = {
            seeds: value - other.values[seeds]
            for seeds, value in self.values.items()
            if seeds in other.values
        }
        return Crossed(self.parts, shared)


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

    def crossed(self, value: Callable[[Scores], float | None]) -> Crossed | None:
        """`value` of the final scores by the seeds of the run's parts, if those were crossed."""
        seeds = {view.run.seed: view.run.config.get("part_seeds") for view in self.finished}
        known = {seed: found for seed, found in seeds.items() if isinstance(found, Mapping)}
        values = self.by_seed(value)
        parts = [
            part
            for part in next(iter(known.values()), {})
            if len({found.get(part) for found in known.values()}) > 1
        ]
        if len(known) < len(values) or not parts:
            return None
        by_levels = {
            tuple(int(known[seed][part]) for part in parts): number
            for seed, number in values.items()
        }
        return Crossed(tuple(map(str, parts)), by_levels)

    @property
    def cost(self) -> Cost:
        """The mean cost of a run, without lost work and without proxies."""
        return _mean_cost([view.cost for view in self.scored or self.runs])

    @property
    def lost(self) -> Cost:
        """The mean cost of work that was lost to interruptions and done again."""
        return _mean_cost([view.lost for view in self.scored or self.runs])

    @property
    def others(self) -> dict[str, int]:
        """Decisions of the scored runs that were not the policy's own, by who decided instead."""
        found: Counter[str] = Counter()
        for view in self.scored:
            found.update(view.steering.others if view.steering else {})
        return dict(found)

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


@dataclass(frozen=True)
class TokensNeeded:
    """The share of the baseline's tokens that a method needs, over `runs` of which `reached` did.

    A run that never reached the baseline's end is censored: its share is only known to be larger
    than it trained for. So `typical` is the mean if all runs reached it, the median if more than
    half did, else None.
    """

    reached: int
    runs: int
    typical: float | None


def tokens_needed(shares: Sequence[float | None]) -> TokensNeeded:
    """Summarise the result of `shares_of_tokens`."""
    reached = sorted(share for share in shares if share is not None)
    typical = None
    if reached and len(reached) == len(shares):
        typical = sum(reached) / len(reached)
    elif 2 * len(reached) > len(shares):
        typical = float(np.median([*reached, *[math.inf] * (len(shares) - len(reached))]))
        typical = typical if math.isfinite(typical) else None
    return TokensNeeded(len(reached), len(shares), typical)


def break_even(method: MethodView, baseline: MethodView) -> float | None:
    """Return the FLOPs of the baseline's run from which the proxies are worth their cost.

    Let a method reach the baseline's loss after the share s of its tokens, at r times its FLOPs per
    token. It saves 1 − s·r of that run. Proxies of P FLOPs pay off for runs of P / (1 − s·r) FLOPs
    or more, if s stays the same. None if they never do, or if a cost is unknown.
    """
    proxies, own, other = method.proxies, method.cost, baseline.cost
    needed = tokens_needed(shares_of_tokens(method, baseline))
    if proxies is None or needed.typical is None or not (own.tokens and other.flops):
        return None
    saved = 1.0 - needed.typical * (own.flops / own.tokens) / (other.flops / other.tokens)
    return proxies.flops / saved if saved > 0 else None


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    total = sum(costs, Cost())
    count = len(costs)
    return Cost(round(total.tokens / count), total.flops / count, total.seconds / count)


def held_out_loss(run: Run, t: int, split: Split) -> dict[str, float]:
    """Return the loss on `split` by domain at signal t, without domains that were not measured."""
    signals = run.trajectory.at(t)
    measured = signals.probes.get(f"{split}_loss")
    if measured is None or measured.shape != (len(signals.domains),):
        return {}
    return {
        name: float(v)
        for name, v, seen in zip(signals.names, measured.values, measured.present, strict=True)
        if seen
    }

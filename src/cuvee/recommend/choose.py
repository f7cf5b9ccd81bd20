"""The mixture, or the stages, with the lowest predicted objective.

    minimise   m(w) + κ s(w)      over stages w, each on the simplex, within floors and caps

m is the predicted objective and s its calibrated standard deviation, so that κ > 0 keeps the choice
near what was run. The search keeps the best of a population of mixtures, perturbs their logarithms
and repeats (a cross-entropy method, Rubinstein 1999), and returns the mean of the best. It needs no
gradient, so every fit can be used.

A cap limits a domain's mean share over the whole run, since it stands for repetition. A floor holds
in every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from cuvee.core.arrays import FloatArray, IntArray
from cuvee.core.epochs import allowed, largest_shares
from cuvee.core.errors import ConfigError, nearest
from cuvee.evaluation.statistics import Estimate
from cuvee.methods.regmix.method import capped_phases
from cuvee.recommend.fits import Surrogate

_FIRST, _POPULATION, _PARENTS, _KEPT, _ROUNDS = 4096, 384, 48, 8, 16
_WIDE, _NARROW = 1.0, 0.04  # standard deviations of ln w in the first and in the last round
_ROUNDING = 1e-9  # by so much may caps that sum to 1 miss it as floats
_RETURNING = 0.002  # share of a uniform mixture blended in, so that a domain at 0 can come back

Score = Callable[[FloatArray], FloatArray]
"""Paths (M, P, K) → (M,), the lower the better."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """`floors_K` ≤ each stage's share; mean share over the run ≤ `ceilings_K`.

    `natural_K` fills what caps leave over.
    """

    floors_K: FloatArray
    ceilings_K: FloatArray
    natural_K: FloatArray

    @classmethod
    def of(
        cls,
        domains: Sequence[str],
        *,
        available: Mapping[str, int] | None = None,
        tokens: int | None = None,
        epoch_cap: float = 4.0,
        caps: Mapping[str, float] | None = None,
        floors: Mapping[str, float] | None = None,
    ) -> Bounds:
        """Caps are shares by name; where `tokens` and `available` are known, none exceeds
        `epoch_cap` passes over a domain.

        Raises `ConfigError` for an unknown domain and for bounds that no mixture satisfies."""
        for name, share in {**(caps or {}), **(floors or {})}.items():
            if name not in domains:
                raise ConfigError(f"no domain {name!r}{nearest(name, domains)}")
            if not 0 <= share <= 1:
                raise ConfigError(f"the bound of {name} is {share:g}: give a share from 0 to 1")
        ceilings_K = np.array([(caps or {}).get(name, 1.0) for name in domains])
        known = available or {}
        if tokens is not None:
            available_K = np.array([known.get(name, np.inf) for name in domains])
            capped_K = largest_shares(allowed(epoch_cap, available_K), tokens)
            ceilings_K = np.minimum(ceilings_K, capped_K)
        floors_K = np.array([(floors or {}).get(name, 0.0) for name in domains])
        if ceilings_K.sum() < 1 - _ROUNDING:
            raise ConfigError(
                f"the caps leave room for {ceilings_K.sum():.1%} of the budget: raise --epoch-cap, "
                "lower --tokens, "
                "or cap fewer domains"
            )
        if floors_K.sum() >= 1:
            raise ConfigError(
                f"the floors sum to {floors_K.sum():g}, which must be below 1: lower them"
            )
        worst = int((floors_K - ceilings_K).argmax())
        if floors_K[worst] > ceilings_K[worst]:
            raise ConfigError(
                f"the floor of {domains[worst]} is {floors_K[worst]:g} and its cap "
                f"{ceilings_K[worst]:.4g}: "
                "lower the floor, or raise the cap, --epoch-cap or the domain's tokens"
            )
        natural_K = np.array([float(known.get(name, 0)) for name in domains])
        natural_K = natural_K if natural_K.all() else np.ones(len(domains))
        return cls(floors_K, ceilings_K, natural_K / natural_K.sum())

    def within(self, paths_MPK: FloatArray, shares_P: FloatArray) -> FloatArray:
        """The nearest paths, in shape, that keep floors and caps."""
        free = 1.0 - self.floors_K.sum()
        ceilings_K = (self.ceilings_K - self.floors_K) / free
        above_MPK = capped_phases(paths_MPK, np.maximum(ceilings_K, 0.0), self.natural_K, shares_P)
        return np.asarray(self.floors_K + free * above_MPK)


@dataclass(frozen=True, eq=False)
class Choice:
    """`path_PK` is the mixture of each phase; phases of one stage share it, and `stages` is the
    phases of each stage.
    `compared` is the objective of more stages than these less that of these, where that was asked:
    why there are no more.
    """

    path_PK: FloatArray
    stages: tuple[tuple[int, ...], ...]
    gained: Estimate | None = None
    """Objective of these stages less that of one stage."""
    compared: Estimate | None = None

    @property
    def is_tied(self) -> bool:
        return len(self.stages) == 1


def choose(
    surrogate: Surrogate,
    bounds: Bounds,
    starts_NPK: FloatArray,
    *,
    most_stages: int = 3,
    caution: float = 1.0,
    seed: int = 0,
) -> Choice:
    """As few stages as possible: one more only if it is surely better by a paired interval.

    `starts_NPK` are known paths, such as the fitted runs, from which the search starts; `caution`
    is κ.
    """
    score = cautious(surrogate, caution)
    phases = tuple(range(len(surrogate.shares_P)))
    tied = optimise(score, bounds, starts_NPK, surrogate.shares_P, (phases,), seed)
    best = Choice(tied, (phases,))
    if not surrogate.order:
        return best
    for count in range(2, min(most_stages, len(phases)) + 1):
        found = [
            optimise(score, bounds, starts_NPK, surrogate.shares_P, stages, seed)
            for stages in splits(len(phases), count)
        ]
        n = int(np.argmin(score(np.stack(found))))
        compared = surrogate.difference(found[n], best.path_PK)
        if compared.high is None or compared.high >= 0:
            return Choice(best.path_PK, best.stages, best.gained, compared)
        gained = surrogate.difference(found[n], tied)
        best = Choice(found[n], splits(len(phases), count)[n], gained)
    return best


def cautious(surrogate: Surrogate, caution: float) -> Score:
    def score(paths_MPK: FloatArray) -> FloatArray:
        expected_M = surrogate.objective(paths_MPK)
        return expected_M + caution * surrogate.deviation(paths_MPK) if caution else expected_M

    return score


def splits(phases: int, stages: int) -> list[tuple[tuple[int, ...], ...]]:
    """Every way to cut consecutive phases into so many stages."""
    cuts = combinations(range(1, phases), stages - 1)
    edges = [(0, *cut, phases) for cut in cuts]
    return [tuple(tuple(range(first, last)) for first, last in pairwise(edge)) for edge in edges]


def optimise(
    score: Score,
    bounds: Bounds,
    starts_NPK: FloatArray,
    shares_P: FloatArray,
    stages: Sequence[Sequence[int]],
    seed: int = 0,
) -> FloatArray:
    """(P, K) the path of these stages with the lowest score."""
    rng = np.random.Generator(np.random.PCG64(seed))
    stage_P: IntArray = np.repeat(
        np.arange(len(stages), dtype=np.int64), [len(stage) for stage in stages]
    )
    within = _in_stages(bounds, shares_P, stage_P)
    paths_MPK = within(_first(starts_NPK, bounds, rng))
    scores_M = score(paths_MPK)
    for width in np.geomspace(_WIDE, _NARROW, _ROUNDS):
        parents = np.argpartition(scores_M, _PARENTS)[:_PARENTS]
        paths_MPK, scores_M = paths_MPK[parents], scores_M[parents]
        born_MPK = within(_perturbed(paths_MPK, width, stage_P, rng))
        paths_MPK = np.concatenate([paths_MPK, born_MPK])
        scores_M = np.append(scores_M, score(born_MPK))
    order = np.argsort(scores_M)[:_KEPT]
    mean_PK = within(paths_MPK[order].mean(axis=0)[None])[0]
    better = score(np.stack([mean_PK, paths_MPK[order[0]]])).argmin()
    return np.asarray(mean_PK if better == 0 else paths_MPK[order[0]])


def _in_stages(
    bounds: Bounds, shares_P: FloatArray, stage_P: IntArray
) -> Callable[[FloatArray], FloatArray]:
    """Makes phases of one stage alike, within bounds."""
    inside_SP = (stage_P == np.arange(stage_P.max() + 1)[:, None]) * shares_P
    lengths_S = inside_SP.sum(axis=1)

    def within(paths_MPK: FloatArray) -> FloatArray:
        stages_MSK = np.einsum("sp,mpk->msk", inside_SP / lengths_S[:, None], paths_MPK)
        return bounds.within(stages_MSK, lengths_S)[:, stage_P]

    return within


def _first(starts_NPK: FloatArray, bounds: Bounds, rng: np.random.Generator) -> FloatArray:
    """Known paths, means of two of them, and flat draws of the simplex."""
    N, P, K = starts_NPK.shape
    blended = starts_NPK[rng.integers(0, N, (_FIRST // 2, 2))].mean(axis=1)
    flat = rng.dirichlet(np.ones(K), (_FIRST // 2, P))
    natural = np.broadcast_to(bounds.natural_K, (1, P, K))
    return np.concatenate([starts_NPK, blended, flat, natural])


def _perturbed(
    paths_MPK: FloatArray, width: float, stage_P: IntArray, rng: np.random.Generator
) -> FloatArray:
    """Means of two parents whose logarithms are moved by `width`."""
    parents = rng.integers(0, len(paths_MPK), (_POPULATION, 2))
    share = rng.random((_POPULATION, 1, 1))
    mean = share * paths_MPK[parents[:, 0]] + (1 - share) * paths_MPK[parents[:, 1]]
    K = paths_MPK.shape[2]
    noise = rng.normal(0.0, width, (_POPULATION, int(stage_P.max()) + 1, K))[:, stage_P]
    moved = (mean + _RETURNING / K) * np.exp(noise)
    return np.asarray(moved / moved.sum(axis=2, keepdims=True))

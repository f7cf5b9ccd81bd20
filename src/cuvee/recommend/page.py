"""The page of a recommendation: one HTML file without network, with sliders over metrics that
choose among precomputed plans.

The browser does no fitting. The page holds several hundred plans within bounds that are the best
for some weights of the metrics, with what is predicted of each. Moving a slider picks the plan with
the lowest weighted sum among them.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.recommend import words
from cuvee.recommend.fits import LEVEL
from cuvee.recommend.recommend import Recommendation
from cuvee.report.document import fill_with

_PLANS, _POOL, _ROUNDS = 400, 2400, 3
_DIGITS = 5


def render(found: Recommendation, title: str = "Recommended mixture") -> str:
    """The page as text."""
    assets = files("cuvee.recommend") / "assets"
    known = found.surrogate.evidence
    facts = {
        "Runs": f"{len(found.runs.names)}; rows set aside: {len(found.runs.bad)}",
        "Rank correlation on runs left out": (
            f"{known.ranks.value:.3f} ({known.ranks.low:.3f} to {known.ranks.high:.3f})"
        ),
        "Regret@1": f"{known.regret:.4g}; of a random pick {known.regret_of_chance:.4g}",
        "Coverage": f"{known.coverage:.0%} inside {LEVEL:.0%} intervals",
    }
    return fill_with(
        ("cuvee.recommend", "cuvee.report"),
        "recommend.html",
        title,
        facts,
        [(assets / "recommend.js").read_text()],
        _data(found),
        (assets / "recommend.css").read_text(),
        verdict=words.verdict(found),
        evidence=words.evidence(found),
        weights=words.weights_table(found),
        metrics=words.metrics_table(found),
        sliders=_sliders(found),
        front=words.front_lines(found),
        bad=found.runs.bad[:50],
        level=f"{LEVEL:.0%}",
        stages=[f"{one.start:.0%} to {one.end:.0%} of the budget" for one in found.plan.stages],
    )


def _sliders(found: Recommendation) -> list[tuple[str, int]]:
    """Each metric with its slider's first position, 0 to 100: half, for the largest part of the
    objective.
    """
    costs_D = np.abs(found.surrogate.costs_D)
    places = np.rint(50 * costs_D / costs_D.max()).astype(int).tolist()
    return list(zip(found.surrogate.metrics, places, strict=True))


def _data(found: Recommendation) -> dict[str, Any]:
    paths_MPK = _plans(found)
    firsts = [phases[0] for phases in found.choice.stages]
    higher_D = [name in found.runs.higher for name in found.surrogate.metrics]
    tokens, available = found.plan.tokens, found.plan.available
    per_share = [
        tokens / available[name] if tokens and available.get(name) else None
        for name in found.plan.domains
    ]
    return {
        "domains": list(found.plan.domains),
        "metrics": list(found.surrogate.metrics),
        "higher": higher_D,
        "lengths": [stage.end - stage.start for stage in found.plan.stages],
        "present": np.round(found.present.weights_K, _DIGITS).tolist(),
        "presentMeans": [one.mean for one in found.present_predicted.metrics.values()],
        "epochsPerShare": per_share,
        "caution": found.request.caution,
        "plans": np.round(paths_MPK[:, firsts], _DIGITS).tolist(),
        "means": np.round(found.surrogate.means(paths_MPK), _DIGITS).tolist(),
        "halves": np.round(found.surrogate.half_widths(paths_MPK), _DIGITS).tolist(),
    }


def _plans(found: Recommendation) -> FloatArray:
    """(M, P, K) the recommended path, then paths that are each the best of a pool for some weights
    of the metrics.
    """
    rng = np.random.Generator(np.random.PCG64([found.request.seed, 3]))
    chosen_PK, surrogate = found.choice.path_PK, found.surrogate
    D = len(surrogate.metrics)
    stage_P = np.repeat(
        np.arange(len(found.choice.stages)), [len(phases) for phases in found.choice.stages]
    )
    signs_D = np.where([name in found.runs.higher for name in surrogate.metrics], -1.0, 1.0)
    wanted_WD = rng.dirichlet(np.full(D, 0.3), _PLANS) * signs_D
    firsts = [phases[0] for phases in found.choice.stages]
    starts_NSK = np.concatenate([found.runs.mixtures_NPK[:, firsts], chosen_PK[None, firsts]])
    kept_MSK = starts_NSK
    lengths_S = np.array([stage.end - stage.start for stage in found.plan.stages])
    for width in np.geomspace(0.8, 0.15, _ROUNDS):
        pairs = kept_MSK[rng.integers(0, len(kept_MSK), (_POOL, 2))].mean(axis=1)
        moved = (pairs + 0.002) * np.exp(rng.normal(0, width, pairs.shape))
        born_MSK = found.bounds.within(moved / moved.sum(axis=2, keepdims=True), lengths_S)
        pool_MSK = np.concatenate([found.bounds.within(kept_MSK, lengths_S), born_MSK])
        scores_MW = surrogate.means(pool_MSK[:, stage_P]) @ wanted_WD.T
        kept_MSK = pool_MSK[np.unique(scores_MW.argmin(axis=0))]
    return np.concatenate([chosen_PK[None], kept_MSK[:, stage_P]])

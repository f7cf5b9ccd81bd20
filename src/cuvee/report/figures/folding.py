"""Fewer domains for figures and tables by domain: the smallest of each role become one.

Scores and verdicts use all domains. A page with ten thousand lines and rows helps nobody, and no
browser opens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.core.arrays import FloatArray, IntArray
from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.report.summary import Summary
from cuvee.report.views import MethodView, RunView

MOST_DOMAINS = 104
"""With more domains, the others of each role are drawn as one."""


def folded(summary: Summary) -> Summary:
    """Return `summary` with at most `MOST_DOMAINS` domains and one more for each role.

    The kept ones have the largest shares (`Summary.ranked`). Of the others, tokens and weights are
    summed, and losses averaged. Unchanged if there are no more.
    """
    kept = frozenset(summary.ranked[:MOST_DOMAINS])
    if len(kept) == len(summary.ranked):
        return summary
    methods = [
        MethodView(method.label, tuple(_folded_view(view, kept) for view in method.runs))
        for method in summary.methods
    ]
    domains = _Fold.of(summary.domains, kept).domains
    return replace(summary, methods=tuple(methods), domains=domains)


@dataclass(frozen=True)
class _Fold:
    """Which of K domains become which of fewer: `place_K` is the index among `domains`."""

    domains: tuple[Domain, ...]
    place_K: IntArray

    @classmethod
    def of(cls, domains: Sequence[Domain], kept: frozenset[str]) -> _Fold:
        found = [domain for domain in domains if domain.name in kept]
        places = {domain.name: i for i, domain in enumerate(found)}
        for role in ("source", "target"):
            rest = [one for one in domains if one.role == role and one.name not in kept]
            if rest:
                places |= dict.fromkeys((one.name for one in rest), len(found))
                tokens = sum(one.tokens for one in rest)
                found.append(Domain(f"{len(rest)}-other-{role}s", tokens, rest[0].role))
        return cls(tuple(found), np.array([places[domain.name] for domain in domains]))

    def sum(self, values_K: FloatArray | IntArray) -> FloatArray:
        sums_K: FloatArray = np.bincount(self.place_K, values_K, len(self.domains)).astype(float)
        return sums_K

    def mean(self, measured: Measured) -> Measured:
        """Return the mean of each group, absent unless all of it is measured."""
        count_K = np.bincount(self.place_K, minlength=len(self.domains))
        known_K = self.sum(measured.present.astype(np.float64)) == count_K
        return Measured(self.sum(measured.values) / count_K, known_K)


def _folded_view(view: RunView, kept: frozenset[str]) -> RunView:
    folds: dict[tuple[str, ...], _Fold] = {}

    def fold(domains: tuple[Domain, ...]) -> _Fold:
        names = tuple(domain.name for domain in domains)
        if names not in folds:
            folds[names] = _Fold.of(domains, kept)
        return folds[names]

    def folded_signals(now: Signals) -> Signals:
        by = fold(now.domains)
        shape = (len(now.domains),)
        probes = {
            name: by.mean(now.probes[name])
            for name in ("valid_loss", "test_loss")
            if name in now.probes and now.probes[name].shape == shape
        }
        tokens = by.sum(now.tokens_K).astype(np.int64)
        return Signals(by.domains, now.step, now.progress, tokens, by.mean(now.loss), probes)

    signals = [folded_signals(now) for now in view.run.trajectory.signals]
    pairs = zip(view.run.trajectory.mixtures, view.run.trajectory.signals[1:], strict=True)
    mixtures = [
        Mixture.normalise([one.name for one in by.domains], by.sum(mixture.weights_K))
        for mixture, by in ((mixture, fold(after.domains)) for mixture, after in pairs)
    ]
    run = replace(view.run, trajectory=Trajectory(signals, mixtures))
    return replace(view, run=run, domains=fold(view.domains).domains)

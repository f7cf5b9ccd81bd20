"""The numbers of a report: runs grouped into methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cuvee.core.domain import Domain, Split, natural_K
from cuvee.core.errors import ConfigError
from cuvee.core.state import digest
from cuvee.core.trajectory import Run
from cuvee.evaluation.statistics import Estimate, Levels, paired_difference
from cuvee.evaluation.verdicts import Verdict, compare_paired, corrected
from cuvee.report.steering import Steering
from cuvee.report.views import MethodView, RunView, Scores, held_out_loss

MOST_METHODS = 8
"""The most methods in a figure. If there are more, they are those with the lowest loss."""
MANY_SEEDS = 8
"""The number of seeds above which their lines become a band, so that the page stays small."""
Measure = Literal["Mean", "Source", "Target", "Source/target average", "Objective"]
TIE = 0.0025
"""Two losses are tied if they surely differ by less than this share of the baseline's loss."""
_MANY_DOMAINS, _TOP_DOMAINS = 16, 12
"""With more domains than the first number, only the second number of them have own colours."""
_SEEDS = 3


@dataclass(frozen=True)
class Summary:
    """Everything that the page shows. `unmeasured` are domains without validation loss in a run.

    `objective` has weights by domain if all runs were given the same one and its domains are
    measured. Then methods are ranked by it.
    """

    methods: tuple[MethodView, ...]
    baseline: str
    domains: tuple[Domain, ...]
    unmeasured: tuple[str, ...]
    objective: Mapping[str, float] | None = None

    @property
    def runs(self) -> list[RunView]:
        return [view for method in self.methods for view in method.runs]

    @property
    def split(self) -> Split:
        """The split of the final scores: "test" if every finished run was tested, else "valid"."""
        return self.runs[0].split

    @property
    def shown(self) -> tuple[MethodView, ...]:
        """The methods in the figures: the first ones, which are the best if there are more."""
        return self.methods[:MOST_METHODS]

    @cached_property
    def top(self) -> frozenset[str]:
        """Names of the domains with a colour of their own: all, or the first of `ranked`."""
        many = len(self.ranked) > _MANY_DOMAINS
        return frozenset(self.ranked[:_TOP_DOMAINS] if many else self.ranked)

    @cached_property
    def ranked(self) -> list[str]:
        """Names of the domains by their largest share of the tokens.

        That is the largest of the natural share and those in the methods in the figures.
        """
        domains = self.runs[0].run.trajectory.domains
        names = [domain.name for domain in domains]
        views = [view for method in self.shown for view in method.runs[:_SEEDS]]
        read_MK = [view.run.trajectory.tokens_read().of(names) for view in views]
        shares_MK = [read_K / max(float(read_K.sum()), 1.0) for read_K in read_MK]
        largest_K = np.max([*shares_MK, natural_K(domains)], axis=0)
        return [names[k] for k in np.argsort(-largest_K, kind="stable")]

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Every method compared with the baseline, by label.

        A method without a seed that the baseline has finished too is left out. P-values are
        corrected for the number of methods.
        """
        theirs = self.methods[0].by_seed(_headline)
        if not theirs:
            return {}
        margin = TIE * sum(theirs.values()) / len(theirs)
        found = {
            method.label: compare_paired(method.by_seed(_headline), theirs, margin, self.levels)
            for method in self.methods[1:]
        }
        known = {label: verdict for label, verdict in found.items() if verdict is not None}
        return dict(zip(known, corrected(list(known.values())), strict=True))

    @cached_property
    def levels(self) -> Mapping[int, Levels] | None:
        """The seeds of the parts of a run that vary, by seed; None unless all runs are crossed."""
        given = {view.run.seed: view.run.config.get("part_seeds") for view in self.runs}
        known = {seed: found for seed, found in given.items() if isinstance(found, Mapping)}
        parts = [
            part
            for part in next(iter(known.values()), {})
            if len({found.get(part) for found in known.values()}) > 1
        ]
        if len(known) < len(given) or not parts:
            return None
        return {seed: tuple(int(found[part]) for part in parts) for seed, found in known.items()}

    def independent(self, pairs: int) -> int:
        """Return how many of `pairs` are independent: of crossed runs, the fewest seeds of a part."""
        if not self.levels:
            return pairs
        return min(pairs, *(len(set(column)) for column in zip(*self.levels.values(), strict=True)))

    def difference(
        self, ours: MethodView, theirs: MethodView, value: Callable[[Scores], float | None]
    ) -> Estimate | None:
        """Return the paired difference of two methods, ours less theirs; None without pairs."""
        return paired_difference(ours.by_seed(value), theirs.by_seed(value), levels=self.levels)

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

    @cached_property
    def ranked_by(self) -> Measure:
        """The loss by which methods are ranked.

        It is that of the objective, else the average of source and target, else the mean. An
        objective that weighs all domains, or those of one role, alike goes by that name.
        """
        if self.objective is None:
            return "Source/target average" if self.has_roles else "Mean"
        target_K = np.array([domain.is_target for domain in self.domains])
        weights_K = np.array([self.objective.get(domain.name, 0.0) for domain in self.domains])
        plain: dict[Measure, Any] = {"Mean": target_K | ~target_K}
        if self.has_roles:
            plain |= {"Source": ~target_K, "Target": target_K}
        for name, alike_K in plain.items():
            if np.allclose(weights_K / weights_K.sum(), alike_K / alike_K.sum()):
                return name
        return "Objective"


def method_label(config: Mapping[str, Any]) -> str:
    """Return the method's label or name, or the policy's label.

    The configuration of a proxy has the whole policy, with the state of its networks. Its label is
    the policy's kind and a part of a digest, which tells policies of one kind apart.
    """
    method, policy = config.get("method"), config.get("policy")
    if isinstance(method, Mapping):
        return str(method.get("label") or method.get("name") or "unnamed")
    if method is None and isinstance(policy, Mapping):
        return f"{policy.get('kind', 'policy')} {digest(policy)[:6]}"
    return str(method or policy or "unnamed")


def summarise(
    runs: Sequence[Run],
    baseline: str | None = None,
    statuses: Mapping[str, str] | None = None,
    bytes_per_token: Mapping[str, float] | None = None,
    steered: Mapping[str, Steering] | None = None,
) -> Summary:
    """Group runs into methods in the order of the runs, with the baseline first.

    If there are more than `MOST_METHODS`, the others are in the order of their final losses.

    They are ranked by the objective of the runs, if all have the same and its domains are measured;
    else by the average of source and target, or by the mean if there is one role.

    Final scores are test losses if every finished run has one of each domain that was validated.
    Otherwise they are validation losses.

    Bytes per token come from the runs' configurations (`bytes_per_token` by domain) unless they are
    given. `steered` says by run id who steered it. Raises `ConfigError` if there is no run, if the runs have no domain in common, or if no
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
    objective = _objective(runs, measured)
    views = [
        replace(
            _view(run, measured, statuses or {}, bytes_per_token or _widths(run)),
            steering=(steered or {}).get(run.id),
            objective=objective,
        )
        for run in runs
    ]
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
    if len(methods) > MOST_METHODS:
        methods[1:] = sorted(methods[1:], key=_final_headline)
    gone = tuple(domain.name for domain in common if domain not in measured)
    return Summary(tuple(methods), baseline, measured, gone, objective)


def _headline(scores: Scores) -> float:
    return scores.headline


def _final_headline(method: MethodView) -> float:
    loss = method.mean(_headline) if method.finished else None
    return math.inf if loss is None else loss


def _widths(run: Run) -> Mapping[str, float]:
    return _positive(run.config.get("bytes_per_token"))


def _positive(found: object) -> dict[str, float]:
    """The entries of a configuration's mapping that are positive and finite."""
    usable = found if isinstance(found, Mapping) else {}
    return {
        name: float(number)
        for name, number in usable.items()
        if isinstance(number, (int, float)) and 0 < number < math.inf
    }


def _objective(runs: Sequence[Run], measured: tuple[Domain, ...]) -> Mapping[str, float] | None:
    """The objective of the runs, if all have the same and each of its domains is in `measured`."""
    first, *others = (_positive(run.config.get("objective")) for run in runs)
    names = {domain.name for domain in measured}
    same = all(other == first for other in others)
    return first if first and same and first.keys() <= names else None


def _common_domains(runs: Sequence[Run]) -> tuple[Domain, ...]:
    shared = set.intersection(*(set(run.trajectory.names) for run in runs))
    if not shared:
        raise ConfigError(
            "the runs have no domain in common: write a report for each corpus, as with --group"
        )
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

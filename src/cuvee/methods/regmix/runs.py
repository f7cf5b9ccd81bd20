"""Selects the proxy runs that can be fitted and makes a table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Run

Objective = Literal["valid_loss", "source_target"] | Mapping[str, float]

FEWEST_RUNS = 8
_STATIC = 1e-6  # largest total variation between the mixtures of a static run


def check_objective(objective: Objective) -> None:
    """Raise `ConfigError` for an objective that is invalid for every corpus."""
    if isinstance(objective, str):
        if objective not in ("valid_loss", "source_target"):
            raise ConfigError(
                f"objective is {objective!r}: use valid_loss, source_target, "
                "or weights by domain name"
            )
    elif not objective or min(objective.values()) < 0 or not 0 < sum(objective.values()) < np.inf:
        raise ConfigError(
            f"objective is {dict(objective)}: give weights by domain name, none negative and "
            "not all 0"
        )


@dataclass(frozen=True)
class Table:
    """N usable runs over K domains, of which D count.

    `valued` are the names of these domains. The objective is `losses_ND @ values_D`; the values sum
    to 1.
    """

    mixtures_NK: FloatArray
    losses_ND: FloatArray
    values_D: FloatArray
    valued: tuple[str, ...]
    left_out: Mapping[str, str]
    """Why runs were left out, by run id."""

    @property
    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The arguments of `fit`: mixtures, losses and values."""
        return self.mixtures_NK, self.losses_ND, self.values_D

    @classmethod
    def of(cls, domains: tuple[Domain, ...], runs: Sequence[Run], objective: Objective) -> Table:
        """Select the usable runs.

        Raises `PolicyError` if fewer than `FEWEST_RUNS` runs can be used, and `ConfigError` for an
        objective that does not fit the corpus.
        """
        values = objective_values(domains, runs, objective)
        names = [domain.name for domain in domains]
        left_out = {run.id: why for run in runs if (why := _unusable(run, names, values))}
        kept = [run for run in runs if run.id not in left_out]
        # Sorted by content, so that the order in which runs finish does not matter.
        kept.sort(key=lambda run: run.trajectory.mixtures[0].to(names).weights_K.tolist())
        if len(kept) < FEWEST_RUNS:
            reasons = "; ".join(f"{run} {why}" for run, why in list(left_out.items())[:3])
            raise PolicyError(
                f"{len(kept)} of {len(runs)} proxy runs can be fitted, at least {FEWEST_RUNS} are "
                f"needed{f' ({reasons})' if reasons else ''}: run the proxies first "
                "(`cuvee search`)"
            )
        return cls(
            mixtures_NK=np.stack([run.trajectory.mixtures[0].to(names).weights_K for run in kept]),
            losses_ND=np.array(
                [[last_losses(run.trajectory.last)[name] for name in values] for run in kept]
            ),
            values_D=np.array(list(values.values())),
            valued=tuple(values),
            left_out=left_out,
        )


def objective_values(
    domains: tuple[Domain, ...], runs: Sequence[Run], objective: Objective
) -> dict[str, float]:
    """Return how much the loss of each domain counts.

    Without weights by name, it is about the domains that at least half of the runs validated.
    """
    if not isinstance(objective, str):
        unknown = sorted(set(objective) - {domain.name for domain in domains})
        if unknown:
            raise ConfigError(
                f"objective names {', '.join(unknown)}, but the corpus has "
                f"{', '.join(d.name for d in domains)}"
            )
        total = sum(objective.values())
        return {name: value / total for name, value in objective.items() if value > 0}
    ends = [last_losses(run.trajectory.last) for run in runs]
    measured = [
        d for d in domains if 2 * sum(d.name in losses for losses in ends) >= max(1, len(ends))
    ]
    if runs and not measured:
        raise PolicyError(
            "no proxy run has a validation loss: build the corpus with a valid split, and set "
            "train.validation_tokens above 0"
        )
    return _by_objective(measured, objective)


def check_validated(
    domains: tuple[Domain, ...], validated: frozenset[str], objective: Objective
) -> None:
    """Raises what `Table.of` would for runs that validate these domains alone."""
    valued = () if isinstance(objective, str) else objective_values(domains, (), objective)
    measured = [domain for domain in domains if domain.name in validated]
    if not measured:
        raise PolicyError(
            "no proxy run would have a validation loss: build the corpus with a valid split, and set train.validation_tokens "
            "above 0"
        )
    if isinstance(objective, str):
        _by_objective(measured, objective)
    elif missing := [name for name in valued if name not in validated]:
        raise PolicyError(
            f"objective counts {', '.join(missing[:5])}, which would have no validation loss: build the corpus with a valid "
            "split of each"
        )


def _by_objective(measured: Sequence[Domain], objective: str) -> dict[str, float]:
    if objective == "valid_loss":
        return {domain.name: 1 / len(measured) for domain in measured}
    targets = sum(domain.is_target for domain in measured)
    if targets in (0, len(measured)):
        raise ConfigError(
            "objective source_target needs validated domains of both roles: build the corpus with "
            "--target NAME"
        )
    counts = {True: targets, False: len(measured) - targets}
    return {domain.name: 0.5 / counts[domain.is_target] for domain in measured}


def _unusable(run: Run, names: Sequence[str], values: Mapping[str, float]) -> str | None:
    """Return why a run cannot be fitted, or None."""
    so_far = run.trajectory
    if not len(so_far) or so_far.last.progress < 1.0:
        return f"ended at {so_far.last.progress:.0%} of its budget"
    first = so_far.mixtures[0]
    if any(m.names != first.names or m.total_variation(first) > _STATIC for m in so_far.mixtures):
        return "has not kept one mixture"
    if set(first.names) != set(names):
        return "has other domains than the corpus"
    start = last_losses(so_far.signals[0])
    end = last_losses(so_far.last)
    if missing := [name for name in values if name not in end]:
        return f"has no final validation loss of {', '.join(missing[:3])}"
    before, after = (
        sum(value * losses.get(name, np.inf) for name, value in values.items())
        for losses in (start, end)
    )
    # A base model forgets what it no longer reads. The fit must see such runs.
    forgets = isinstance(proxy := run.config.get("proxy"), Mapping) and "model_sha256" in proxy
    return (
        f"has diverged: its loss rose from {before:.3g} to {after:.3g}"
        if after > before and not forgets
        else None
    )


def last_losses(signals: Signals) -> dict[str, float]:
    """Return the validation losses by name of the domains that have one."""
    measured = signals.probes.get("valid_loss")
    if measured is None:
        return {}
    return {
        name: float(loss)
        for name, loss, there in zip(signals.names, measured.values, measured.present, strict=True)
        if there
    }

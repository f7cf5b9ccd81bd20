"""Synthetic runs with the shape of real ones, for tests of reports, stores and learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Cost, Run, Trajectory


def example_domains(sources: int = 6, targets: int = 2) -> tuple[Domain, ...]:
    """Return source-0, source-1, …, then target-0, …, in decreasing size."""
    made = [Domain(f"source-{k}", 400_000 // (k + 1)) for k in range(sources)]
    return (
        *made,
        *(Domain(f"target-{k}", 200_000 // (k + 1), role="target") for k in range(targets)),
    )


def example_run(
    method: str,
    seed: int = 0,
    *,
    domains: Sequence[Domain] | None = None,
    intervals: int = 20,
    done: int | None = None,
    tokens: int = 20_000,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Return a run with `done` of `intervals` intervals, under a mixture that changes slowly.

    Each interval has `tokens` tokens. The run continues from a pre-trained model. Losses fall as a
    power of the tokens read from a domain, and rise slightly on source domains that are not read.
    They are validated at the start, at every second interval and at the end.
    """
    domains = tuple(domains or example_domains())
    done = intervals if done is None else done
    generator = np.random.default_rng([seed, sum(map(ord, method))])
    names = [domain.name for domain in domains]
    target_K = np.array([domain.is_target for domain in domains])
    logits_K = generator.normal(0.0, 0.6, len(domains)) + 0.8 * target_K
    floor_K = np.random.default_rng(1).uniform(2.2, 3.6, len(domains))
    read_K = np.zeros(len(domains))
    signals = [
        _signals(
            domains, 0, 0.0, np.zeros(len(domains)), floor_K + 0.9 * target_K + 0.1, validate=True
        )
    ]
    mixtures = []
    for t in range(1, done + 1):
        logits_K = logits_K + generator.normal(0.0, 0.15, len(domains))
        mixture = Mixture.normalise(names, np.exp(logits_K))
        drawn_K = np.floor(mixture.weights_K * tokens)
        read_K += drawn_K
        learned_K = (0.1 + 0.9 * target_K) * (1 + read_K / 4_000) ** -0.35
        forgotten_K = np.where(target_K, 0.0, 0.25 * (1 - mixture.weights_K) ** 2 * t / intervals)
        loss_K = floor_K + learned_K + forgotten_K + generator.normal(0.0, 0.004, len(domains))
        mixtures.append(mixture)
        signals.append(
            _signals(
                domains, t, t / intervals, drawn_K, loss_K, validate=t % 2 == 0 or t == intervals
            )
        )
    spent = int(read_K.sum())
    return Run(
        id=f"example-{method}-s{seed}",
        seed=seed,
        config={
            "method": {"name": method, "label": method},
            "model": "llama-0.1m",
            **(config or {}),
        },
        trajectory=Trajectory(signals, mixtures),
        cost=Cost(tokens=spent, flops=6.0 * 1.3e5 * spent, seconds=2.5 * done),
    )


def _signals(
    domains: tuple[Domain, ...],
    t: int,
    progress: float,
    tokens_K: Any,
    loss_K: Any,
    *,
    validate: bool,
) -> Signals:
    train = Measured(loss_K, np.asarray(tokens_K) > 0)
    probes = {"valid_loss": Measured.all(loss_K)} if validate else {}
    return Signals(domains, 10 * t, progress, tokens_K, train, probes)

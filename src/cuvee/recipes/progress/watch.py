"""What a recipe reports while it works: a `Progress` after each interval, to an `Observer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cuvee.core.domain import available_K, natural_K
from cuvee.core.epochs import TokensRead
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals

TREND = 10
"""Intervals over which the trend of a share is measured."""


@dataclass(frozen=True)
class DomainProgress:
    """A domain's share of the last interval and of the corpus, and how often it was read.

    `change` is that of the share over the last `TREND` intervals.
    """

    name: str
    share: float
    natural: float
    change: float
    epochs: float


def domain_progress(
    now: Signals, mixture: Mixture, before: Mixture, read: TokensRead
) -> tuple[DomainProgress, ...]:
    """Return the state of each domain; `before` is the mixture of `TREND` intervals ago."""
    then = before.as_dict()
    epochs_K = read.of(now.names) / np.maximum(available_K(now.domains), 1)
    shares = mixture.as_dict()
    rows = zip(now.names, natural_K(now.domains).tolist(), epochs_K.tolist(), strict=True)
    return tuple(
        DomainProgress(
            name,
            shares.get(name, 0.0),
            natural,
            shares.get(name, 0.0) - then.get(name, 0.0),
            epochs,
        )
        for name, natural, epochs in rows
    )


@dataclass(frozen=True)
class Progress:
    """The state of a run after an interval.

    `progress` is the share of the budget that is used. `seconds` and `tokens` count from the start
    of this process, which was at `began` of the budget. Losses are in nats per token. `valid_loss`
    is the mean over domains of the last validation.
    """

    run_id: str
    step: int
    progress: float
    began: float
    seconds: float
    tokens: int
    loss: float | None
    valid_loss: float | None
    domains: tuple[DomainProgress, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end of the run; None before any progress."""
        done = self.progress - self.began
        return self.seconds * (1.0 - self.progress) / done if done > 0 else None


class Observer(Protocol):
    """Receives the events of runs. `note` is a short clause such as "continues after step 200".

    `stopping` is called from a signal handler when a stop is asked for: what it waits for is then
    shown by another thread, because the handler may have interrupted any other output.
    """

    def stopping(self) -> None: ...

    def begin(self, run_id: str, note: str) -> None: ...

    def interval(self, progress: Progress) -> None: ...

    def end(self, run_id: str, note: str) -> None: ...


class Unobserved:
    """An observer that ignores all events."""

    def stopping(self) -> None: ...

    def begin(self, run_id: str, note: str) -> None: ...

    def interval(self, progress: Progress) -> None: ...

    def end(self, run_id: str, note: str) -> None: ...


def training_loss(signals: Signals) -> float | None:
    """Return the mean loss over the interval's tokens in nats; None if nothing was trained."""
    tokens_K = signals.tokens_K * signals.loss.present
    total = int(tokens_K.sum())
    return float((signals.loss.values * tokens_K).sum() / total) if total else None


def valid_loss(signals: Signals) -> float | None:
    """Return the mean over domains in nats per token; None if nothing was validated."""
    measured = signals.probes.get("valid_loss")
    return (
        float(measured.values[measured.present].mean())
        if measured is not None and measured.present.any()
        else None
    )

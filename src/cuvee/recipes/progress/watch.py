"""What a recipe says of itself while it works: `Progress` after each interval, to whatever `Observer` the caller brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cuvee.core.signals import Signals


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an interval. `progress` is the share of its budget that is used; `seconds` and `tokens` count
    from when this process took the run up, at `began` of its budget. Losses are nats per token; `valid_loss` is the mean
    over domains when last measured."""

    run_id: str
    step: int
    progress: float
    began: float
    seconds: float
    tokens: int
    loss: float | None
    valid_loss: float | None
    mixture: Mapping[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None while too little is done to say."""
        done = self.progress - self.began
        return self.seconds * (1.0 - self.progress) / done if done > 0 else None


class Observer(Protocol):
    """Someone who looks on. `note` is a short clause such as "continues at step 200"."""

    def begin(self, run_id: str, note: str) -> None: ...

    def interval(self, progress: Progress) -> None: ...

    def end(self, run_id: str, note: str) -> None: ...


class Unobserved:
    """The observer of a quiet run."""

    def begin(self, run_id: str, note: str) -> None: ...

    def interval(self, progress: Progress) -> None: ...

    def end(self, run_id: str, note: str) -> None: ...


def training_loss(signals: Signals) -> float | None:
    """Of the interval over all its tokens, in nats per token; None if nothing was trained."""
    tokens_K = signals.tokens_K * signals.loss.present
    total = int(tokens_K.sum())
    return float((signals.loss.values * tokens_K).sum() / total) if total else None


def valid_loss(signals: Signals) -> float | None:
    """Mean over domains in nats per token; None if nothing was validated."""
    measured = signals.probes.get("valid_loss")
    return (
        float(measured.values[measured.present].mean())
        if measured is not None and measured.present.any()
        else None
    )

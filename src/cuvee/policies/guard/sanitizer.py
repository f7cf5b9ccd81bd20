"""The gate in front of a policy: what is not believable is absent from what it sees, and it does not learn from that interval.

`Measured` refuses NaN and infinity when it is made. What can still come is a number of no sensible size, a matrix of the wrong
shape, or time that runs backwards; the trajectory keeps such facts as they are, the policy's view of it does not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory

LARGEST_LOSS = 1e4
"""In nats per token: a uniform guess over any vocabulary has less than 20."""
LARGEST_MEASUREMENT = 1e12
"""Of anything else: inner products of gradients, norms, scores."""
LARGEST_TOKENS = 1e15
"""Of one domain in one interval."""

_LOSSES = ("loss", "valid_loss")


class SignalSanitizer:
    """What a policy sees of a trajectory: the trajectory itself while all of it is believable, else a copy with the rest absent.

    It grows with the trajectory, O(K²) an interval; given another one, it starts anew. Unchanged signals stay the same objects.
    """

    def __init__(self) -> None:
        self._newest: Signals | None = None
        self._seen: Trajectory | None = None
        self._fault: str | None = None
        self._altered = False

    def of(self, so_far: Trajectory) -> tuple[Trajectory, str | None]:
        """The view of `so_far`, and what is wrong with its newest signals, if anything is."""
        known = -1 if self._seen is None else len(self._seen)
        signals = so_far.signals
        if self._seen is None or known >= len(signals) or signals[known] is not self._newest:
            cleaned, self._fault = clean(signals[0], None)
            self._seen, known, self._altered = Trajectory.start(cleaned), 0, self._fault is not None
        mixtures = so_far.mixtures
        for t in range(known + 1, len(signals)):
            cleaned, self._fault = clean(signals[t], signals[t - 1])
            self._seen = self._seen.append(mixtures[t - 1], cleaned)
            self._altered = self._altered or self._fault is not None
        self._newest = so_far.last
        return (self._seen if self._altered else so_far), self._fault


def clean(signals: Signals, before: Signals | None) -> tuple[Signals, str | None]:
    """`signals` with what is not believable absent, and the first fault found; the same object and None if there is none."""
    K = len(signals.names)
    shapes = {"loss": (K,), "valid_loss": (K,), "alignment": (K, K)}
    faults = [fault for fault in (_clock_fault(signals, before), _token_fault(signals)) if fault]
    believed: dict[str, Measured] = {}
    for name, measured in {"loss": signals.loss, **signals.probes}.items():
        largest = LARGEST_LOSS if name in _LOSSES else LARGEST_MEASUREMENT
        good = np.abs(measured.values) <= largest
        if name in shapes and measured.shape != shapes[name]:
            faults.append(f"{name} has shape {measured.shape}, {K} domains need {shapes[name]}")
            believed[name] = Measured.absent(shapes[name])
        elif not good.all():
            worst = measured.values.flat[int(np.argmax(np.abs(measured.values)))]
            faults.append(
                f"{name} holds {worst:.6g}: nothing above {largest:g} in size is believed"
            )
            believed[name] = Measured(measured.values, measured.present & good)
    if not faults:
        return signals, None
    probes = {
        **signals.probes,
        **{name: measured for name, measured in believed.items() if name != "loss"},
    }
    tokens_K = np.minimum(signals.tokens_K, int(LARGEST_TOKENS))
    return replace(
        signals, loss=believed.get("loss", signals.loss), probes=probes, tokens_K=tokens_K
    ), faults[0]


def _clock_fault(signals: Signals, before: Signals | None) -> str | None:
    if before is None or (signals.step >= before.step and signals.progress >= before.progress):
        return None
    return (
        f"step {signals.step} at progress {signals.progress:g} follows step {before.step} at {before.progress:g}: "
        "time does not run backwards"
    )


def _token_fault(signals: Signals) -> str | None:
    most = int(signals.tokens_K.max())
    return (
        f"{most:,} tokens in one interval: nothing above {LARGEST_TOKENS:g} is believed"
        if most > LARGEST_TOKENS
        else None
    )

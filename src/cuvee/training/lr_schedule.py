"""Learning-rate schedules: pure functions of the step, so a resumed run needs no state for them."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "wsd"]


def learning_rate(
    step: int,
    *,
    total_steps: int,
    peak: float,
    schedule: Schedule,
    warmup_steps: int,
    decay_ratio: float,
    min_ratio: float,
) -> float:
    """Return the learning rate of optimizer step `step` (0-based).

    Both schedules warm up linearly and reach `min_ratio · peak` in the last step,
    `total_steps − 1`. "cosine" (Loshchilov & Hutter, arXiv 1608.03983) decays from the end of the
    warm-up. "wsd" (warm-up, stable, decay; Hu et al., arXiv 2404.06395) stays at the peak and
    decays linearly over the last `decay_ratio` of all steps; with a `decay_ratio` of 0 it never
    decays.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    last = total_steps - 1
    if schedule == "wsd":
        begin = max(warmup_steps, last - round(decay_ratio * total_steps))
        fall = _share(step, begin, last)
    else:
        fall = 0.5 * (1.0 - math.cos(math.pi * _share(step, warmup_steps, last)))
    return peak * (1.0 - (1.0 - min_ratio) * fall)


def _share(step: int, begin: int, end: int) -> float:
    """The position of `step` between `begin` (0) and `end` (1)."""
    return min(max(step - begin, 0) / max(end - begin, 1), 1.0)

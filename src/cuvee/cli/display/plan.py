"""Prints what the runs of a configuration will cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cuvee.cli.display.clock import time_of
from cuvee.cli.display.lines import say
from cuvee.recipes.setup.estimate import MANY_EPOCHS, Estimate

_MOST = 12  # domains that are listed


def say_plan(found: Estimate, workers: int = 1) -> None:
    """Print tokens, FLOPs, time, memory and epochs by domain, and a warning for many epochs."""
    for line in _plan(found, workers):
        say(line)


def _plan(found: Estimate, workers: int) -> Iterator[str]:
    each = found.each
    yield (
        f"{found.runs} run{'s' * (found.runs != 1)} of {each.tokens:,} tokens and "
        f"{each.flops:.3g} FLOPs; in all {found.total.tokens:,} tokens and "
        f"{found.total.flops:.3g} FLOPs"
    )
    rounds = math.ceil(found.runs / workers)
    yield (
        f"about {time_of(rounds * each.seconds)} with {workers} at a time; each "
        f"{time_of(each.seconds)}, estimated from {found.steps_timed} steps on this machine"
    )
    yield f"peak memory of a run: {found.memory / 2**30:.2f} GiB"
    yield from _epochs(found.epochs)


def _epochs(epochs: Mapping[str, float]) -> Iterator[str]:
    ranked = sorted(epochs.items(), key=lambda one: -one[1])
    shown = ", ".join(f"{name} {times:.2g}" for name, times in ranked[:_MOST])
    more = f", and {len(ranked) - _MOST} more" if len(ranked) > _MOST else ""
    yield f"epochs by domain, if the first mixture is kept: {shown}{more}"
    if often := [name for name, times in ranked if times > MANY_EPOCHS]:
        yield (
            f"warning: {', '.join(often)} would be read more than {MANY_EPOCHS:.0f} times; cap it, "
            f"as in guard.epochs={MANY_EPOCHS:.0f}"
        )

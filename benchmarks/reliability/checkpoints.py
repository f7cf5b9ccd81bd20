"""Tests 20 and 21: checkpoints. The measures are those of `checkpoint_faults.py`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import checkpoint_faults as parts
from checkpoint_faults import BareErrors, Bench, InPlace, NoFsync, OldFirst

from cuvee.training.checkpoint import Checkpoints
from reliability.measure import Result, measured

Kind = type[Checkpoints]


def counted(kind: Kind, measures: Callable[[Bench], None]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(kind, Path(root))
        measures(bench)
        return bench.counts


def caught(measures: Callable[[Bench], None], *kinds: Kind) -> dict[str, bool]:
    found = {kind.__name__: counted(kind, measures) for kind in kinds}
    return {
        name: counts["lost"] + counts["unnamed"] + counts["leftovers"] > 0
        for name, counts in found.items()
    }


def refusals(bench: Bench) -> None:
    bench.refuse_each_call()
    bench.refuse_sizes()


@measured(20, "full disk in a checkpoint")
def full_disk(full: bool) -> Result:
    found = counted(Checkpoints, refusals)
    real = parts.real_full_disk() or {"trials": 0, "lost": 0, "unnamed": 0}
    lost = found["lost"] + real["lost"]
    unnamed = found["unnamed"] + real["unnamed"]
    return Result(
        f"{found['trials']} refused calls, {real['trials']} saves on a full tmpfs",
        f"{lost} lost, {unnamed} unnamed, {found['leftovers']} left over",
        "0, 0, 0",
        lost == unnamed == found["leftovers"] == 0,
        caught(refusals, OldFirst, BareErrors),
    )


@measured(21, "kill -9 in a checkpoint")
def kills(full: bool) -> Result:
    def measures(bench: Bench, times: int = 1, at_random: int = 20) -> None:
        bench.order_of_fsyncs()
        bench.kill_each_call(times)
        bench.kill_at_random(at_random, random.Random(0))

    found = counted(Checkpoints, lambda bench: measures(bench, *((5, 500) if full else (1, 20))))
    return Result(
        f"{found['trials']} kills and traces",
        f"{found['lost']} lost or older than one save, {found['leftovers']} left over",
        "0, 0",
        found["lost"] == found["leftovers"] == 0,
        caught(measures, OldFirst, InPlace, NoFsync),
    )

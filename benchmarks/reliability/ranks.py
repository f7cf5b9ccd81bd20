"""Test 6: ranks. The injections are those of `rank_faults.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import rank_faults
from rank_faults import Injection, Trusting, evaluate, inject

from reliability.measure import Result, measured


@measured(6, "ranks that differ, hang or die")
def desync(full: bool) -> Result:
    injections, most = (500, 8) if full else (12, 3)
    with tempfile.TemporaryDirectory() as folder:
        corpus = rank_faults.small_corpus(Path(folder))
        totals = rank_faults.measure(injections, most, 2.0, 0, corpus)
        planted = Injection("bit", 2, 1, 4, 0.0, 2.0)
        caught = evaluate(planted, inject(planted, Trusting, corpus))["mixed"] > 0
    mixed = max(total["mixed_steps"] for total in totals.values())
    wrong = sum(total["wrong"] for total in totals.values())
    return Result(
        f"{injections} injections, 2 to {most} ranks",
        f"{mixed:.0f} steps on mixed weights, {wrong:.0f} ranks without the named error",
        "0, 0",
        mixed == wrong == 0,
        {"no agreement before a step": caught},
    )

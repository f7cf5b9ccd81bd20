"""The diagnostics page in a real browser: every plot is drawn, without console errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from browser import browse
from cuvee.core.domain import Domain
from cuvee.report.learning import Evaluated, SpaceView, write_diagnostics


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    T, names = 6, ("smoothness", "balance")
    view = SpaceView(
        name="2 domains, 6 intervals",
        domains=(Domain("web", 900), Domain("maths", 50, "target")),
        path_TK=np.stack([np.linspace(0.9, 0.4, T), np.linspace(0.1, 0.6, T)], axis=1),
        target_shares_NT=np.random.default_rng(0).uniform(size=(4, T)),
        best_N=np.array([0.0, 1, 0, 0]),
        values={"own": np.zeros(T), "uniform": np.full(T, -0.1)},
        q_std_T=np.full(T, 0.1),
        disagreement_T=np.full(T, 0.02),
        evaluations=[Evaluated(0, 0.01, -0.01, 0.03), Evaluated(100, 0.02, 0.01, 0.03)],
        heuristics=dict.fromkeys(names, (0.1, 0.2, 0.3)),
        verdict=["It is supported."],
    )
    page = write_diagnostics([view], tmp_path / "diagnostics.html", "dma")
    seen = browse(page, tmp_path / "profile", "--dump-dom")
    assert 'data-drawn="6"' in seen.stdout
    assert len(re.findall(r'class="main-svg"', seen.stdout)) >= 6
    assert "CONSOLE" not in seen.stderr, seen.stderr

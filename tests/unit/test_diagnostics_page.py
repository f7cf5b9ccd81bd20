"""The diagnostics page of a learned policy: alarms, text for each plot, and no external
resources."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.domain import Domain
from cuvee.core.mixture import Mixture
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.report.learning import Evaluated, SpaceView, alarms, logged_spaces, write_diagnostics

T, DOMAINS = 8, (Domain("web", 900), Domain("books", 100), Domain("maths", 50, "target"))
RISING = np.stack([np.linspace(0.7, 0.3, T), np.full(T, 0.2), np.linspace(0.1, 0.5, T)], axis=1)


def view(**changes: Any) -> SpaceView:
    plain = SpaceView(
        name="3 domains, 8 intervals",
        domains=DOMAINS,
        path_TK=RISING,
        target_shares_NT=np.random.default_rng(0).uniform(size=(5, T)),
        best_N=np.array([1.0, 0, 0, 0, 0]),
        values={"own": np.zeros(T), "uniform": np.full(T, -0.1)},
        q_std_T=np.full(T, 0.1),
        disagreement_T=np.full(T, 0.02),
        evaluations=[Evaluated(0, 0.01, -0.01, 0.03), Evaluated(100, 0.02, 0.01, 0.03)],
        heuristics={"smoothness": (-0.1, -0.2, -0.3), "balance": (1.0, 0.9, 0.0)},
        verdict=["The policy is <b>good</b>."],
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"disagreement_T": np.full(T, 0.2)}, "Flat Q: .* disagree about those differences by 0.2"),
        ({"q_std_T": np.full(T, 1e-5), "disagreement_T": np.zeros(T)}, "Flat Q"),
        (
            {"path_TK": np.tile([0.02, 0.03, 0.95], (T, 1)) + 0.0 * RISING},
            "Collapse: maths has over 90 %",
        ),
        ({"path_TK": np.tile([0.2, 0.3, 0.5], (T, 1))}, "Constant: .* a static mixture would do"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str) -> None:
    assert any(re.search(said, alarm) for alarm in alarms(view(**changes)))


def test_a_healthy_policy_raises_no_alarm() -> None:
    assert alarms(view()) == []


def test_the_page_holds_everything_and_escapes_its_input(tmp_path: Path) -> None:
    odd = view(name="a<script>", evaluations=[])
    page = write_diagnostics(
        [view(), odd], tmp_path / "deep" / "page.html", "dma", {"Runs": "64"}
    ).read_text()
    assert page.count('class="plot"') == 6 + 5
    assert "a&lt;script&gt;" in page
    assert "&lt;b&gt;good" in page
    assert "a<script>" not in page
    assert "default-src 'none'" in page
    assert not re.search(
        r'(src|href)="https?:', re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    )
    assert "Target share of the policy over a run, from 10% to 50%" in page


def test_logged_runs_are_shown_by_domain_space_with_what_they_cover(tmp_path: Path) -> None:
    domains = (Domain("web", 90, scores={"mtld": 70.0}), Domain("maths", 10, "target"))

    def logged(share: float, intervals: int) -> Trajectory:
        signals = [
            Signals(domains, t, t / intervals, np.zeros(2, np.int64), Measured.absent(2))
            for t in range(intervals + 1)
        ]
        return Trajectory(signals, [Mixture.of({"web": 1 - share, "maths": share})] * intervals)

    spaces = logged_spaces([logged(0.1, 4), logged(0.3, 4), logged(0.5, 2)])
    assert [space.name for space in spaces] == ["2 domains, 4 intervals", "2 domains, 2 intervals"]
    assert spaces[0].figures["runs"] == "2"
    assert spaces[0].coverage is not None
    assert spaces[0].coverage.distance == pytest.approx(0.2)
    assert spaces[1].figures == {"runs": "1"}, "one run covers nothing that could be compared"
    page = write_diagnostics([], tmp_path / "page.html", "odm", {}, spaces, ["It is <good>."])
    assert "2 domains, 4 intervals" in page.read_text()
    assert "It is &lt;good&gt;." in page.read_text()
    assert page.read_text().count('class="plot"') == 2

"""The page of headline claims: verdicts follow intervals, and what has not run is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from headline import CLAIMS, JOBS, judge, keep, page, row_of


@pytest.mark.parametrize(
    ("estimate", "interval", "side", "bar", "verdict"),
    [
        (-0.05, (-0.07, -0.03), "below", 0.0, "holds"),
        (0.05, (0.03, 0.07), "below", 0.0, "fails"),
        (-0.01, (-0.03, 0.01), "below", 0.0, "open"),
        (0.9, (0.85, 0.95), "above", 0.8, "holds"),
        (0.7, (0.6, 0.79), "above", 0.8, "fails"),
        (0.8, (0.7, 0.9), "above", 0.8, "open"),
        (0.99, None, "above", 0.987, "holds, no interval"),
        (0.9, None, "above", 0.987, "fails, no interval"),
    ],
)
def test_a_verdict_follows_the_interval(
    estimate: float, interval: tuple[float, float] | None, side: str, bar: float, verdict: str
) -> None:
    assert judge(estimate, interval, side, bar) == verdict


def test_the_page_has_a_row_for_each_claim_and_says_what_has_not_run(tmp_path: Path) -> None:
    keep(tmp_path / "decisions.json", {"full_52": {"cpu_median": 5.3}}, 60.0)
    keep(tmp_path / "trainer.json", {"hf_step_ratio_loss": 1.0}, 60.0)  # without its interval
    rows = [row_of(claim, tmp_path) for claim in CLAIMS]
    text = page(rows)
    assert all(f"| {claim.text} |" in text for claim in CLAIMS)
    found = {row.claim: row.verdict for row in rows}
    assert found["A decision of the history agent at 52 domains (ms)"].startswith("holds")
    assert found["the same with gradient alignment"] == "no figure"
    assert sum(verdict == "not run" for verdict in found.values()) == sum(
        claim.job not in ("decisions", "trainer") for claim in CLAIMS
    )
    assert not list(tmp_path.glob("*.part"))


def test_each_claim_names_a_job_and_each_job_a_program() -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    assert {claim.job for claim in CLAIMS} == set(JOBS)
    assert all((benchmarks / job.program).is_file() for job in JOBS.values())

"""The page of headline claims: verdicts follow intervals, and what has not run is said."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest
from headline import (
    CLAIMS,
    JOBS,
    KEPT,
    MEASURED,
    PAGE,
    README,
    SCALE,
    cells_of,
    judge,
    keep,
    page,
    readme_table,
    result_of,
    row_of,
    run_job,
    share_of,
    take,
    with_measured,
    with_table,
)
from scale_page import FIGURES, with_figures


@pytest.mark.parametrize(
    ("estimate", "interval", "side", "bar", "verdict"),
    [
        (-0.05, (-0.07, -0.03), "below", 0.0, "**holds**: the interval is below 0"),
        (0.05, (0.03, 0.07), "below", 0.0, "**fails**: the interval is not below 0"),
        (-0.01, (-0.03, 0.01), "below", 0.0, "**open**: the interval reaches above 0"),
        (0.9, (0.85, 0.95), "above", 0.8, "**holds**: the interval is above 0.8"),
        (0.7, (0.6, 0.79), "above", 0.8, "**fails**: the interval is not above 0.8"),
        (0.8, (0.7, 0.9), "above", 0.8, "**open**: the interval reaches below 0.8"),
        (0.99, None, "above", 0.987, "above 0.987, without an interval"),
        (0.9, None, "above", 0.987, "not above 0.987, without an interval"),
        (0.0, None, "below", 0.01, "below 0.01, without an interval"),
        (0.01, None, "below", 0.01, "not below 0.01, without an interval"),
    ],
)
def test_a_verdict_follows_the_interval(
    estimate: float, interval: tuple[float, float] | None, side: str, bar: float, verdict: str
) -> None:
    assert judge(estimate, interval, side, bar) == verdict


def test_the_page_has_a_row_for_each_claim_and_says_what_has_not_run(tmp_path: Path) -> None:
    keep(tmp_path / "decisions.json", {"full_52": {"cpu_median": 5.3}, "decisions": 7}, 60.0)
    keep(tmp_path / "trainer.json", {"hf_step_ratio_loss": 1.0}, 60.0)  # without its interval
    rows = [row_of(claim, tmp_path) for claim in CLAIMS]
    text = page(rows)
    assert all(f"| {claim.text} |" in text for claim in CLAIMS)
    decision = next(row for row in rows if row.job == "decisions")
    assert decision.verdict == "below 20, without an interval"
    assert (decision.seeds, decision.hours) == ("7 decisions", 60 / 3600)
    assert {row.verdict for row in rows if row.job == "trainer"} == {"no figure"}
    assert {row.verdict for row in rows if row.job not in ("decisions", "trainer")} == {"not run"}
    assert not list(tmp_path.glob("*.part"))


def test_a_ratio_of_perplexities_is_made_of_nats_and_a_goal_never_reached_is_open(
    tmp_path: Path,
) -> None:
    scarce = {"vs_odm": {"ac_odm": [-0.1, -0.2, 0.0]}, "steps_vs_odm": {"ac_odm": None}}
    keep(tmp_path / "online.json", {"scarce-code_python": scarce}, None)
    rows = {claim.text: row_of(claim, tmp_path) for claim in CLAIMS}
    perplexity = rows["AC-ODM's final perplexity over ODM's"]
    assert perplexity.estimate == pytest.approx(0.904837)
    assert perplexity.interval == pytest.approx((0.818731, 1.0))
    assert perplexity.verdict.startswith("**open**")
    never = rows["AC-ODM reaches ODM's best loss in fewer steps"]
    assert (never.estimate, never.verdict) == (None, "**open**: not every seed reaches it")


def test_a_measurement_is_taken_from_a_kept_file_or_from_the_last_line_of_a_log(
    tmp_path: Path,
) -> None:
    keep(tmp_path / "kept.json", {"a": 1}, 3.0)
    assert take(tmp_path / "kept.json") == ({"a": 1}, 3.0)
    (tmp_path / "log").write_text('10 s  first\n{"a": 2}\n')
    assert take(tmp_path / "log") == ({"a": 2}, None)


def test_the_hours_of_a_job_that_was_interrupted_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"out": str(tmp_path / "out")}

    def ends(code: int) -> None:
        done = subprocess.CompletedProcess([], code, stdout='first\n{"decisions": 3}\n')
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        run_job("decisions", tmp_path, inputs)

    ends(1)
    assert not (tmp_path / "decisions.json").exists()
    ends(0)
    assert take(tmp_path / "decisions.json") == ({"decisions": 3}, None)
    (tmp_path / "decisions.json").unlink()
    ends(0)
    result, seconds = take(tmp_path / "decisions.json")
    assert result == {"decisions": 3}
    assert seconds is not None


def test_each_claim_names_a_job_and_each_job_a_program() -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    assert {claim.job for claim in CLAIMS} == set(JOBS)
    assert all((benchmarks / job.program).is_file() for job in JOBS.values())


def test_the_pages_are_what_the_program_makes_of_the_kept_measurements() -> None:
    assert {file.stem for file in KEPT.glob("*.json")} <= set(JOBS)
    rows = [row_of(claim, KEPT) for claim in CLAIMS]
    made = page(rows)
    assert PAGE.read_text(encoding="utf-8") == made, "run `python benchmarks/headline.py --page`"
    readme = README.read_text(encoding="utf-8")
    assert readme_table(rows) in readme
    assert with_table(readme, readme_table(rows)) == readme
    assert "never in the README" in with_table(readme, "never in the README")
    assert with_measured(readme, KEPT) == readme
    scale = SCALE.read_text(encoding="utf-8")
    assert with_figures(scale, result_of("scale", KEPT)) == scale
    for file in KEPT.glob("*.json"):
        assert json.loads(file.read_text())["result"], file


METHODS = """
| method | needs | against `natural` | page |
|---|---|---|---|
| `even`, `gain` | an objective | typed by hand | [gain](gain.md) |
| `doremi` | two proxies | typed by hand | [doremi](doremi.md) |

| method | against `natural` of another table, which is not this column |
"""


def test_the_figures_of_the_methods_come_from_the_kept_measurements(tmp_path: Path) -> None:
    empty = with_measured(METHODS, tmp_path)
    assert "typed by hand" not in empty
    figures = {"even": [-0.5, -0.6, -0.4], "gain": [-0.7, -0.8, -0.6]}
    figures["gain_proxy"] = [-0.75, -0.85, -0.65]
    keep(tmp_path / "online.json", {"scarce-code_python": {"vs_natural": figures}}, None)
    made = with_measured(METHODS, tmp_path).split("\n")
    assert made[3] == (
        "| `even`, `gain` | an objective | `even` −0.5 (−0.6 to −0.4); `gain` −0.7 (−0.8 to −0.6); "
        "`gain` from proxies −0.75 (−0.85 to −0.65) | [gain](gain.md) |"
    )
    assert made[4] == "| `doremi` | two proxies |  | [doremi](doremi.md) |"
    assert made[6] == METHODS.split("\n")[6]


def test_what_a_method_won_is_said_without_figures_of_another_origin() -> None:
    lines = README.read_text(encoding="utf-8").split("\n")
    head = next(i for i, line in enumerate(lines) if f"| {MEASURED} |" in line)
    place = cells_of(lines[head]).index("where it won and lost")
    rows = [cells_of(line) for line in itertools.takewhile(is_row, lines[head + 2 :])]
    assert len(rows) > 10
    assert [row[place] for row in rows if any(sign.isdigit() for sign in row[place])] == []


def is_row(line: str) -> bool:
    return line.startswith("|")


def test_each_row_of_the_page_of_scale_has_a_figure_and_each_figure_a_row() -> None:
    rows = [line for line in SCALE.read_text(encoding="utf-8").split("\n") if is_row(line)]
    named = [cells_of(row)[0] for row in rows]
    assert set(FIGURES) <= set(named)
    assert set(FIGURES) == {name for name in named if name in FIGURES}
    assert with_figures("| state | by hand |\n", None) == "| state | by hand |\n"
    with pytest.raises(KeyError):
        with_figures("| made up | 3 s |\n", {"stream": {}})


def test_the_page_of_scale_takes_its_figures_from_the_measurement() -> None:
    times = {"next_s": 0.5, "first_s": 20.0, "audit_megabytes": 1.5}
    found = dict.fromkeys(("natural", "odm", "ado", "gain", "ac_odm", "hds", "history"), times)
    stream = dict.fromkeys(("save_state_s", "load_state_s", "seek_s", "set_mixture_s"), 0.25)
    stream |= {"batch_after_a_change_s": 1, "open_corpus_s": 2, "open_stream_s": 3}
    result = {
        "stream": {**stream, "state_megabytes": 0.661},
        "decisions": {**found, "learning": found, "history_gigabytes_on_paper": 60.0},
        "store": [{"megabytes_a_row": 1.3, "rows_written_a_second": 4, "rows_read_a_second": 8}],
        "report": [{"seconds": 18.2, "megabytes": 5.31}, {"seconds": 8, "megabytes": 5}],
    }
    made = with_figures(SCALE.read_text(encoding="utf-8"), result)
    assert "logged for later | ≤ 1 MB | 0.66 MB |" in made
    assert "| natural | ≤ 1 s | 0.5 s; the first 20 s |" in made
    assert "| four runs of 10,000 domains and 20 intervals | ≤ 6 MB | 18 s, 5.3 MB |" in made
    assert with_figures(made, result) == made


def test_a_share_of_few_worlds_has_the_interval_of_a_share() -> None:
    share, low, high = share_of(0, 50)
    assert (share, low) == (0.0, 0.0)
    assert high == pytest.approx(0.0714, abs=1e-3)
    assert share_of(25, 50)[1:] == pytest.approx([0.3664, 0.6336], abs=1e-3)

"""Comparisons by test loss, and by validation loss where a run was not tested."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cuvee.core.signals import Measured
from cuvee.core.trajectory import Run, Trajectory
from cuvee.recipes.reports.export import export
from cuvee.recipes.reports.reporting import tables
from cuvee.report.page import write_report
from cuvee.report.summary import summarise
from cuvee.report.tables import domain_table, final_table, paired_table, run_table
from cuvee.report.words import fallback, headline
from cuvee.testing.runs import example_run


def with_validation(run: Run, by: float) -> Run:
    """The run with `by` added to each validation loss, and with no other probes."""
    signals = [
        replace(
            s,
            probes={
                name: Measured.all(s.probes[name].values + by)
                for name in s.probes
                if name == "valid_loss"
            },
        )
        for s in run.trajectory.signals
    ]
    return replace(run, trajectory=Trajectory(signals, run.trajectory.mixtures))


def with_test(run: Run, by: float, absent: tuple[str, ...] = ()) -> Run:
    """The same run with a test loss at its end: the last validation loss plus `by`."""
    *before, last = run.trajectory.signals
    present_K = np.array([name not in absent for name in last.names])
    test_loss = Measured(last.probes["valid_loss"].values + by, present_K)
    signals = [*before, replace(last, probes={**last.probes, "test_loss": test_loss})]
    return replace(run, trajectory=Trajectory(signals, run.trajectory.mixtures))


def opposed(seeds: int) -> list[Run]:
    """Runs of natural and other: other is 0.25 better on validation and 0.5 worse on test."""
    base = [example_run("natural", seed) for seed in range(seeds)]
    other = [
        replace(with_validation(run, -0.25), id=f"{run.id}b", config={"method": "other"})
        for run in base
    ]
    return [with_test(run, 0.1) for run in base] + [with_test(run, 0.85) for run in other]


def test_methods_are_ranked_by_test_loss_where_every_run_has_one() -> None:
    summary = summarise(opposed(5))
    table, paired = final_table(summary), paired_table(summary)
    losses_K = example_run("natural").trajectory.last.probes["valid_loss"].values
    alone = dict(zip(table.columns, final_table(summarise(opposed(1))).rows[0].cells, strict=True))
    assert alone["Mean"].text == f"{losses_K.mean() + 0.1:.3f}"
    assert [row.cells[0].lowest for row in table.rows] == [True, False]
    assert paired is not None
    assert [cell.text for cell in paired.rows[0].cells[:5]] == ["worse", *["+0.500"] * 4]
    assert paired.rows[0].cells[1].shade > 0
    words = " ".join(headline(summary))
    assert "natural ended with the lowest average of source and target test loss" in words
    assert "validation" not in words
    assert fallback(summary) is None


def test_changes_and_tokens_needed_are_of_the_validation_loss() -> None:
    runs = opposed(1)
    validated = [with_validation(run, 0.0) for run in runs]
    by_test, by_validation = summarise(runs), summarise(validated)
    notes = [
        [row.cells[0].note for row in final_table(summary).rows]
        for summary in (by_test, by_validation)
    ]
    assert notes[0] == notes[1]
    ends = [paired_table(summary) for summary in (by_test, by_validation)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].rows[0].cells[5] == ends[1].rows[0].cells[5]
    assert re.fullmatch(r"\d+% of its tokens", ends[0].rows[0].cells[5].text)


def test_tables_and_page_say_which_loss_they_show(tmp_path: Path) -> None:
    runs = opposed(2)
    assert [heading for heading, _ in tables(runs)] == [
        "Test loss at the end",
        "Against natural, paired by seed: test loss. The verdict is about the average of source "
        "and target test loss",
    ]
    assert run_table(summarise(runs)).columns[3] == "Average of source and target test loss"
    page = write_report(runs, tmp_path / "test.html").read_text()
    assert "<caption>Test loss in nats per token at the end" in page
    assert "<caption>Difference in final test loss to natural" in page
    assert "<caption>Final test loss by domain" in page
    untested = [example_run("natural")]
    assert tables(untested)[0][0] == "Validation loss at the end"
    page = write_report(untested, tmp_path / "validation.html").read_text()
    assert "<caption>Validation loss in nats per token at the end" in page
    assert "<caption>Final validation loss by domain" in page
    assert "Final losses are" not in page


def test_domains_show_test_losses_beside_validation_losses_before_training() -> None:
    runs = opposed(1)
    table = domain_table(summarise(runs))
    assert table.columns == ("Validation loss at the start", "natural", "other")
    name = table.rows[0].head
    k = runs[0].trajectory.names.index(name)
    start = runs[0].trajectory.signals[0].probes["valid_loss"].values[k]
    ends = [run.trajectory.last.probes["test_loss"].values[k] for run in runs]
    assert [cell.text for cell in table.rows[0].cells] == [f"{v:.3f}" for v in (start, *ends)]
    assert [cell.shade for cell in table.rows[0].cells] == [0, 0, 0], "one seed"
    shades = [cell.shade for cell in domain_table(summarise(opposed(3))).rows[0].cells]
    assert shades == [0, 0, 3]


@pytest.mark.parametrize("absent", [example_run("natural").trajectory.names, ("source-2",)])
def test_without_a_test_loss_of_each_run_and_domain_all_losses_are_validation_losses(
    absent: tuple[str, ...], tmp_path: Path
) -> None:
    natural, other = opposed(1)
    runs = [natural, with_test(other, 0.85, absent)]
    summary = summarise(runs)
    assert [row.cells[0].lowest for row in final_table(summary).rows] == [False, True]
    assert "validation loss ended at: other" in headline(summary)[0]
    note = fallback(summary)
    assert note == (
        "Final losses are validation losses, because some runs have no test loss of some domains. "
        f"Runs: example-natural-s0b. Domains: {', '.join(absent)}."
    )
    assert tables(runs)[0][0] == f"Validation loss at the end. {note}"
    assert note in write_report(runs, tmp_path / "r.html").read_text()


def test_an_unfinished_run_does_not_hide_the_test_losses_and_has_none() -> None:
    natural, other = opposed(1)
    summary = summarise([natural, other, example_run("odm", done=7)])
    assert [row.cells[0].text == "–" for row in final_table(summary).rows] == [False, False, True]
    assert [row.cells[3].text == "–" for row in run_table(summary).rows] == [False, False, True]
    assert [cell.text == "–" for cell in domain_table(summary).rows[0].cells] == [
        False,
        False,
        False,
        True,
    ]
    assert "test loss ended at: natural" in headline(summary)[0]
    assert "odm" not in headline(summary)[0]


def test_an_export_has_the_test_loss_of_the_final_model(tmp_path: Path) -> None:
    run = with_test(example_run("natural"), 0.1, absent=("source-2",))
    export([(run, [])], tmp_path / "runs.parquet")
    rows = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    last = run.trajectory.last
    expected = dict(zip(last.names, last.probes["test_loss"].to_json(), strict=True))
    assert expected["source-2"] is None
    assert {row["domain"]: row["test_loss"] for row in rows if row["interval"] == 20} == expected
    assert all(row["test_loss"] is None for row in rows if row["interval"] < 20)
    validated = dict(zip(last.names, last.probes["valid_loss"].to_json(), strict=True))
    assert {row["domain"]: row["valid_loss"] for row in rows if row["interval"] == 20} == validated

"""A report is judged by the objective that its runs were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuvee.core.signals import Measured
from cuvee.core.trajectory import Run, Trajectory
from cuvee.recipes.reports.reporting import tables
from cuvee.report.page import write_report
from cuvee.report.panels import interval_panels
from cuvee.report.summary import summarise
from cuvee.report.tables import final_table, paired_table
from cuvee.report.verdict import card
from cuvee.report.views import score
from cuvee.report.words import headline, measure
from cuvee.testing.runs import example_domains, example_run

TARGET = {"target-0": 1.0, "target-1": 1.0}
ONE = {"target-0": 1.0, "target-1": 0.0}
MIXED = {"target-0": 2.0, "source-0": 1.0}


def with_objective(run: Run, objective: Mapping[str, float] | None) -> Run:
    aim = {} if objective is None else {"objective": dict(objective)}
    return replace(run, config={**run.config, **aim})


def opposed(objective: Mapping[str, float] | None, seeds: int = 5) -> list[Run]:
    """natural, and keen: 0.3 to 0.34 better on the targets and 0.5 worse on the sources."""
    base = [example_run("natural", seed) for seed in range(seeds)]
    keen = []
    for run in base:
        target_K = np.array([domain.is_target for domain in run.trajectory.domains])
        shift_K = np.where(target_K, -0.3 - 0.01 * run.seed, 0.5)
        signals = [
            replace(s, probes={n: Measured.all(m.values + shift_K) for n, m in s.probes.items()})
            for s in run.trajectory.signals
        ]
        moved = Trajectory(signals, run.trajectory.mixtures)
        keen.append(replace(run, id=f"{run.id}-keen", config={"method": "keen"}, trajectory=moved))
    return [with_objective(run, objective) for run in [*base, *keen]]


def test_the_objectives_loss_has_its_weights() -> None:
    domains = example_domains(sources=3, targets=1)
    scores = score(domains, np.array([1.0, 2.0, 3.0, 6.0]), {}, {"target-0": 3.0, "source-1": 1.0})
    assert scores.objective == scores.headline == 5.0
    assert scores.beside == 2.0
    assert scores.balance == 4.0


@pytest.mark.parametrize(
    ("objective", "ranked_by", "choice"),
    [
        (None, "Source/target average", "Keep natural"),
        (TARGET, "Target", "Train on keen"),
        (ONE, "Objective", "Train on keen"),
        (MIXED, "Objective", "Train on keen"),
        ({"source-0": 1.0}, "Objective", "Keep natural"),
        (dict.fromkeys((domain.name for domain in example_domains()), 0.5), "Mean", "Keep natural"),
    ],
)
def test_the_verdict_is_about_the_objective(
    objective: Mapping[str, float] | None, ranked_by: str, choice: str
) -> None:
    summary = summarise(opposed(objective))
    found = card(summary)
    assert found is not None
    assert (summary.ranked_by, found.choice) == (ranked_by, choice)
    assert measure(summary) in " ".join([found.sure, *headline(summary)])


def test_the_card_says_what_the_objective_leaves_out() -> None:
    found = card(summarise(opposed(TARGET)))
    assert found is not None
    assert found.trust == (
        "On the domains that the objective leaves out, keen ends +0.500 nats (+0.500 to +0.500) "
        "from natural.",
    )


def test_tables_and_figures_have_the_objective_first() -> None:
    runs = opposed(MIXED)
    summary = summarise(runs)
    table, paired = final_table(summary), paired_table(summary)
    assert "Objective" in table.columns
    assert "Objective" not in table.extra
    assert paired is not None
    cells = dict(zip(paired.columns, paired.rows[0].cells, strict=True))
    assert cells["Δ objective"].text == "−0.047", "(2 × −0.32 + 0.5) / 3"
    assert "Δ objective" not in paired.extra
    assert interval_panels(summary)[0].heading == "Weighted by the objective"
    assert tables(runs)[1][0].endswith(
        "The verdict is about the validation loss weighted by the objective"
    )


def test_without_a_shared_objective_methods_are_ranked_as_without_one() -> None:
    half = opposed(TARGET)[:5] + opposed(ONE)[5:]
    unknown = opposed({"target-0": 1.0, "elsewhere": 1.0})
    broken = opposed(None)
    broken = [replace(run, config={**run.config, "objective": "loss"}) for run in broken]
    for runs in (half, unknown, broken):
        assert summarise(runs).ranked_by == "Source/target average"


def test_the_page_names_the_objectives_loss(tmp_path: Path) -> None:
    page = write_report(opposed(MIXED), tmp_path / "report.html").read_text()
    assert "nats of validation loss weighted by the objective against natural" in page
    assert "in the last figure those of the objective" in page


def test_the_card_names_the_next_best_and_how_far_it_is() -> None:
    runs = opposed(TARGET)
    late = [
        replace(run, id=f"{run.id}-late", config={**run.config, "method": "late"})
        for run in runs[5:]
    ]
    found = card(summarise([*runs, *late]))
    assert found is not None
    assert found.choice == "Train on keen"
    assert "Also better than natural: late." in found.sure
    assert found.sure.endswith(
        "The next best is late, +0.000 nats from keen (+0.000 to +0.000), so the two may be "
        "equally good."
    )
    alone = card(summarise(runs))
    assert alone is not None
    assert "next best" not in alone.sure

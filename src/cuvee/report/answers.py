"""The table of answered questions: figures of `cuvee evaluate` by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cuvee.evaluation.items import TaskScore, paired
from cuvee.report.summary import Summary
from cuvee.report.tables import Cell, Row, Table
from cuvee.report.views import MethodView
from cuvee.report.words import ABSENT, interval, number, signed

Evaluations = Mapping[str, Sequence[TaskScore]]
"""Results by run id."""


def answer_table(summary: Summary, evaluations: Evaluations) -> Table | None:
    """One row per task and figure, one column per method; None without results.

    Below each mean is the difference to the baseline on the same questions, with a 95 % interval.
    Results on other questions, or of another version of the harness, have rows of their own.
    """
    asked = {
        score.digest: score
        for scores in evaluations.values()
        for score in sorted(scores, key=lambda score: score.task)
    }
    rows = []
    for digest, score in asked.items():
        by_method = [_scores(method, digest, evaluations) for method in summary.methods]
        note = f"{len(score.items):,} questions, lm_eval {score.source['lm_eval']}"
        for name in score.names:
            cells = tuple(_cell(scores, by_method[0], name) for scores in by_method)
            rows.append(Row(f"{score.task}: {name}", note, cells))
    columns = tuple(method.label for method in summary.methods)
    return Table(columns, tuple(rows)) if rows else None


def _scores(method: MethodView, digest: str, evaluations: Evaluations) -> list[TaskScore]:
    of_runs = (evaluations.get(view.run.id, ()) for view in method.runs)
    return [score for scores in of_runs for score in scores if score.digest == digest]


def _cell(scores: Sequence[TaskScore], baseline: Sequence[TaskScore], name: str) -> Cell:
    if not scores:
        return Cell(ABSENT)
    mean = number(float(np.mean([score.mean(name) for score in scores])), 4)
    difference = None if scores is baseline else paired(scores, baseline, name)
    if difference is None or difference.low is None:
        return Cell(mean)
    return Cell(mean, f"{signed(difference.mean, 4)} ({interval(difference, 4)})")

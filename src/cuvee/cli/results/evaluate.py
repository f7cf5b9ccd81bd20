"""`cuvee evaluate`: a model on questions, with lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.display.tables import say_json
from cuvee.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from cuvee.evaluation.items import TaskScore


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A model folder, or the beginning of an id.")
    ],
    questions: Annotated[
        list[Path] | None,
        typer.Option("--questions", "-q", help="A JSONL file of questions; may be repeated."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", "-t", help="A task of the harness; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The most questions of each task.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Sequences of a forward pass.")
    ] = 16,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="The run's corpus, to evaluate a run's last checkpoint."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on question files and tasks, offline, and record every answer's score.

    docs/evaluate.md explains the figures. `cuvee report` shows them and compares methods by them.

    Example: cuvee evaluate RUN --questions quiz.jsonl --limit 200
    """
    from cuvee.recipes.evaluate import evaluate as recipe

    name, scores = recipe(
        model,
        questions or (),
        tasks or (),
        limit=limit,
        batch_size=batch_size,
        corpus=corpus,
        store=store,
    )
    if as_json:
        say_json({"recorded_for": name, "tasks": [_as_json(score) for score in scores]})
        return
    _print(scores)
    say(f"recorded for {name}, with lm-evaluation-harness {scores[0].source['lm_eval']}")


def _as_json(score: TaskScore) -> dict[str, Any]:
    figures = {name: vars(mean) for name, mean in score.means().items()}
    counts = {"questions": len(score.items), "left_out": score.left_out}
    return {"task": score.task, **counts, "figures": figures}


def _print(scores: list[TaskScore]) -> None:
    from rich.table import Table

    from cuvee.cli.display.console import console

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("task", "questions", "figure"):
        table.add_column(column, justify="right" if column == "questions" else "left")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    for score in scores:
        count = f"{len(score.items):,}"
        head = (score.task, f"{count} (+{score.left_out:,} too long)" if score.left_out else count)
        for figure, mean in score.means().items():
            interval = "" if mean.low is None else f"{mean.low:.4f} to {mean.high:.4f}"
            table.add_row(*head, figure, f"{mean.mean:.4f}", interval)
            head = ("", "")
    console().print(table, highlight=False)

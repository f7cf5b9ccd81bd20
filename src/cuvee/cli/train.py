"""`cuvee train` and `cuvee compare`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.display.tables import say_json
from cuvee.cli.options import JsonOption, Quiet
from cuvee.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from cuvee.core.trajectory import Run
    from cuvee.recipes.config.schema import RunConfig
    from cuvee.report.tables import Table as Figures
    from cuvee.report.verdict import Card


def _existing(config: Path) -> Path:
    """Raises `ConfigError` for a missing file while nothing heavy is loaded yet."""
    if not config.is_file():
        raise ConfigError(f"there is no configuration file {config}: give the path of one")
    return config


Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG.yaml", callback=_existing, help="The configuration: docs/configuration.md."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]…",
        help="Replaces values of the file, as in train.learning_rate=3e-3.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume interrupted runs.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the cost: tokens, FLOPs, time, memory, epochs. Store nothing."
    ),
]


def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a model under a method's mixture, and store run, model and policy.

    Example: cuvee train train.yaml method=gain train.tokens=10_000_000
    """
    from cuvee.cli.display.live import view
    from cuvee.cli.display.plan import say_plan
    from cuvee.recipes import train as recipe
    from cuvee.recipes.config.schema import TrainConfig, load

    wanted = load(TrainConfig, config, overrides or ())
    if dry_run:
        from cuvee.recipes.setup.estimate import estimate

        say_plan(estimate(wanted))
        return
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        if resume:
            recipe.check_resumable(wanted)
        _say_remarks(wanted)
    with view(quiet or not first) as seen:
        run = recipe.train(wanted, resume=resume, observer=seen)
    if first:
        # A URL may contain a password, so it is not printed.
        at = (
            f" --store {shlex.quote(wanted.store)}"
            if wanted.store and "://" not in wanted.store
            else ""
        )
        say(f"see it with `cuvee runs show {run.id}{at}` or `cuvee report {run.id}{at}`")


def compare(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", "-w", min=1, help="Runs at a time, with `threads` CPU threads each."
        ),
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The report file. Default: NAME.html in `out`."),
    ] = None,
    dry_run: DryRun = False,
    claim: Annotated[
        list[str] | None,
        typer.Option(
            "--claim", help="A < B: registered now, answered after the runs. May be repeated."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Train each method with each seed, print the results, and write the report.

    Example: cuvee compare compare.yaml 'seeds=[0, 1, 2]' --workers 2 --claim 'gain < natural'
    """
    from dataclasses import asdict

    from cuvee.cli.display.live import view
    from cuvee.cli.display.plan import say_plan
    from cuvee.recipes import compare as recipe
    from cuvee.recipes.config.schema import CompareConfig, load
    from cuvee.recipes.preflight import check_writable
    from cuvee.recipes.reports.reporting import (
        by_model_table,
        report_path,
        write_comparison,
    )
    from cuvee.recipes.setup.estimate import estimate

    wanted = load(CompareConfig, config, overrides or ()).with_claims(claim or ())
    if output is not None:
        check_writable(output.parent, "--output FILE")
    _say_remarks(wanted)
    models = wanted.by_model()
    compared = {}
    results: list[dict[str, Any]] = []
    for name, one in models.items():
        if len(models) > 1 and not as_json:
            say(f"model {name}")
        if dry_run:
            plan = estimate(one)
            results.append({"model": name, **asdict(plan)})
            if not as_json:
                say_plan(plan, workers)
            continue
        with view(quiet) as seen:
            compared[name] = recipe.compare(one, resume=resume, workers=workers, observer=seen)
        page = report_path(one, name, output, several=len(models) > 1)
        written = write_comparison(one, compared[name], page)
        results.append(
            {
                "model": name,
                "verdict": asdict(written.card) if written.card else None,
                "verdicts": {label: asdict(found) for label, found in written.verdicts.items()},
                "tables": [_as_json(*table) for table in written.tables],
                "claims": written.claims,
                "report": str(page),
            }
        )
        if not as_json:
            if written.card:
                _say_card(written.card)
            for heading, figures in written.tables:
                _print_table(heading, figures)
            for sentence in written.claims:
                say(sentence)
            say(f"report: {page}")
    if as_json:
        say_json(results)
    elif len(compared) > 1:
        _print_table(*by_model_table(compared, wanted.baseline_label))


def _say_card(card: Card) -> None:
    """Print what to train on, how sure that is, what it saves and what it costs."""
    say(card.choice)
    parts = (("how sure", card.sure), ("saves", card.saves), ("costs", card.cost))
    for name, text in (*parts, *(("note", note) for note in card.trust)):
        if text:
            say(f"  {name}: {text}")
    say()


def print_tables(runs: Sequence[Run], baseline: str | None) -> None:
    """Print the tables of a comparison: final losses and cost, and paired differences."""
    from cuvee.recipes.reports.reporting import tables

    for heading, figures in tables(runs, baseline):
        _print_table(heading, figures)


def _say_remarks(wanted: RunConfig) -> None:
    """Print what is allowed and probably not meant."""
    from cuvee.data.corpus.corpus import Corpus
    from cuvee.recipes.setup.validate import remarks

    for remark in remarks(wanted, Corpus.open(wanted.corpus)):
        say(f"warning: {remark}", error=True, colour="yellow")


def _as_json(heading: str, figures: Figures) -> dict[str, Any]:
    rows = [
        {"name": row.head, "note": row.note}
        | {
            column: {"text": cell.text, "note": cell.note}
            for column, cell in zip(figures.columns, row.cells, strict=True)
        }
        for row in figures.rows
    ]
    return {"heading": heading, "rows": rows}


def _print_table(heading: str, figures: Figures) -> None:
    """Print a table with as many of its first columns as the terminal has room for."""
    from cuvee.cli.display.console import console

    out = console()
    unlimited = out.options.update(max_width=10_000)
    shown = len(figures.columns)
    table = _printed(heading, figures, shown)
    while shown > 1 and out.measure(table, options=unlimited).minimum > out.width:
        shown -= 1
        table = _printed(heading, figures, shown)
    out.print(table, highlight=False)
    if left := figures.columns[shown:]:
        say(f"no room for {', '.join(left)}: widen the terminal, or see the report")


def _printed(heading: str, figures: Figures, shown: int) -> Table:
    from rich.table import Table

    table = Table(
        title=heading, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("")
    for column in figures.columns[:shown]:
        table.add_column(column, justify="right")
    for row in figures.rows:
        cells = (
            f"{cell.text}\n{cell.note}" if cell.note else cell.text for cell in row.cells[:shown]
        )
        table.add_row(f"{row.head}\n{row.note}", *cells)
    return table

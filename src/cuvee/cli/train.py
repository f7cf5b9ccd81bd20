"""`cuvee train` and `cuvee compare`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from cuvee.core.trajectory import Run
    from cuvee.report.tables import Table as Figures


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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


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
        say_plan(wanted)
        return
    first = int(os.environ.get("RANK", "0")) == 0
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
) -> None:
    """Train each method with each seed, print the results, and write the report.

    Example: cuvee compare compare.yaml 'seeds=[0, 1, 2]' --workers 2 --claim 'gain < natural'
    """
    from cuvee.cli.display.console import console
    from cuvee.cli.display.live import view
    from cuvee.cli.display.plan import say_plan
    from cuvee.recipes import compare as recipe
    from cuvee.recipes.config.schema import CompareConfig, load
    from cuvee.recipes.reports.reporting import (
        by_model_table,
        report_path,
        write_comparison,
    )

    wanted = load(CompareConfig, config, overrides or ()).with_claims(claim or ())
    models = wanted.by_model()
    compared = {}
    for name, one in models.items():
        if len(models) > 1:
            say(f"model {name}")
        if dry_run:
            say_plan(one, workers)
            continue
        with view(quiet) as seen:
            compared[name] = recipe.compare(one, resume=resume, workers=workers, observer=seen)
        print_tables(compared[name], one.baseline_label)
        page = report_path(one, name, output, several=len(models) > 1)
        for sentence in write_comparison(one, compared[name], page):
            say(sentence)
        say(f"report: {page}")
    if len(compared) > 1:
        console().print(_printed(*by_model_table(compared, wanted.baseline_label)), highlight=False)


def print_tables(runs: Sequence[Run], baseline: str | None) -> None:
    """Print the tables of a comparison: final losses and cost, and paired differences."""
    from cuvee.cli.display.console import console
    from cuvee.recipes.reports.reporting import tables

    for heading, figures in tables(runs, baseline):
        console().print(_printed(heading, figures), highlight=False)


def _printed(heading: str, figures: Figures) -> Table:
    from rich.table import Table

    table = Table(
        title=heading, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("")
    for column in figures.columns:
        table.add_column(column, justify="right")
    for row in figures.rows:
        cells = (f"{cell.text}\n{cell.note}" if cell.note else cell.text for cell in row.cells)
        table.add_row(f"{row.head}\n{row.note}", *cells)
    return table

"""`cuvee runs`: lists, shows, watches, exports and audits runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cuvee.cli.display.audit import Only, heaviest
from cuvee.cli.display.lines import say
from cuvee.cli.display.printable import one_line

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(name="runs", help="List, show, export and audit runs.", no_args_is_help=True)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="SQLite file, URL or @FILE. Default: $CUVEE_STORE, else runs/cuvee.db."
    ),
]
GroupOption = Annotated[
    str | None, typer.Option("--group", help="Only runs of this comparison or search.")
]
_SHOWN_DOMAINS = 4
_LAID_OUT = 500  # rows; a longer table is printed plainly


@app.command("list")
def list_runs(
    store: StoreOption = None,
    group: GroupOption = None,
    status: Annotated[
        str | None, typer.Option("--status", help="waiting, running, done or failed.")
    ] = None,
) -> None:
    """List runs, oldest first."""
    from cuvee.cli.display.live import time_of
    from cuvee.recipes.stores import listed_runs, open_store

    table = _table("run", "group", "status", "done", "intervals", "tokens", "FLOPs", "time", "why")
    with open_store(store, must_exist=True) as opened:
        for run in listed_runs(opened, group, status):
            spent = (f"{run.cost.tokens:,}", f"{run.cost.flops:.2e}", time_of(run.cost.seconds))
            table.add_row(
                one_line(run.id),
                one_line(run.group or ""),
                run.status,
                f"{run.progress:.0%}",
                f"{run.intervals:,}",
                *spent,
                one_line(run.reason or ""),
            )
    _print(table)


@app.command()
def watch(store: StoreOption = None, group: GroupOption = None) -> None:
    """Watch all runs until none is open or Ctrl-C, whichever workers train them."""
    import time
    from contextlib import suppress

    from cuvee.cli.display.console import console
    from cuvee.cli.display.fleet import FleetView
    from cuvee.recipes.progress.fleet_watch import FleetWatch
    from cuvee.recipes.stores import open_store

    with (
        open_store(store, must_exist=True) as opened,
        FleetView(console()) as view,
        suppress(KeyboardInterrupt),
    ):
        watched = FleetWatch(opened, group)
        while True:
            view.show(status := watched.look())
            if not status.tally.open:
                return
            time.sleep(1.0)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="The run's id, or its beginning.")],
    store: StoreOption = None,
    every: Annotated[
        int, typer.Option("--every", min=0, help="Show every n-th interval; 0 shows about 20.")
    ] = 0,
) -> None:
    """Show the configuration and the trajectory of a run."""
    import yaml

    from cuvee.recipes.progress.watch import training_loss, valid_loss
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        summary = find_runs(opened, [run])[0]
        trajectory = opened.trajectory(summary.id)
    facts = {
        "run": summary.id,
        "status": summary.status,
        "checkpoint": summary.checkpoint,
        "policy": summary.policy,
    }
    say(
        yaml.safe_dump(
            {**facts, "model": summary.model, "config": dict(summary.config)}, sort_keys=False
        )
    )
    table = _table("step", "tokens", "loss", "valid loss", "change", "heaviest domains")
    every = every or max(1, len(trajectory) // 20)
    tokens = 0
    for t, signals in enumerate(trajectory.signals):
        tokens += int(signals.tokens_K.sum())
        if t % every and t != len(trajectory):
            continue
        mixture = trajectory.mixtures[t - 1] if t else None
        before = trajectory.mixtures[t - 2] if t > 1 else None
        table.add_row(
            f"{signals.step:,}",
            f"{tokens:,}",
            _number(training_loss(signals)),
            _number(valid_loss(signals)),
            _number(
                mixture.total_variation(before)
                if mixture and before and mixture.names == before.names
                else None
            ),
            heaviest(mixture.as_dict(), _SHOWN_DOMAINS) if mixture else "",
        )
    _print(table)


@app.command("export")
def export_runs(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file ending in .parquet or .json.")
    ],
    runs: Annotated[
        list[str] | None, typer.Argument(help="Ids or their beginnings. Default: all runs.")
    ] = None,
    store: StoreOption = None,
    group: GroupOption = None,
) -> None:
    """Write runs to one file: complete as JSON, or a table by interval and domain as Parquet."""
    from cuvee.recipes.reports.export import export
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        begun = [run for run in find_runs(opened, runs or (), group) if run.intervals]
        export([(opened.load(run.id), opened.metrics(run.id)) for run in begun], output)
    say(f"{len(begun)} run{'s' * (len(begun) != 1)} → {output}")


@app.command()
def audit(
    run: Annotated[str, typer.Argument(help="The run's id, or its beginning.")],
    store: StoreOption = None,
    only: Annotated[
        Only | None,
        typer.Option(
            "--only", help="Decisions with this verdict; alarm: those that raised an alarm."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records as lines of JSON.")
    ] = False,
) -> None:
    """Show each decision of a run: the policy's proposal, the guard's result, and the reason."""
    import json

    from cuvee.cli.display.audit import is_meant, summary, table
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        found = find_runs(opened, [run])[0]
        metrics = opened.metrics(found.id)
    logged = [(dict(figures["guard"]), figures) for figures in metrics if figures.get("guard")]
    meant = [(record, figures) for record, figures in logged if is_meant(record, only)]
    if as_json:
        for record, figures in meant:
            rest = {name: figure for name, figure in figures.items() if name != "guard"}
            say(json.dumps({**record, "metrics": rest}))
        return
    if not logged:
        say(
            f"{found.id} has no decision of a guard: it has not begun, or it is a proxy, "
            "which runs without a guard"
        )
        return
    _print(table([record for record, _ in meant]))
    say()
    for line in summary([record for record, _ in logged]):
        say(line)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(*columns: str) -> Table:
    from rich.table import Table

    numbers = {
        "done",
        "intervals",
        "tokens",
        "FLOPs",
        "time",
        "step",
        "loss",
        "valid loss",
        "change",
    }
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    from cuvee.cli.display.console import console

    if table.row_count > _LAID_OUT:
        _print_plainly(table)
    else:
        console().print(table, highlight=False)


def _print_plainly(table: Table) -> None:
    """Aligned columns without wrapping, which take no time to lay out."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    right = [column.justify == "right" for column in table.columns]
    widths = [max(map(len, cells)) for cells in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = zip(row, widths, right, strict=True)
        lines.append("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip())
    say("\n".join(lines))

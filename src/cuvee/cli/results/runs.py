"""`cuvee runs`: lists, shows, watches, exports and audits runs; `housekeeping` removes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cuvee.cli.display.audit import Only
from cuvee.cli.display.lines import say
from cuvee.cli.display.tables import Listing, say_json, say_json_lines
from cuvee.cli.options import GroupOption, JsonOption, StoreOption
from cuvee.cli.results import housekeeping

if TYPE_CHECKING:
    from cuvee.fleet.store.rows import RunSummary

app = typer.Typer(
    name="runs", help="List, show, export, audit and remove runs.", no_args_is_help=True
)

app.command("rm")(housekeeping.rm)
app.command("prune")(housekeeping.prune)
app.command("rename")(housekeeping.rename)


@app.command("list")
def list_runs(
    store: StoreOption = None,
    group: GroupOption = None,
    status: Annotated[
        Literal["waiting", "running", "dead", "done", "failed"] | None,
        typer.Option("--status", help="dead: in training by a process that is gone."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, oldest first.

    Example: cuvee runs list --status failed
    """
    from cuvee.cli.display.clock import time_of
    from cuvee.recipes.stores import listed_runs, open_store, short_groups

    with open_store(store, must_exist=True) as opened:
        runs = listed_runs(opened, group, status)
        groups = short_groups(opened.groups())
    if as_json:
        say_json([facts_of(run) for run in runs])
        return
    figures = ("done", "intervals", "tokens", "FLOPs", "time")
    table = Listing(
        *("run", "group", "status", *figures, "why"),
        numbers=figures,
        spare=("FLOPs", "intervals", "time", "group", "tokens", "why"),
    )
    for run in runs:
        table.add(
            run.id,
            groups.get(run.group or "", ""),
            run.state,
            f"{run.progress:.0%}",
            f"{run.intervals:,}",
            f"{run.cost.tokens:,}",
            f"{run.cost.flops:.2e}",
            time_of(run.cost.seconds),
            run.reason or "",
        )
    table.print()


@app.command()
def watch(store: StoreOption = None, group: GroupOption = None) -> None:
    """Watch all runs until none is open or Ctrl-C, whichever workers train them.

    Example: cuvee runs watch --group compare
    """
    import time
    from contextlib import suppress

    from cuvee.cli.display.console import console
    from cuvee.cli.display.fleet import FleetView
    from cuvee.recipes.progress.fleet_watch import FleetWatch
    from cuvee.recipes.stores import find_group, open_store

    with (
        open_store(store, must_exist=True) as opened,
        FleetView(console()) as view,
        suppress(KeyboardInterrupt),
    ):
        watched = FleetWatch(opened, find_group(opened, group))
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
    as_json: JsonOption = False,
) -> None:
    """Show the configuration, the trajectory and the domains of a run.

    Example: cuvee runs show train-odm --every 10
    """
    import yaml

    from cuvee.cli.display.trajectory import domain_table, interval_table
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        summary = find_runs(opened, [run])[0]
        trajectory = opened.trajectory(summary.id) if summary.intervals else None
    if as_json:
        recorded = trajectory.to_json() if trajectory else None
        say_json({**facts_of(summary), "config": summary.config, "trajectory": recorded})
        return
    shown = ("checkpoint", "policy", "model")
    facts = {"run": summary.id, "status": summary.state}
    facts |= {name: getattr(summary, name) for name in shown}
    say(yaml.safe_dump({**facts, "config": dict(summary.config)}, sort_keys=False))
    if trajectory is None:
        say("the run has recorded nothing yet")
        return
    interval_table(trajectory, every or max(1, len(trajectory) // 20)).print()
    say()
    domain_table(trajectory).print()


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
    """Write runs to one file: complete as JSON, or a table by interval and domain as Parquet.

    Example: cuvee runs export --group compare -o runs.parquet
    """
    from cuvee.recipes.reports.export import export
    from cuvee.recipes.stores import begun, find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        found = begun(find_runs(opened, runs or (), group), named=bool(runs))
        export([opened.load_with_metrics(run.id) for run in found], output)
    say(f"{len(found)} run{'s' * (len(found) != 1)} → {output}")


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
    """Show each decision of a run: the policy's proposal, the guard's result, and the reason.

    Example: cuvee runs audit compare-gain-s0 --only limited
    """
    from cuvee.cli.display.audit import is_meant, summary, table
    from cuvee.cli.display.console import console
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        found = find_runs(opened, [run])[0]
        metrics = opened.metrics(found.id)
    logged = [(dict(figures["guard"]), figures) for figures in metrics if figures.get("guard")]
    meant = [(record, figures) for record, figures in logged if is_meant(record, only)]
    if as_json:
        say_json_lines(
            {**record, "metrics": {name: each for name, each in figures.items() if name != "guard"}}
            for record, figures in meant
        )
        return
    if not logged:
        say(
            f"{found.id} has no decision of a guard: it has not begun, or it is a proxy, "
            "which runs without a guard"
        )
        return
    console().print(table([record for record, _ in meant]), highlight=False)
    say()
    for line in summary([record for record, _ in logged]):
        say(line)


def facts_of(run: RunSummary) -> dict[str, Any]:
    """All that is known of a run but its configuration and trajectory, for JSON."""
    from dataclasses import asdict

    facts = {name: value for name, value in asdict(run).items() if name not in ("config", "dead")}
    return {**facts, "status": run.state}

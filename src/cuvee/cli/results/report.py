"""`cuvee report`: writes runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.options import GroupOption, StoreOption


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]…", help="Ids or their beginnings. Default: all runs."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option("--title", help="Heading. Default: the group, or the only run.")
    ] = None,
    group: GroupOption = None,
    store: StoreOption = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write one self-contained HTML page: mixtures, losses by domain, final results with cost.

    Example: cuvee report --group compare -o report.html
    """
    from cuvee.recipes.reports.reporting import write_stored
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        found = find_runs(opened, runs or (), group)
        heading = title or group or (found[0].id if len(found) == 1 else "Runs")
        path = write_stored(opened, found, output, heading)
    say(str(path))
    if open_page:
        typer.launch(path.absolute().as_uri())

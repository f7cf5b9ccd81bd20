"""`cuvee doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuvee.cli.display.lines import say


def doctor(
    store: Annotated[
        str | None,
        typer.Option("--store", help="SQLite file, URL or @FILE. Default: $CUVEE_STORE."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for runs, as `out`.")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Examine torch, GPU, threads, memory, disk, store and extras, and say what to do.

    Exit status 1 if a run could not start.

    Example: cuvee doctor --store runs/cuvee.db
    """
    import json
    from dataclasses import asdict

    from cuvee.recipes.setup.doctor import examine

    findings = examine(store, out)
    if as_json:
        say(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            say(f"{finding.status:<8}{finding.part:<18}{finding.found}")
            if finding.remedy:
                say(f"{'':<26}{finding.remedy}")
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)

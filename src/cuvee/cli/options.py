"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="SQLite file, URL or @FILE. Default: $CUVEE_STORE, else runs/cuvee.db."
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option("--group", help="Only runs of this comparison or search: its `name`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

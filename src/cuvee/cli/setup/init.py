"""`cuvee init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuvee.cli.display.lines import say


def init(
    corpus: Annotated[
        Path, typer.Argument(metavar="CORPUS", help="A folder that `cuvee corpus build` wrote.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The configuration to write.")
    ] = Path("compare.yaml"),
    budget: Annotated[
        str, typer.Option(help="Time for all runs on this machine: 90s, 10m or 2h.")
    ] = "10m",
) -> None:
    """Write a commented configuration for a corpus, sized to this machine.

    Example: cuvee init corpus -o mine.yaml --budget 30m
    """
    import shlex

    from cuvee.recipes.setup.init import write_config

    sizes = write_config(corpus, output, budget)
    say(f"{output}: {sizes.runs} runs of {sizes.tokens:,} tokens with {sizes.model}")
    name = shlex.quote(str(output))
    say(f"next: `cuvee compare {name} --dry-run`, then `cuvee compare {name}`")

"""`cuvee validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.train import Config, Overrides


def validate(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a configuration of train, compare or search as far as possible without training.

    Example: cuvee validate mine.yaml train.tokens=10_000_000
    """
    import json

    from cuvee.recipes.setup.validate import validate as check

    valid = check(config, overrides or ())
    if as_json:
        said = {"command": valid.command, "remarks": list(valid.remarks)}
        say(json.dumps({**said, "config": valid.config.model_dump(mode="json")}, indent=2))
        return
    for remark in valid.remarks:
        say(f"warning: {remark}", error=True, colour="yellow")
    say(f"{config} is valid: run it with `cuvee {valid.command} {config}`")

"""`cuvee learn`: learns a policy from the runs of a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.options import Quiet
from cuvee.cli.train import Config, Overrides

if TYPE_CHECKING:
    from rich.progress import Progress

    from cuvee.learning.history_learning import LearnProgress


def learn(
    config: Config,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The policy's folder. Default: NAME/policy in `out`."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="SQLite file, URL or @FILE, instead of the file's `store`."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Learn a policy from the proxy runs of `cuvee search`, and report whether they support it.

    Example: cuvee learn search.yaml -o policy
    """
    from rich.progress import Progress

    from cuvee.cli.display.console import console
    from cuvee.recipes import search as recipe
    from cuvee.recipes.config.schema import load

    wanted = load(recipe.SearchConfig, config, overrides or ())
    if store is not None:
        wanted = wanted.model_copy(update={"store": store})
    try:
        with Progress(console=console(stderr=True), disable=quiet, transient=True) as progress:
            done = recipe.learn(wanted, output, Shown(progress).show)
    except KeyboardInterrupt:
        say("stopped; the same command resumes", error=True, colour="yellow")
        raise typer.Exit(130) from None
    for sentence in done.verdict:
        say(sentence)
    say(f"diagnostics: {done.page}")
    say(f"policy: {done.folder}; steer a run with `cuvee train CONFIG.yaml policy={done.folder}`")


class Shown:
    """A bar for behaviour cloning and one for Q-learning, with the newest estimates."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("reading runs", total=None)

    def show(self, now: LearnProgress) -> None:
        gains = [
            f"{one['gain']:+.4f} [{one['gain_low']:+.4f}, {one['gain_high']:+.4f}]"
            for one in now.estimates.values()
        ]
        estimated = f"; estimated gain {'; '.join(gains)}" if gains else ""
        self._progress.update(
            self._task, description=f"{now.stage}{estimated}", total=now.total, completed=now.done
        )

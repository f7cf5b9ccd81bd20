"""`cuvee search`: trains proxy runs and writes the policy that a method learns from them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.options import Quiet
from cuvee.cli.train import Config, Overrides

if TYPE_CHECKING:
    from cuvee.recipes.search import SearchPlan


def search(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", "-w", min=1, help="Proxies at a time, with `threads` CPU threads each."
        ),
    ] = 2,
    engine: Annotated[
        Literal["local", "ray", "slurm"] | None,
        typer.Option("--engine", help="Where workers run, instead of the file's `engine`."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="SQLite file, URL or @FILE, instead of the file's `store`."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs that would be trained and their cost.")
    ] = False,
    runs_only: Annotated[
        bool, typer.Option("--runs-only", help="Train the proxies without learning from them.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train the proxy runs that a method requests, and write the policy learned from them.

    The same command resumes an interrupted search.

    Example: cuvee search search.yaml --workers 4
    """
    from cuvee.cli.display.console import console
    from cuvee.cli.display.fleet import FleetView
    from cuvee.recipes import search as recipe
    from cuvee.recipes.config.schema import load

    wanted = load(recipe.SearchConfig, config, overrides or ())
    given = {"engine": engine, "store": store}
    wanted = wanted.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    for warning in recipe.repetition_checks(wanted):
        say(f"warning: {warning}", error=True, colour="yellow")
    if dry_run:
        say(_said(recipe.plan(wanted), wanted.method.label, workers))
        return
    try:
        with FleetView(console(stderr=True)) as view:
            on_change = None if quiet else view.show
            if runs_only:
                runs = recipe.run_proxies(wanted, workers=workers, on_change=on_change)
                said = _done(len(runs), shlex.join([str(config), *(overrides or ())]) + _at(store))
            else:
                folder = recipe.search(wanted, workers=workers, on_change=on_change)
                said = (
                    f"{_evidence(folder)}policy: {folder}; "
                    f"steer a run with `cuvee train CONFIG.yaml policy={folder}`"
                )
    except KeyboardInterrupt as stopped:
        say(str(stopped) or "stopped", error=True, colour="yellow")
        raise typer.Exit(130) from None
    say(said)


def _evidence(policy: Path) -> str:
    """The policy's own evidence as a line, if it has any."""
    from cuvee.policies.files import load_policy

    summary = getattr(load_policy(policy), "evidence", {}).get("summary")
    return f"{summary}\n" if summary else ""


def _done(runs: int, what: str) -> str:
    if not runs:
        return "the method needs no proxy runs"
    return f"{runs} runs are done; `cuvee learn {what} -o policy/` learns from them"


def _at(store: str | None) -> str:
    """The option as it was given, without a URL, which may contain a password."""
    if store is None:
        return ""
    return " --store …" if "://" in store else f" --store {shlex.quote(store)}"


def _said(plan: SearchPlan, method: str, workers: int) -> str:
    from cuvee.cli.display.clock import time_of

    asked = (
        f"{method} requests {plan.runs} proxy runs next ({plan.logged} are done): "
        f"{plan.total.tokens:,} tokens, {plan.total.flops:.3g} FLOPs; "
        f"each {plan.each.tokens:,} tokens, {plan.each.flops:.3g} FLOPs"
    )
    if not plan.runs:
        return asked
    return (
        f"{asked}\nabout {time_of(plan.seconds(workers))} with {workers} workers; "
        f"each {time_of(plan.each.seconds)}, estimated from {plan.estimated_from}\n"
        f"peak memory of a run: {plan.memory / 2**30:.2f} GiB"
    )

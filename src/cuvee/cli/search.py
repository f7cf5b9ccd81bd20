"""`cuvee search`: proxy runs, and the policy that a method learns from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cuvee.cli.train import Config, Overrides, Quiet

if TYPE_CHECKING:
    from cuvee.fleet.rows import Tally


def search(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Proxies at a time, one thread each.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run and what it costs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Runs the proxies that a method asks for, none twice, and writes the policy that it commits to."""
    from cuvee.recipes import search as recipe
    from cuvee.recipes.config import load

    wanted = load(recipe.SearchConfig, config, overrides or ())
    if dry_run:
        plan = recipe.plan(wanted)
        typer.echo(
            f"{wanted.method.label} asks for {plan.runs} proxy runs next ({plan.logged} are done): "
            f"{plan.total.tokens:,} tokens, {plan.total.flops:.3g} FLOPs; "
            f"each {plan.each.tokens:,} tokens, {plan.each.flops:.3g} FLOPs"
        )
        return
    folder = recipe.search(wanted, workers=workers, on_change=None if quiet else _say)
    typer.echo(f"policy: {folder}; steer a run with `cuvee train CONFIG.yaml policy={folder}`")


def _say(tally: Tally) -> None:
    typer.echo(
        f"{tally.done} done, {tally.running} running, {tally.waiting} waiting, {tally.failed} failed "
        f"({tally.lost_attempts} attempts lost), {tally.cost.tokens:,} tokens"
    )

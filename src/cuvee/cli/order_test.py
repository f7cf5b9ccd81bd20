"""`cuvee order-test`: does the order of domains matter at fixed exposure?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.options import Quiet
from cuvee.cli.train import Config, Overrides, Resume


def order_test(
    config: Config,
    overrides: Overrides = None,
    between: Annotated[
        str | None, typer.Option(help="LESS,MORE: the two domains to exchange.")
    ] = None,
    role: Annotated[
        bool, typer.Option("--role", help="Target domains against source domains.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="A recommendation.json: from its last stage to its first.")
    ] = None,
    mean: Annotated[
        Path | None, typer.Option(help="A JSON file of shares: the mean mixture of every arm.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Paired seeds; use at least five.")] = 5,
    shift: Annotated[
        float, typer.Option(help="How far weights move, as a share of the largest move.")
    ] = 1.0,
    resume: Resume = False,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Runs at a time.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The report to write.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Test whether the order of domains matters when the whole run's mixture stays the same.

    Trains a constant, an early-heavy and a late-heavy arm with paired seeds.

    Example: cuvee order-test base.yaml --between web,law --seeds 5
    """
    from cuvee.cli.display.live import view
    from cuvee.cli.recommend import two_names
    from cuvee.recipes import order_test as recipe
    from cuvee.recipes.config.schema import RunConfig, load
    from cuvee.recipes.recommend import read_numbers, read_plan
    from cuvee.recommend.checks.order_test import HELD
    from cuvee.report.page import write_report

    base = load(RunConfig, config, overrides or ())
    direction = recipe.Direction(
        two_names(between, "--between"), role, read_plan(plan) if plan else None
    )
    shares = read_numbers(mean) if mean is not None else None
    wanted = recipe.comparison(base, direction, seeds, shift, shares)
    with view(quiet) as seen:
        verdict, runs = recipe.order_test(wanted, resume=resume, workers=workers, observer=seen)
    for sentence in verdict.sentences:
        say(sentence)
    for name, found in verdict.by_domain.items():
        if found.excludes_zero:
            say(
                f"  {name}: late minus early {found.mean:+.4f} "
                f"({found.low:+.4f} to {found.high:+.4f})"
            )
    page = write_report(
        runs,
        output or base.out / f"{base.name}-order.html",
        f"Order test: {base.name}",
        baseline=HELD,
    )
    say(f"report: {page}")

"""`cuvee runs rm`, `prune` and `rename`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cuvee.cli.display.lines import say
from cuvee.cli.display.tables import Listing
from cuvee.cli.options import GroupOption, StoreOption

if TYPE_CHECKING:
    from cuvee.recipes.housekeeping import Holding

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def rm(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Ids or their beginnings.")],
    store: StoreOption = None,
    yes: Yes = False,
) -> None:
    """Remove runs from the store, with their checkpoints, models and policies on this host.

    A run that is being trained is refused.

    Example: cuvee runs rm train-odm-s0 --yes
    """
    from cuvee.recipes.housekeeping import holdings, remove
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        found = {run.id: run for run in find_runs(opened, runs)}
        held = holdings(list(found.values()))
        _confirm(held, "remove ", yes)
        remove(opened, held)
    _freed(held, "removed ")


def prune(
    store: StoreOption = None,
    group: GroupOption = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Instead remove the checkpoints of finished runs; models, policies and figures "
            "stay.",
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove failed and dead runs, with their folders on this host.

    Waiting runs stay, and so do those in training. Failed proxy runs are data for `cuvee learn`: use
    --group to spare those of other groups.

    Example: cuvee runs prune --checkpoints --yes
    """
    from cuvee.recipes import housekeeping
    from cuvee.recipes.stores import listed_runs, open_store

    with open_store(store, must_exist=True) as opened:
        runs = listed_runs(opened, group)
        of = housekeeping.checkpoints if checkpoints else housekeeping.unfinished
        held = of(runs)
        if not held:
            say("nothing to remove")
            return
        what = "the checkpoints of " if checkpoints else ""
        _confirm(held, f"remove {what}", yes)
        if checkpoints:
            housekeeping.remove_folders(held)
        else:
            housekeeping.remove(opened, held)
    _freed(held, f"removed {what}")


def rename(
    run: Annotated[str, typer.Argument(help="The id of a finished run, or its beginning.")],
    new: Annotated[str, typer.Argument(metavar="NAME", help="Its id from now on.")],
    store: StoreOption = None,
) -> None:
    """Give a finished run, and its folder on this host, another id.

    `cuvee train` with its configuration no longer finds it, and would train it again.

    Example: cuvee runs rename train-odm-s0 odm-final
    """
    from cuvee.recipes.housekeeping import rename as recipe
    from cuvee.recipes.stores import find_runs, open_store

    with open_store(store, must_exist=True) as opened:
        found = find_runs(opened, [run])[0]
        recipe(opened, found, new)
    say(f"{found.id} is now {new}")


def _confirm(held: Sequence[Holding], action: str, yes: bool) -> None:
    if yes:
        return
    table = Listing("run", "status", "intervals", "size", "folders", numbers=("intervals", "size"))
    for one in held:
        names = " ".join(folder.name for folder in one.folders) or "none on this host"
        table.add(one.run.id, one.run.state, f"{one.run.intervals:,}", _size(one.size), names)
    table.print()
    typer.confirm(f"{action}{_runs(held)} ({_size(sum(one.size for one in held))})?", abort=True)


def _freed(held: Sequence[Holding], done: str) -> None:
    say(f"{done}{_runs(held)}; {_size(sum(one.size for one in held))} freed")


def _runs(held: Sequence[Holding]) -> str:
    return f"{len(held)} run{'s' * (len(held) != 1)}"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

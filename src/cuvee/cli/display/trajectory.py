"""Tables about one run: its intervals, and what it read of each domain."""

from __future__ import annotations

from cuvee.cli.display.audit import heaviest
from cuvee.cli.display.tables import Listing
from cuvee.core.trajectory import Trajectory
from cuvee.recipes.progress.watch import training_loss, valid_loss
from cuvee.recipes.reports.domains import domains_read

_SHOWN_DOMAINS = 4


def interval_table(trajectory: Trajectory, every: int) -> Listing:
    """Return a row for every n-th interval and the last."""
    figures = ("step", "tokens", "loss", "valid loss", "change")
    table = Listing(
        *figures, "heaviest domains", numbers=figures, spare=("change", "tokens", "loss")
    )
    tokens = 0
    for t, signals in enumerate(trajectory.signals):
        tokens += int(signals.tokens_K.sum())
        if t % every and t != len(trajectory):
            continue
        mixture = trajectory.mixtures[t - 1] if t else None
        before = trajectory.mixtures[t - 2] if t > 1 else None
        moved = mixture and before and mixture.names == before.names
        table.add(
            f"{signals.step:,}",
            f"{tokens:,}",
            _number(training_loss(signals)),
            _number(valid_loss(signals)),
            _number(mixture.total_variation(before) if moved and mixture and before else None),
            heaviest(mixture.as_dict(), _SHOWN_DOMAINS) if mixture else "",
        )
    return table


def domain_table(trajectory: Trajectory) -> Listing:
    """Return a row for each domain: tokens read, their share, epochs, last validation loss."""
    figures = ("tokens read", "share", "epochs", "valid loss")
    table = Listing("domain", "role", *figures, numbers=figures, spare=("share", "role"))
    for one in domains_read(trajectory):
        table.add(
            one.domain.name,
            one.domain.role,
            f"{one.tokens:,}",
            f"{one.share:.1%}",
            "" if one.epochs is None else f"{one.epochs:.2f}",
            _number(one.valid_loss),
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

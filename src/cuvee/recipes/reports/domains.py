"""What a run read of each domain, and the model card that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cuvee import __version__
from cuvee.core.domain import Domain, available_K
from cuvee.core.errors import one_line
from cuvee.core.files import write_atomic
from cuvee.core.signals import Measured
from cuvee.core.trajectory import Run, Trajectory
from cuvee.report.summary import method_label


@dataclass(frozen=True)
class DomainRead:
    """`share` is that of all tokens read. `valid_loss` is the last one, in nats per token."""

    domain: Domain
    tokens: int
    share: float
    epochs: float | None
    """None for a domain without training tokens."""
    valid_loss: float | None


def domains_read(trajectory: Trajectory) -> list[DomainRead]:
    """Return what was read of each current domain."""
    read = trajectory.tokens_read()
    rows = zip(
        trajectory.domains,
        read.of(trajectory.names).tolist(),
        available_K(trajectory.domains).tolist(),
        _last_valid_loss(trajectory).to_json(),
        strict=True,
    )
    total = max(read.total, 1)
    return [
        DomainRead(domain, int(tokens), tokens / total, tokens / size if size else None, loss)
        for domain, tokens, size, loss in rows
    ]


def _last_valid_loss(trajectory: Trajectory) -> Measured:
    absent = Measured.absent(len(trajectory.names))
    measured = (
        signals.probes.get("valid_loss", absent)
        for signals in reversed(trajectory.signals)
        if signals.names == trajectory.names
    )
    return next((loss for loss in measured if loss.present.any()), absent)


def write_model_card(folder: Path, run: Run) -> None:
    """Write README.md into the folder of an exported model: mixture, tokens by domain and cost."""
    write_atomic(folder / "README.md", "\n".join(_card(run)) + "\n")


def _card(run: Run) -> Iterator[str]:
    yield from ("---", "library_name: transformers", "tags: [cuvee]", "---", "", f"# {run.id}", "")
    yield (
        f"A causal language model, trained with cuvee {__version__} under the mixture of "
        f"`{_code(method_label(run.config))}`, with seed {run.seed}."
    )
    yield ""
    yield "| domain | role | tokens | share | epochs | validation loss |"
    yield "|---|---|---:|---:|---:|---:|"
    for one in domains_read(run.trajectory):
        epochs = "" if one.epochs is None else f"{one.epochs:.2f}"
        loss = "" if one.valid_loss is None else f"{one.valid_loss:.4f}"
        head = f"| {one.domain.name} | {one.domain.role} | {one.tokens:,} "
        yield f"{head}| {one.share:.1%} | {epochs} | {loss} |"
    cost = run.cost
    yield ""
    yield "Shares are of the whole run; the losses are in nats per token."
    yield ""
    yield f"- cost: {cost.tokens:,} tokens, {cost.flops:.3g} FLOPs, {cost.seconds:,.0f} seconds"
    yield f"- model: `{_code(json.dumps(run.config.get('model')))}`"
    yield f"- corpus: `{_code(str(run.config.get('corpus')))}`"


def _code(text: str) -> str:
    """Text between the backticks of Markdown."""
    return one_line(text).replace("`", "'")

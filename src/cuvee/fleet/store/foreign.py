"""Import tables of mixtures and resulting losses from other projects, as runs of one interval.

Every row is checked. A bad row is set aside with file, line and reason; too many of them stop the
import. A loss that is plausible but wrong cannot be detected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.errors import CuveeError, StoreError
from cuvee.core.files import sha256_of, write_atomic
from cuvee.core.mixture import Mixture, check_names
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Run, Trajectory
from cuvee.fleet.store.rows import run_key
from cuvee.fleet.store.store import Store
from cuvee.fleet.store.tabular import BadRow, Rows, number, read_rows

_LARGEST_LOSS = 1e6


@dataclass(frozen=True)
class Columns:
    """The column names of the two tables.

    The pattern `train_{}` means that the column of domain `arxiv` is `train_arxiv`.
    """

    mixture: str = "{}"
    loss: str = "{}"
    key: str = "index"
    """The column by which rows of the two tables are matched."""


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    run_ids: tuple[str, ...]
    quarantined: tuple[Mapping[str, Any], ...]
    """{"file", "line", "reason"} of each bad row."""


def import_tables(
    store: Store,
    mixtures: Path,
    losses: Path,
    *,
    group: str,
    columns: Columns | None = None,
    tokens: Mapping[str, int] | None = None,
    rounding: float = 0.02,
    quarantine: Path | None = None,
    most_bad: float = 0.1,
) -> Imported:
    """Import two CSV files with one row per run, as finished runs of `group`.

    The losses become the probe "valid_loss" of the run's interval; they are absent for domains
    without a column. Weights whose sum differs from 1 by at most `rounding` are divided by it.
    `tokens` gives the available tokens by domain, if known. Bad rows are written to `quarantine`, a
    JSONL file. Importing the same files again changes nothing. Raises `StoreError` if a file cannot
    be read or if more than a share `most_bad` of the rows is bad.
    """
    columns = columns or Columns()
    weights = _Table.read(mixtures, columns.mixture, columns.key)
    losses_by_key = _Table.read(losses, columns.loss, columns.key)
    unknown = sorted(set(losses_by_key.names) - set(weights.names))
    if unknown:
        raise StoreError(
            f"{losses} has losses of {', '.join(unknown[:5])}, which are not in {mixtures}: "
            "name the columns"
        )
    domains = tuple(Domain(name, (tokens or {}).get(name, 0)) for name in weights.names)
    source = {file.name: sha256_of(file) for file in (mixtures, losses)}
    bad = [*weights.bad, *losses_by_key.bad]
    found: list[tuple[dict[str, Any], Mixture, Signals]] = []
    for key, (line, row) in weights.rows.items():
        try:
            if key not in losses_by_key.rows:
                raise StoreError(f"{losses.name} has no row {key!r}")
            loss_line, loss_row = losses_by_key.rows[key]
            line_of = {"mixtures": line, "losses": loss_line}
            found.append(
                (
                    {"imported": source, "group": group, "row": key, "lines": line_of},
                    *_run_of(domains, row, loss_row, rounding),
                )
            )
        except CuveeError as error:
            bad.append({"file": str(mixtures), "line": line, "reason": str(error)})
    for key in losses_by_key.rows.keys() - weights.rows.keys():
        bad.append(
            {
                "file": str(losses),
                "line": losses_by_key.rows[key][0],
                "reason": f"no mixture has the key {key!r}",
            }
        )
    if quarantine is not None and bad:
        write_atomic(quarantine, "".join(json.dumps(row) + "\n" for row in bad))
    if len(bad) > most_bad * max(1, len(bad) + len(found)):
        first = bad[0]
        raise StoreError(
            f"{len(bad)} of {len(bad) + len(found)} rows are bad, first "
            f"{first['file']}:{first['line']}: {first['reason']}"
        )
    return Imported(tuple(_record(store, group, *run) for run in found), tuple(bad))


@dataclass
class _Table:
    """The values by domain of each readable row, with its line number."""

    names: tuple[str, ...]
    rows: dict[str, tuple[int, dict[str, float | None]]]
    bad: list[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path, pattern: str, key: str) -> _Table:
        before, placeholder, after = pattern.partition("{}")
        if not placeholder:
            raise StoreError(
                f"the column pattern {pattern!r} has no {{}} in place of the domain's name"
            )
        return cls.of(read_rows(path), (before, after), key)

    @classmethod
    def of(cls, found: Rows, pattern: tuple[str, str], key: str) -> _Table:
        if key not in found.columns:
            raise StoreError(
                f"{found.path} has no column {key!r} to match rows by; "
                f"it has {', '.join(found.columns[:8])}"
            )
        before, after = pattern
        named = [
            (column, column[len(before) : len(column) - len(after)])
            for column in found.columns
            if column != key and column.startswith(before) and column.endswith(after)
        ]
        try:
            names = check_names([name for _, name in named])
        except CuveeError as error:
            raise StoreError(
                f"{found.path}: {error} (columns are matched by {'{}'.join(pattern)!r})"
            ) from error
        table = cls(names, {}, [bad.as_dict() for bad in found.bad])
        for line, row in found.rows:
            try:
                if row[key] in table.rows:
                    raise ValueError(f"an earlier row has the same key {row[key]!r}")
                values = {name: number(row.get(column)) for column, name in named}
                table.rows[row[key]] = (line, values)
            except ValueError as error:
                table.bad.append(BadRow(str(found.path), line, str(error)[:200]).as_dict())
        return table


def _run_of(
    domains: tuple[Domain, ...],
    weights: Mapping[str, float | None],
    losses: Mapping[str, float | None],
    rounding: float,
) -> tuple[Mixture, Signals]:
    """Return mixture and signals of one row.

    Raises `MixtureError`, `SignalError` or `StoreError` with the reason why the row is bad.
    """
    mixture = rounded_mixture({domain.name: weights[domain.name] for domain in domains}, rounding)
    loss_K = [losses.get(domain.name) for domain in domains]
    for domain, loss in zip(domains, loss_K, strict=True):
        if loss is not None and not 0.0 <= loss <= _LARGEST_LOSS:
            raise StoreError(
                f"the loss of {domain.name} is {loss}: expected 0 to {_LARGEST_LOSS:g}"
            )
    if all(loss is None for loss in loss_K):
        raise StoreError("the row has no loss")
    K = len(domains)
    signals = Signals(
        domains=domains,
        step=1,
        progress=1.0,
        tokens_K=np.zeros(K, dtype=np.int64),
        loss=Measured.absent(K),
        probes={"valid_loss": Measured.from_json(loss_K)},
    )
    return mixture, signals


def rounded_mixture(weights: Mapping[str, float | None], rounding: float) -> Mixture:
    """The mixture in a row whose weights sum to 1 within `rounding`; an empty cell is 0.

    Raises `StoreError`.
    """
    weights_K = np.array([weight or 0.0 for weight in weights.values()])
    total = float(weights_K.sum())
    if not abs(total - 1.0) <= rounding:  # also refuses NaN
        raise StoreError(f"the weights sum to {total:.6g}, further from 1 than rounding explains")
    if (weights_K < 0).any():
        name = list(weights)[int(weights_K.argmin())]
        raise StoreError(f"the weight of {name} is negative: {weights_K.min():.6g}")
    return Mixture.normalise(list(weights), weights_K)


def _record(
    store: Store, group: str, config: Mapping[str, Any], mixture: Mixture, after: Signals
) -> str:
    K = len(after.domains)
    before = Signals(after.domains, 0, 0.0, np.zeros(K, dtype=np.int64), Measured.absent(K))
    run = Run(run_key(config, 0), 0, config, Trajectory([before, after], [mixture]))
    return store.add(f"{group}/{config['row']}"[:200], run, group=group)

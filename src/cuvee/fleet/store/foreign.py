"""Import tables of mixtures and resulting losses from other projects, as runs of one interval.

Every row is checked. A bad row is set aside with file, line and reason; too many of them stop the
import. A loss that is plausible but wrong cannot be detected.
"""

from __future__ import annotations

import csv
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

_LARGEST_FILE = 1 << 28
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
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise StoreError(
                    f"{path} is larger than a table of runs can be: {path.stat().st_size} bytes"
                )
            with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
                return cls._parse(csv.reader(file, strict=True), path, (before, after), key)
        except (OSError, csv.Error) as error:
            raise StoreError(f"{path} is no readable table: {error}") from error

    @classmethod
    def _parse(cls, reader: Any, path: Path, pattern: tuple[str, str], key: str) -> _Table:
        header: list[str] = next(reader, [])
        if key not in header:
            raise StoreError(
                f"{path} has no column {key!r} to match rows by; it has {', '.join(header[:8])}"
            )
        before, after = pattern
        named = [
            (position, column[len(before) : len(column) - len(after)])
            for position, column in enumerate(header)
            if column != key and column.startswith(before) and column.endswith(after)
        ]
        try:
            names = check_names([name for _, name in named])
        except CuveeError as error:
            raise StoreError(
                f"{path}: {error} (columns are matched by {'{}'.join(pattern)!r})"
            ) from error
        table = cls(names, {}, [])
        for cells in reader:
            try:
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells under {len(header)} columns")
                if cells[header.index(key)] in table.rows:
                    raise ValueError(
                        f"an earlier row has the same key {cells[header.index(key)]!r}"
                    )
                values = {
                    name: float(cells[position]) if cells[position].strip() else None
                    for position, name in named
                }
                table.rows[cells[header.index(key)]] = (reader.line_num, values)
            except ValueError as error:
                table.bad.append(
                    {"file": str(path), "line": reader.line_num, "reason": str(error)[:200]}
                )
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
    weights_K = np.array([weights[domain.name] or 0.0 for domain in domains])
    total = float(weights_K.sum())
    if not abs(total - 1.0) <= rounding:  # also refuses NaN
        raise StoreError(f"the weights sum to {total:.6g}, further from 1 than rounding explains")
    if (weights_K < 0).any():
        raise StoreError(
            f"the weight of {domains[int(weights_K.argmin())].name} is negative: "
            f"{weights_K.min():.6g}"
        )
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
    return Mixture.normalise([domain.name for domain in domains], weights_K), signals


def _record(
    store: Store, group: str, config: Mapping[str, Any], mixture: Mixture, after: Signals
) -> str:
    K = len(after.domains)
    before = Signals(after.domains, 0, 0.0, np.zeros(K, dtype=np.int64), Measured.absent(K))
    run = Run(run_key(config, 0), 0, config, Trajectory([before, after], [mixture]))
    return store.add(f"{group}/{config['row']}"[:200], run, group=group)

"""Files of runs → `Runs`.

Finds which columns are mixtures and which are metrics, and sets bad rows aside with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.core.errors import ConfigError, CuveeError, StoreError, nearest
from cuvee.core.mixture import check_names
from cuvee.fleet.store.foreign import rounded_mixture
from cuvee.fleet.store.tabular import BadRow, Rows, number, read_rows
from cuvee.recommend.table import Runs

_KEYS = ("index", "run", "run_id", "run_name", "id", "name")
_META = re.compile(r"(index|run|run_id|run_name|id|name|seed|step|unnamed.*|)", re.IGNORECASE)
_PHASE = re.compile(r"^(?P<before>.*?(?:phase|stage)[_-]?)(?P<phase>\d+)(?P<after>[_/.-]+).+$")
_ROUNDING = 0.02
_LARGEST = 1e12
_MOST_BAD = 0.1
_MOST = 0.9  # of the rows, in which columns hold shares if they are the mixture


@dataclass(frozen=True)
class Columns:
    """How a table names its columns.

    `mixture` is a pattern such as `train_{}` or `phase_{phase}_{}`; `metrics` are names or patterns
    such as `metric/{}_loss`; `shares` is the share of the token budget of each phase; `key` joins
    several files. What is left out is found from the values: mixtures are the columns of one prefix
    that sum to 1.
    """

    mixture: str | None = None
    metrics: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    key: str | None = None
    higher: tuple[str, ...] = ()


LAYOUTS = {
    "regmix": Columns("train_the_pile_{}", ("metric/the_pile_{}_val_loss",), key="index"),
    "olmix": Columns("{}", key="run"),
}
"""Published layouts by name.

RegMix: `train_mixture_*.csv` and `train_pile_loss_*.csv`. olmix: `ratios.csv` and `metrics.csv`.
"""

_FILES = {
    "regmix": ("train_mixture_*.csv", "train_pile_loss_*.csv"),
    "olmix": ("ratios.csv", "metrics.csv"),
}


def read_runs(sources: Sequence[Path], columns: Columns | None = None) -> Runs:
    """The runs in one file, in two files joined by a key (mixtures first), or in a folder of a
    published layout.

    Rows with bad shares, non-finite metrics or a key that another row has are set aside. Raises
    `StoreError` if a file cannot be read or more than a tenth of the rows are bad, `ConfigError` if
    no mixture or no metric is found.
    """
    files, columns = _files(sources, columns or Columns())
    tables = [_table(path) for path in files]
    key = _key(tables, columns.key)
    rows, bad = _joined(tables, key)
    where = _mixture_columns(tables[0], rows, columns, key)
    metrics = _metric_columns(tables, where, columns, key)
    runs, refused = _checked(rows, where, metrics, str(files[0]))
    bad += refused
    total = len(bad) + len(runs)
    if len(bad) > _MOST_BAD * max(1, total):
        raise StoreError(
            f"{len(bad)} of {total} rows are bad, the first {bad[0].file}:{bad[0].line}: "
            f"{bad[0].reason}"
        )
    names = tuple(where[0])
    P = len(where)
    return Runs(
        names=tuple(name for name, _, _ in runs),
        domains=names,
        metrics=tuple(metrics.values()),
        mixtures_NPK=np.array([mixture_PK for _, mixture_PK, _ in runs]).reshape(-1, P, len(names)),
        values_ND=np.array([values for _, _, values in runs]).reshape(-1, len(metrics)),
        shares_P=_shares(columns.shares, P),
        higher=frozenset(_named(columns.higher, metrics)),
        bad=tuple(bad),
        notes=("phases are taken to be equally long",) if P > 1 and not columns.shares else (),
    )


def with_higher(runs: Runs, wanted: Sequence[str]) -> Runs:
    """The same, where more of the metrics that these names and patterns mean is better."""
    found = _named(wanted, {name: name for name in runs.metrics})
    return replace(runs, higher=runs.higher | set(found.values()))


def _files(sources: Sequence[Path], columns: Columns) -> tuple[list[Path], Columns]:
    if len(sources) == 1 and sources[0].is_dir():
        for name, patterns in _FILES.items():
            found = [sorted(sources[0].glob(pattern)) for pattern in patterns]
            if all(found):
                return [paths[0] for paths in found], _filled(columns, LAYOUTS[name])
        known = "; ".join(f"{name}: {', '.join(files)}" for name, files in _FILES.items())
        raise ConfigError(f"{sources[0]} has no layout that is known ({known}): name its files")
    if len(sources) > 2:
        raise ConfigError(f"{len(sources)} files are given: one table, or mixtures and metrics")
    return list(sources), columns


def _filled(columns: Columns, layout: Columns) -> Columns:
    return Columns(
        mixture=columns.mixture or layout.mixture,
        metrics=columns.metrics or layout.metrics,
        shares=columns.shares,
        key=columns.key or layout.key,
        higher=columns.higher,
    )


def _table(path: Path) -> Rows:
    """Raises `ConfigError` for a file without columns, with a repeated one, or with other
    separators than commas.
    """
    table = read_rows(path)
    columns = table.columns
    if not columns:
        raise ConfigError(f"{path} has no columns: is it empty?")
    if any("\ufffd" in name for name in columns):
        raise ConfigError(f"{path} is not UTF-8: save it in that encoding")
    if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
        raise ConfigError(
            f"{path} has the one column {columns[0][:60]!r}: separate cells by commas, not by "
            f"{found[0]!r}"
        )
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(f"{path} has several columns {repeated[0]!r}: rename or drop all but one")
    return table


def _key(tables: Sequence[Rows], given: str | None) -> str | None:
    """The column that names a run in every file, if there is one."""
    if given is None:
        return _common_key(tables)
    for table in tables:
        if given not in table.columns:
            raise ConfigError(
                f"--key {given!r} is no column of {table.path}{nearest(given, table.columns)}"
            )
    return given


def _common_key(tables: Sequence[Rows]) -> str | None:
    shared = [key for key in _KEYS if all(key in table.columns for table in tables)]
    if len(tables) > 1 and not shared:
        raise ConfigError(
            f"{tables[0].path} and {tables[1].path} share no column {', '.join(_KEYS)}: name it "
            "with --key"
        )
    return shared[0] if shared else None


def _joined(
    tables: Sequence[Rows], key: str | None
) -> tuple[list[tuple[str, int, dict[str, Any]]], list[BadRow]]:
    """(name, line, cell by column) of each run that stands in every file, each once; and the rows
    that do not.
    """
    bad = [row for table in tables for row in table.bad]
    by_key: list[dict[str, tuple[int, Mapping[str, Any]]]] = []
    for table in tables:
        found: dict[str, tuple[int, Mapping[str, Any]]] = {}
        for line, row in table.rows:
            name = str(row.get(key)) if key else f"line {line}"
            if name in found:
                reason = f"the key {name!r} stands in line {found[name][0]} too"
                bad.append(BadRow(str(table.path), line, reason))
            else:
                found[name] = line, row
        by_key.append(found)
    rows = []
    for table, found in zip(tables, by_key, strict=True):
        for name, (line, _) in found.items():
            others = [other for other in by_key if name not in other]
            if others:
                bad.append(BadRow(str(table.path), line, f"the other file has no row {name!r}"))
            elif table is tables[0]:
                cells = {k: v for one in reversed(by_key) for k, v in one[name][1].items()}
                rows.append((name, line, cells))
    return rows, bad


def _mixture_columns(
    table: Rows,
    rows: Sequence[tuple[str, int, dict[str, Any]]],
    columns: Columns,
    key: str | None,
) -> list[dict[str, str]]:
    """For each phase, column by domain."""
    known = {name: name for name in table.columns}
    metrics = _named(columns.metrics, known, by_pattern=True, strict=False)
    free = [name for name in table.columns if name not in metrics and name != key]
    if columns.mixture is not None:
        return _by_pattern(table.path, free, columns.mixture)
    matches = [match for name in free if (match := _PHASE.match(name))]
    phased = {(match["before"], match["after"]) for match in matches}
    for before, after in sorted(phased):
        pattern = f"{before}{{phase}}{after}{{}}"
        found = _matches(free, pattern)
        if _share_of_rows(rows, found) >= _MOST:
            return _by_pattern(table.path, free, pattern)
        holding = round(_share_of_rows(rows, found) * len(rows))
        if len(found) > 1 and holding:
            raise ConfigError(
                f"{table.path}: the columns {pattern} sum to 1 in {holding} of {len(rows)} rows, "
                "in each phase: give every "
                "run all phases (the same mixture again where it does not change), or name the "
                "columns with --mixture"
            )
    for prefix in _prefixes(free):
        found = _matches(free, prefix + "{}")
        if found and len(found[0]) > 1 and _share_of_rows(rows, found) >= _MOST:
            return _by_pattern(table.path, free, prefix + "{}")
    raise ConfigError(
        f"{table.path}: no columns of one prefix sum to 1 (columns: "
        f"{', '.join(free[:8])}){_first_bad(rows, free)}: "
        "name them with --mixture 'PREFIX{}' or --mixture 'phase_{phase}_{}', or name the metrics "
        "with --metrics, so that "
        "all other columns are the mixture"
    )


def _first_bad(rows: Sequence[tuple[str, int, dict[str, Any]]], free: Sequence[str]) -> str:
    """Why the columns of the shortest prefix hold no shares, as a hint for the message."""
    prefix = next((prefix for prefix in _prefixes(free) if prefix), None)
    if prefix is None:
        return ""
    names = [name for name in free if name.startswith(prefix)]
    for _, line, cells in rows:
        try:
            shares = [number(cells.get(name)) or 0.0 for name in names]
        except ValueError as error:
            return f"; in line {line}, {error}"
        total = sum(shares)
        if min(shares) < 0:
            return f"; in line {line}, {names[shares.index(min(shares))]} is negative"
        if not abs(total - 1) <= _ROUNDING:
            percent = ": divide percent by 100" if abs(total - 100) <= 100 * _ROUNDING else ""
            return (
                f"; in line {line}, the {len(names)} columns {prefix}… sum to {total:.4g}{percent}"
            )
    return ""


def _prefixes(names: Sequence[str]) -> Iterator[str]:
    """Prefixes that end in a separator and begin two columns or more, shortest first, then none."""
    found = {name[: match.end()] for name in names for match in re.finditer(r"[_/.:-]", name)}
    shared = [prefix for prefix in found if sum(name.startswith(prefix) for name in names) > 1]
    yield from [*sorted(shared, key=lambda prefix: (len(prefix), prefix)), ""]


def _matches(names: Sequence[str], pattern: str) -> list[dict[str, str]]:
    """For each phase, column by what stands in place of {}."""
    expression = re.escape(pattern).replace(re.escape("{phase}"), r"(?P<phase>\d+)")
    matcher = re.compile(expression.replace(re.escape("{}"), "(?P<domain>.+)"))
    phases: dict[int, dict[str, str]] = {}
    for name in names:
        match = matcher.fullmatch(name)
        if match and not _META.fullmatch(name):
            phase = int(match["phase"]) if "{phase}" in pattern else 0
            phases.setdefault(phase, {})[match["domain"]] = name
    return [phases[phase] for phase in sorted(phases)]


def _by_pattern(path: Path, names: Sequence[str], pattern: str) -> list[dict[str, str]]:
    if pattern.count("{}") != 1:
        raise ConfigError(f"--mixture {pattern!r} needs one {{}} where the domain's name stands")
    found = _matches(names, pattern)
    if not found:
        raise ConfigError(
            f"{path}: no column is like {pattern!r} (columns: {', '.join(names[:8])})"
        )
    for each in found:
        if odd := sorted(set(each) ^ set(found[0])):
            raise ConfigError(f"{path}: a phase differs in domains: {', '.join(odd)}")
    domains = {raw: _as_name(raw) for raw in found[0]}
    for raw, domain in domains.items():
        column = found[0][raw]
        if not domain:
            raise ConfigError(
                f"{path}: the column {column!r} gives no domain's name: rename it with letters "
                "from A to Z, digits or ._-"
            )
        same = [found[0][one] for one, other in domains.items() if other == domain]
        if len(same) > 1:
            raise ConfigError(
                f"{path}: {' and '.join(map(repr, same))} both mean {domain!r}: rename one"
            )
    check_names(list(domains.values()))
    return [{domains[raw]: column for raw, column in each.items()} for each in found]


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", ".", text).strip(".")[:64]


def _share_of_rows(
    rows: Sequence[tuple[str, int, dict[str, Any]]], where: Sequence[Mapping[str, str]]
) -> float:
    """The share of rows that hold a mixture in these columns in each phase.

    It is 0 if phases differ in domains.
    """
    if not rows or any(set(phase) != set(where[0]) for phase in where):
        return 0.0

    def holds(cells: Mapping[str, Any]) -> bool:
        try:
            for phase in where:
                shares = [number(cells[column]) for column in phase.values()]
                rounded_mixture({f"d{k}": share for k, share in enumerate(shares)}, _ROUNDING)
        except (CuveeError, ValueError):
            return False
        return True

    return sum(holds(cells) for _, _, cells in rows) / len(rows)


def _metric_columns(
    tables: Sequence[Rows], where: Sequence[Mapping[str, str]], columns: Columns, key: str | None
) -> dict[str, str]:
    """Metric's name by column."""
    taken = {column for phase in where for column in phase.values()} | {key}
    free = [name for table in tables for name in table.columns if name not in taken]
    if columns.metrics:
        return _named(columns.metrics, dict(zip(free, free, strict=True)), by_pattern=True)
    rows = tables[-1].rows
    found = {name: name for name in free if not _META.fullmatch(name) and _numeric(rows, name)}
    if not found:
        raise ConfigError(f"{tables[-1].path}: no column is a metric: name them with --metrics")
    return found


def _named(
    wanted: Sequence[str], known: Mapping[str, str], by_pattern: bool = False, strict: bool = True
) -> dict[str, str]:
    """The known columns, or metrics, that names and patterns mean.

    If `strict`, raises `ConfigError` for one that means none.
    """
    found: dict[str, str] = {}
    for name in wanted:
        means_any = False
        before, is_pattern, after = name.partition("{}")
        for column, called in known.items():
            inside = len(column) - len(before) - len(after)
            if is_pattern and inside > 0 and column.startswith(before) and column.endswith(after):
                found[column] = column[len(before) : len(before) + inside]
                means_any = True
            elif name in (column, called):
                found[column if by_pattern else called] = called
                means_any = True
        if strict and not means_any:
            raise ConfigError(f"no column is like {name!r}; there are {', '.join(list(known)[:8])}")
    return found


def _numeric(rows: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> bool:
    """Whether most filled cells of the column are numbers."""
    numbers = others = 0
    for _, row in rows:
        try:
            numbers += number(row.get(name)) is not None
        except ValueError:
            others += 1
    return numbers > others


def _checked(
    rows: Sequence[tuple[str, int, dict[str, Any]]],
    where: Sequence[Mapping[str, str]],
    metrics: Mapping[str, str],
    file: str,
) -> tuple[list[tuple[str, Any, list[float]]], list[BadRow]]:
    good: dict[bytes, tuple[str, Any, list[float]]] = {}
    bad = []
    names = list(where[0])
    for name, line, cells in rows:
        try:
            mixture_PK = [
                rounded_mixture(
                    {k: number(cells.get(phase[k])) for k in names}, _ROUNDING
                ).weights_K
                for phase in where
            ]
            values = [_value(cells.get(column), called) for column, called in metrics.items()]
            if np.isnan(values).all():
                raise StoreError("the row has no metric at all")
            content = np.concatenate([*mixture_PK, values]).tobytes()
            if content in good:
                raise StoreError(f"repeats every number of row {good[content][0]!r}: one run twice")
            good[content] = name, mixture_PK, values
        except (CuveeError, ValueError) as error:
            bad.append(BadRow(file, line, str(error)[:200]))
    return list(good.values()), bad


def _value(cell: Any, name: str) -> float:
    try:
        value = number(cell)
    except ValueError:
        raise StoreError(
            f"{name} is {str(cell)[:40]!r}, which is not a number: leave the cell empty if it is "
            "missing"
        ) from None
    if value is None or value != value:
        return float("nan")
    if abs(value) > _LARGEST:
        raise StoreError(f"{name} is {value:.6g}: no measurement")
    return value


def _shares(given: Sequence[float], phases: int) -> Any:
    if not given:
        return np.full(phases, 1 / phases)
    shares_P = np.asarray(given, dtype=np.float64)
    if len(shares_P) != phases or not (shares_P > 0).all() or abs(shares_P.sum() - 1) > 1e-6:
        raise ConfigError(
            f"--phase is {', '.join(f'{share:g}' for share in given)}: give {phases} shares above "
            "0 that sum to 1"
        )
    return shares_P

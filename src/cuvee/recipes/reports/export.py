"""Exports runs: lossless JSON, or a Parquet table with one row per run, interval and domain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cuvee.core.errors import ConfigError
from cuvee.core.files import write_atomic
from cuvee.core.protocols import Metrics
from cuvee.core.trajectory import Run
from cuvee.report.summary import method_label


def export(runs: Sequence[tuple[Run, Sequence[Metrics]]], path: Path) -> None:
    """Write runs and the metrics of their policies to `path`, which ends in .json or .parquet.

    Raises `ConfigError` for another suffix.
    """
    if path.suffix not in (".json", ".parquet"):
        raise ConfigError(f"cannot tell the format of {path}: end its name in .json or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_atomic(
            path, json.dumps([_document(run, metrics) for run, metrics in runs], allow_nan=False)
        )
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist([row for run, _ in runs for row in _rows(run)], _schema(pa)), sink
    )
    write_atomic(path, sink.getvalue().to_pybytes())


def _document(run: Run, metrics: Sequence[Metrics]) -> dict[str, Any]:
    return {
        "id": run.id,
        "seed": run.seed,
        "config": dict(run.config),
        "cost": {"tokens": run.cost.tokens, "flops": run.cost.flops, "seconds": run.cost.seconds},
        "trajectory": run.trajectory.to_json(),
        "metrics": list(metrics),
    }


def _schema(pa: Any) -> Any:
    columns = {
        "run": pa.string(),
        "method": pa.string(),
        "seed": pa.int64(),
        "interval": pa.int32(),
        "step": pa.int64(),
    }
    measures = {
        "tokens": pa.int64(),
        "weight": pa.float64(),
        "loss": pa.float64(),
        "valid_loss": pa.float64(),
        "test_loss": pa.float64(),
    }
    return pa.schema({**columns, "domain": pa.string(), "role": pa.string(), **measures})


def _rows(run: Run) -> list[dict[str, Any]]:
    of_run = {"run": run.id, "method": method_label(run.config), "seed": run.seed}
    return [{**of_run, **row} for row in run.trajectory.rows()]

"""MixMin's mixture (`methods.mixmin`) from a table of model outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.fleet.store.tabular import number, read_rows
from cuvee.methods.mixmin import mixture_of_outputs


def mixmin_of(path: Path, domains: tuple[str, ...]) -> Mixture:
    """Return the mixture for the table at `path`.

    The table has a row for each target example and a column for each domain. An entry is the
    log-probability, in nats, that the model trained on this domain gives to the example. Raises
    `ConfigError` if a domain is missing or an entry is not a log-probability.
    """
    rows = read_rows(path)
    missing = [name for name in domains if name not in rows.columns]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing[:5])}: one model per domain")
    found = []
    for line, row in rows.rows:
        try:
            found.append([number(row.get(name)) for name in domains])
        except ValueError as error:
            raise ConfigError(f"{path}, line {line}: {error}") from error
    found_MK = np.array(found, float)
    if not len(found_MK) or not np.isfinite(found_MK).all() or (found_MK > 0).any():
        raise ConfigError(f"{path} needs log-probabilities: finite numbers of 0 or less")
    values_M = np.full(len(found_MK), 1 / len(found_MK))
    return Mixture.normalise(domains, mixture_of_outputs(found_MK, values_M))

"""The objective of a run: which domains' validation losses are to fall, and their weights.

    objective: {law: 2, medicine: 1}      in a configuration; every method reads the same

Without an objective, all domains that are validated count alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.trajectory import Trajectory


def objective_K(so_far: Trajectory, objective: Mapping[str, float] | None) -> FloatArray:
    """Return the weights v (K,) of the domains in the objective of a run.

    Domains that `objective` does not name have weight 0. Without it, the weight is 1 for domains
    with a validation loss, and 1 for all domains if none has one; a domain that joined later has
    weight 1. Raises `PolicyError` for a name that the run does not have, and for weights that are
    negative or all 0.
    """
    names = so_far.names
    if objective:
        return _given(names, objective)
    first = so_far.at(0)
    validated = first.probes.get("valid_loss")
    if validated is None or not validated.present.any():
        return np.ones(len(names))
    known = dict(zip(first.names, validated.present.tolist(), strict=True))
    return np.array([float(known.get(name, True)) for name in names])


def _given(names: tuple[str, ...], objective: Mapping[str, float]) -> FloatArray:
    if unknown := sorted(set(objective) - set(names)):
        raise PolicyError(
            f"objective names {', '.join(unknown)}, but the run has {', '.join(names)}"
        )
    weights_K = np.array([objective.get(name, 0.0) for name in names], dtype=np.float64)
    if weights_K.min() < 0 or not 0 < weights_K.sum() < np.inf:
        raise PolicyError(
            f"objective is {dict(objective)}: weights must be finite, not negative and not all 0"
        )
    return weights_K

"""`Feedback`: the evaluation score of Data Mixing Agent, one number per timestep.

Source: arXiv 2507.15640.

    e_t = λ (g_t − g_0) / |g_0| + (1 − λ) (h_t − h_0) / |h_0|

g and h are mean log-probabilities, in nats, of the reference answers of a general and a target set
of questions. The probe "evaluation" measures them (see `cuvee.probes.evaluation_set`). Each is
relative to the score of the base model, that is the model before the first step. So e_0 = 0 and
higher is better. e_t = 0.05 means that answers need 5 % fewer nats than under the base model. The
reward of interval t is e_{t+1} − e_t.

The paper also standardises by the base model but does not say how. We use a ratio: it needs no
second model and no variance, and a field with three times the nats of the other does not count
three times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import PolicyError
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory

FIELDS = ("general", "target")
"""The fields of the probe "evaluation", in this order."""


def question_files(evaluation: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
    """Return the question files by field, in the order of `FIELDS`. None stays None.

    Raises `PolicyError` if the fields are not exactly these.
    """
    if evaluation is None:
        return None
    if set(evaluation) != set(FIELDS):
        raise PolicyError(
            f"evaluation names the fields {', '.join(evaluation)}: it needs {' and '.join(FIELDS)}"
        )
    return {name: [str(file) for file in evaluation[name]] for name in FIELDS}


@dataclass(frozen=True)
class Feedback:
    """Computes e_t.

    `weight` is λ, the weight of the general field. The target field has the weight 1 − λ.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise PolicyError(
                f"the weight of general questions is {self.weight}: it must be between 0 and 1"
            )

    def __call__(self, trajectory: Trajectory) -> Measured:
        """Return e_t for all timesteps, (T+1,).

        It is absent where nothing was evaluated, and everywhere if the base model was not
        evaluated.
        """
        first = trajectory.at(0)
        found = [self.at(first, now) for now in trajectory.signals]
        return Measured(
            np.array([value or 0.0 for value in found]),
            np.array([value is not None for value in found]),
        )

    def at(self, first: Signals, now: Signals) -> float | None:
        """Return e of the timestep `now` in a run that began with `first`.

        Returns None if one of them was not evaluated, or a base score is 0. Raises `PolicyError` if
        the evaluation does not have exactly the two fields.
        """
        base = _scores(first)
        score = _scores(now)
        if base is None or score is None or not base.all():
            return None  # a base score of 0 (certainty of every answer) has no ratio
        general, target = (score - base) / np.abs(base)
        return float(self.weight * general + (1.0 - self.weight) * target)


def _scores(signals: Signals) -> FloatArray | None:
    evaluation = signals.probes.get("evaluation")
    if evaluation is None:
        return None
    if evaluation.shape != (len(FIELDS),):
        raise PolicyError(
            f"feedback needs two fields, {' and '.join(FIELDS)}, in this order; "
            f"got shape {evaluation.shape}"
        )
    return evaluation.values if evaluation.present.all() else None

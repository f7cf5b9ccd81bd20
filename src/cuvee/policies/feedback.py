"""`Feedback`: the evaluation environment of Data Mixing Agent (arXiv 2507.15640), one number for each moment of a run.

    e_t = λ (g_t − g_0) / |g_0| + (1 − λ) (h_t − h_0) / |h_0|

g and h are the mean log-probabilities, in nats, of the reference answers of a general and of a target set of questions, as the
probe "evaluation" measures them (see `cuvee.probes.evaluation_set`). Each is standardised by the score of the base model, which
is the model before the first step; so e_0 = 0, higher is better, and 0.05 says that answers cost 5 % fewer nats than the base
model needed. The reward of interval t is e_{t+1} − e_t.

The paper standardises by the base model too but does not say how. A ratio is ours: it needs no second model and no variance, and
a field that starts with three times the nats of the other does not count three times as much.
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
"""The fields of "evaluation", in this order."""


def question_files(evaluation: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
    """Files by field in the order of `FIELDS`; None stays None. Raises `PolicyError` if there are not exactly these fields."""
    if evaluation is None:
        return None
    if set(evaluation) != set(FIELDS):
        raise PolicyError(
            f"evaluation names the fields {', '.join(evaluation)}: it needs {' and '.join(FIELDS)}"
        )
    return {name: [str(file) for file in evaluation[name]] for name in FIELDS}


@dataclass(frozen=True)
class Feedback:
    """`weight` is λ, what the general field counts; the target field counts the rest."""

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise PolicyError(
                f"the weight of general questions is {self.weight}: it must lie between 0 and 1"
            )

    def __call__(self, trajectory: Trajectory) -> Measured:
        """(T+1,) e_t; absent where nothing was evaluated, and everywhere if the base model was not."""
        first = trajectory.signals[0]
        found = [self.at(first, now) for now in trajectory.signals]
        return Measured(
            np.array([value or 0.0 for value in found]),
            np.array([value is not None for value in found]),
        )

    def at(self, first: Signals, now: Signals) -> float | None:
        """e of the moment `now` in a run that began with `first`; None if either was not evaluated.

        Raises `PolicyError` if something else than the two fields was evaluated.
        """
        base, score = _scores(first), _scores(now)
        if base is None or score is None or not base.all():
            return None  # a base model that is certain of every answer leaves nothing to be better than
        general, target = (score - base) / np.abs(base)
        return float(self.weight * general + (1.0 - self.weight) * target)


def _scores(signals: Signals) -> FloatArray | None:
    evaluation = signals.probes.get("evaluation")
    if evaluation is None:
        return None
    if evaluation.shape != (len(FIELDS),):
        raise PolicyError(
            f"feedback needs two fields, {' and '.join(FIELDS)}, in this order; got {evaluation.shape}"
        )
    return evaluation.values if evaluation.present.all() else None

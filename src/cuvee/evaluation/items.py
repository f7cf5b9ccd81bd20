"""Results of an evaluation: figures of each question, and their means with intervals.

    score.means()["accuracy_per_byte"]            # Estimate with a 95 % interval over questions
    paired(ours, theirs, "accuracy_per_byte")     # the same questions, answered by two models

The figures of a question, by name:

    accuracy_summed      1 if the right choice has the highest log-probability
    accuracy_per_byte    the same, log-probability divided by the choice's UTF-8 bytes
    accuracy_per_token   the same, divided by the choice's tokens
    exact_match          1 if the generated line equals the short answer
    logprob_summed       log-probability of the reference answer, in nats
    logprob_per_byte     the same per UTF-8 byte
    logprob_per_token    the same per token
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from cuvee.evaluation.statistics import Estimate, bootstrap_mean

Kind = Literal["choices", "short", "reference", "published"]
RESAMPLES = 1000


@dataclass(frozen=True)
class Item:
    """The figures of one question. `id` is the same for every model."""

    id: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class TaskScore:
    """The result of a model on one task."""

    task: str
    kind: Kind
    source: Mapping[str, Any]
    """What was asked and how: file, sha256, limit, and the version of the harness."""
    items: tuple[Item, ...]
    left_out: int = 0
    """Questions that do not fit into the model's context."""

    @property
    def digest(self) -> str:
        """Equal for results on the same questions under the same harness. Paths do not count."""
        asked = {key: value for key, value in self.source.items() if key != "file"}
        text = json.dumps([self.task, asked, [item.id for item in self.items]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the figures."""
        return tuple(self.items[0].figures)

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the questions."""
        return float(np.mean([item.figures[name] for item in self.items]))

    def means(self) -> dict[str, Estimate]:
        """Return the mean of each figure, with a 95 % bootstrap interval over questions."""
        return {
            name: bootstrap_mean([item.figures[name] for item in self.items], resamples=RESAMPLES)
            for name in self.names
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, which `from_json` reads."""
        return {
            "task": self.task,
            "kind": self.kind,
            "source": dict(self.source),
            "items": [[item.id, dict(item.figures)] for item in self.items],
            "left_out": self.left_out,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the result that `to_json` gave."""
        items = tuple(Item(one, figures) for one, figures in record["items"])
        return cls(record["task"], record["kind"], record["source"], items, record["left_out"])


def paired(ours: Sequence[TaskScore], theirs: Sequence[TaskScore], name: str) -> Estimate | None:
    """Return the mean of ours − theirs over the questions that both answered, or None.

    Each side is one model per seed; a question's figure is its mean over them. The interval is a
    bootstrap over questions, so it does not cover differences between seeds.
    """
    left = _by_item(ours, name)
    right = _by_item(theirs, name)
    shared = sorted(left.keys() & right.keys())
    if not shared:
        return None
    return bootstrap_mean([left[one] - right[one] for one in shared], resamples=RESAMPLES)


def _by_item(scores: Sequence[TaskScore], name: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for score in scores:
        for item in score.items:
            if name in item.figures:
                found.setdefault(item.id, []).append(item.figures[name])
    return {one: float(np.mean(values)) for one, values in found.items()}

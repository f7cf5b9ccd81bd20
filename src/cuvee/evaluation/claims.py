"""Claims that are made before the runs and answered after them, such as `ac_odm < even`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cuvee.core.errors import ConfigError, nearest
from cuvee.core.mixture import NAME_PATTERN
from cuvee.evaluation.statistics import Levels
from cuvee.evaluation.verdicts import Verdict, compare_paired, corrected

_NAME = NAME_PATTERN.pattern
_CLAIM = re.compile(rf"\s*({_NAME})\s*<\s*({_NAME})(?:\s+by\s+(\d+(?:\.\d*)?|\.\d+))?\s*")
Answer = Literal["confirmed", "refuted", "open"]


@dataclass(frozen=True)
class Claim:
    """`left` ends with a lower loss than `right`, by more than `by` nats per token."""

    left: str
    right: str
    by: float = 0.0

    def __str__(self) -> str:
        margin = np.format_float_positional(self.by, trim="-")  # no exponent: it is read again
        return f"{self.left} < {self.right}" + (f" by {margin}" if self.by else "")


@dataclass(frozen=True)
class Answered:
    """A claim, its verdict, and when it was registered.

    `done` of `total` runs were finished at that time: a claim made before the runs has `done` 0.
    `credited` is False if something else than its policy steered a run of the method that the claim
    favours. Then the claim is never confirmed.
    """

    claim: Claim
    verdict: Verdict | None
    done: int
    total: int
    registered: str
    credited: bool = True

    @property
    def answer(self) -> Answer:
        """Whether the claim was confirmed: the interval and the corrected test must exclude `by`."""
        if self.verdict is None:
            return "open"
        answers: dict[str, Answer] = {"better": "confirmed", "worse": "refuted"}
        answer = answers.get(self.verdict.outcome, "open")
        return answer if self.credited or answer != "confirmed" else "open"


def parse_claim(text: str, labels: Collection[str]) -> Claim:
    """Read `A < B` or `A < B by 0.01`. Raises `ConfigError` for other text or unknown labels.

    Example:

        parse_claim("ac_odm < even by 0.01", ["even", "ac_odm"])
    """
    found = _CLAIM.fullmatch(text)
    if not found:
        raise ConfigError(
            f"the claim {text!r} cannot be read: write METHOD < METHOD, as in "
            "'ac_odm < even', or 'ac_odm < even by 0.01' in nats per token"
        )
    left, right = found[1], found[2]
    for label in (left, right):
        if label not in labels:
            raise ConfigError(
                f"the claim {text!r} names {label!r}, which is not compared{nearest(label, labels)}"
            )
    if left == right:
        raise ConfigError(f"the claim {text!r} compares {left} with itself")
    return Claim(left, right, float(found[3] or 0))


def answer_claims(
    claims: Sequence[Answered],
    losses: Callable[[str], Mapping[int, float]],
    levels: Mapping[int, Levels] | None = None,
) -> list[Answered]:
    """Return the claims with verdicts, corrected for their number.

    `losses` returns the final losses of a method by seed. A claim with `by` is about the difference
    plus `by`. `levels` are the seeds of the parts of a run, by seed, if those are crossed.
    """
    verdicts = []
    for one in claims:
        theirs = {seed: loss - one.claim.by for seed, loss in losses(one.claim.right).items()}
        verdicts.append(compare_paired(losses(one.claim.left), theirs, 0.0, levels))
    known = iter(corrected([verdict for verdict in verdicts if verdict is not None]))
    return [
        replace(one, verdict=None if verdict is None else next(known))
        for one, verdict in zip(claims, verdicts, strict=True)
    ]

"""`Domain`: the facts about one named pool of tokens that are known before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cuvee.core.arrays import FloatArray

Role = Literal["source", "target"]
Split = Literal["train", "valid", "test"]
"""Models train on "train" and are validated on "valid".

Methods may read both. A final model is tested on "test".
"""
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Domain:
    """The facts about one domain that are known before training.

    `tokens` is the number of training tokens available. `role` is "target" for a domain that the
    run is meant to learn, and "source" for one that it should not forget. `scores` holds constants
    of the domain, such as `{"mtld": 71.3}` (lexical diversity).

    >>> Domain("maths", tokens=2_000_000, role="target").is_target
    True
    """

    name: str
    tokens: int
    role: Role = "source"
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_target(self) -> bool:
        return self.role == "target"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens": self.tokens,
            "role": self.role,
            "scores": dict(self.scores),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Domain:
        return cls(
            name=data["name"], tokens=data["tokens"], role=data["role"], scores=dict(data["scores"])
        )


def natural_K(domains: Sequence[Domain]) -> FloatArray:
    """Return (K,) each domain's share of all available tokens.

    Training under this mixture reads every domain at the same rate.
    """
    total = sum(domain.tokens for domain in domains)
    return np.array([domain.tokens / total for domain in domains])


def available_K(domains: Sequence[Domain]) -> FloatArray:
    """Return (K,) the training tokens of each domain."""
    return np.array([float(domain.tokens) for domain in domains])


def divided_shares(
    domains: tuple[Domain, ...], target: float, flatness: float = 0.0
) -> dict[str, float]:
    """Return shares by name; target domains together get `target`, source domains the rest.

    Within a role, a domain's share is in proportion to tokens ** (1 − `flatness`): 0 means in
    proportion to the tokens, 1 means equal shares. If one role has no domain with tokens, the other
    role gets everything.
    """
    sizes = {
        domain.name: domain.tokens ** (1 - flatness) if domain.tokens else 0.0 for domain in domains
    }
    totals = {
        role: sum(sizes[domain.name] for domain in domains if domain.role == role)
        for role in ("source", "target")
    }
    parts = (
        {"source": 1 - target, "target": target}
        if all(totals.values())
        else dict.fromkeys(totals, 1.0)
    )
    return {
        domain.name: parts[domain.role] * sizes[domain.name] / (totals[domain.role] or 1.0)
        for domain in domains
    }

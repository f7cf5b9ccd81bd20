"""`Domain`: what is known of one named pool of tokens before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["source", "target"]


Split = Literal["train", "valid"]


@dataclass(frozen=True)
class Domain:
    """What is known of one domain before training.

    `tokens` is the number of training tokens available, `target` says that the run is meant to learn this domain rather
    than not to forget it, `scores` holds per-domain constants such as `{"mtld": 71.3}` (lexical diversity).
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


def natural_shares(domains: tuple[Domain, ...]) -> dict[str, float]:
    """Each domain's share of all tokens available: the mixture that reads everything once."""
    total = sum(domain.tokens for domain in domains)
    return {domain.name: domain.tokens / total for domain in domains}


def divided_shares(
    domains: tuple[Domain, ...], target: float, flatness: float = 0.0
) -> dict[str, float]:
    """The mixture that gives `target` to target domains and the rest to source domains, in each role by tokens to the power
    1 − `flatness`: 0 is in proportion to them, 1 all alike. Where a role has no domains with tokens, the other has it all."""
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

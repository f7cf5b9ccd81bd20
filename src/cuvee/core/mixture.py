"""`Mixture`: a point on the simplex over named domains."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, natural_K
from cuvee.core.errors import MixtureError, nearest

NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SUM_TOLERANCE = 1e-9


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return `names` as a tuple.

    Raises `MixtureError` if there are none, or if one is repeated or outside
    `[A-Za-z0-9._-]{1,64}`.
    """
    if not names:
        raise MixtureError("a mixture needs at least one domain, got none")
    for name in names:
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise MixtureError(
                f"domain name {name!r} is not allowed: use 1 to 64 letters, digits, dots, "
                "underscores or hyphens"
            )
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise MixtureError(f"domain names must be unique, got {', '.join(repeated)} more than once")
    return tuple(names)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Immutable weights over named domains: non-negative, finite, summing to 1 within 1e-9.

    The constructor keeps `weights_K` (K,) bit for bit, so a saved and loaded mixture is identical.
    Use `Mixture.normalise` for weights that do not sum to 1 yet. Raises `MixtureError`.

    >>> mixture = Mixture.of({"web": 0.7, "code": 0.3})
    >>> mixture["web"]
    0.7
    >>> Mixture.uniform(["web", "code"])
    Mixture(web=0.5, code=0.5)
    """

    names: tuple[str, ...]
    weights_K: FloatArray

    def __post_init__(self) -> None:
        names = check_names(self.names)
        weights_K = np.array(
            self.weights_K, dtype=np.float64
        )  # a copy: the caller may change its own
        if weights_K.shape != (len(names),):
            raise MixtureError(
                f"{len(names)} domains need {len(names)} weights, got shape {weights_K.shape}"
            )
        if not np.isfinite(weights_K).all():
            bad = int(np.flatnonzero(~np.isfinite(weights_K))[0])
            raise MixtureError(
                f"the weight of {names[bad]} is {weights_K[bad]}: weights must be finite"
            )
        if (weights_K < 0).any():
            bad = int(np.argmin(weights_K))
            raise MixtureError(
                f"the weight of {names[bad]} is {weights_K[bad]:.6g}: weights must not be negative"
            )
        total = float(weights_K.sum())
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise MixtureError(
                f"weights sum to {total:.12g}, not 1: divide by the sum, or use Mixture.normalise"
            )
        weights_K.setflags(write=False)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights_K", weights_K)

    @classmethod
    def normalise(cls, names: Sequence[str], weights_K: npt.ArrayLike) -> Mixture:
        """Return the mixture in proportion to the non-negative `weights_K` (K,).

        Raises `MixtureError` if all of them are zero, or if one is negative or not finite.
        """
        raw_K = np.asarray(weights_K, dtype=np.float64)
        largest = float(raw_K.max(initial=0.0)) if np.isfinite(raw_K).all() else 1.0
        if largest <= 0:
            raise MixtureError(
                "every weight is zero: at least one domain must have a positive weight"
            )
        scaled_K = raw_K / largest  # keeps the sum from overflowing or underflowing
        return cls(tuple(names), scaled_K / scaled_K.sum())

    @classmethod
    def uniform(cls, names: Sequence[str]) -> Mixture:
        """Return the mixture that gives each name the same weight."""
        return cls.normalise(names, np.ones(len(names)))

    @classmethod
    def natural(cls, domains: Sequence[Domain]) -> Mixture:
        """Each domain in proportion to its available tokens."""
        return cls(tuple(domain.name for domain in domains), natural_K(domains))

    @classmethod
    def of(cls, shares: Mapping[str, float] | Mixture) -> Mixture:
        """Return the mixture with these shares by name, which must sum to 1; a mixture as it is."""
        if isinstance(shares, Mixture):
            return shares
        return cls(tuple(shares), np.array(list(shares.values()), dtype=np.float64))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> float:
        try:
            return float(self.weights_K[self.names.index(name)])
        except ValueError:
            raise MixtureError(
                f"no domain {name!r} in this mixture; it has {', '.join(self.names)}"
            ) from None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mixture)
            and self.names == other.names
            and self.weights_K.tobytes() == other.weights_K.tobytes()
        )

    def __hash__(self) -> int:
        return hash((self.names, self.weights_K.tobytes()))

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{name}={weight:.4g}" for name, weight in zip(self.names, self.weights_K, strict=True)
        )
        return f"Mixture({shares})"

    def as_dict(self) -> dict[str, float]:
        """Return the weights by domain name."""
        return dict(zip(self.names, self.weights_K.tolist(), strict=True))

    def to(self, names: Sequence[str]) -> Mixture:
        """Return the same weights over `names`; names that are new get weight 0.

        Raises `MixtureError` if a domain with positive weight is not in `names`.
        """
        if self.names == tuple(names):
            return self
        shares = self.as_dict()
        known = set(names)
        lost = [name for name, weight in shares.items() if weight > 0 and name not in known]
        if lost:
            raise MixtureError(
                f"{', '.join(lost)} has weight but is not among the domains"
                f"{nearest(lost[0], names)}"
            )
        return Mixture(tuple(names), np.array([shares.get(name, 0.0) for name in names]))

    def total_variation(self, other: Mixture) -> float:
        """Return ½ Σ|a − b|, between 0 and 1: the share of the batch by which two mixtures differ.

        Raises `MixtureError` if the two mixtures have different domains or a different order.
        """
        if self.names != other.names:
            raise MixtureError(
                "total variation needs two mixtures over the same domains in the same order"
            )
        return float(0.5 * np.abs(self.weights_K - other.weights_K).sum())

    def entropy(self) -> float:
        """Return −Σ α ln α in nats: 0 for a single domain, ln K for the uniform mixture."""
        positive = self.weights_K[self.weights_K > 0]
        return float(-(positive * np.log(positive)).sum())

    def digest(self) -> str:
        """Return the sha256 of the names and the exact bits of the weights.

        Ranks compare it to check that they train under the same mixture.
        """
        sha = hashlib.sha256("\0".join(self.names).encode())
        sha.update(self.weights_K.astype("<f8").tobytes())
        return sha.hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "weights": self.weights_K.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Mixture:
        return cls(tuple(data["names"]), np.array(data["weights"], dtype=np.float64))

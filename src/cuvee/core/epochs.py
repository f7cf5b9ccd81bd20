"""Epoch caps: how many tokens of each domain a run may read, and how many it has read.

    C_k = epochs_k · n_k        the tokens that may be read of a domain with n_k tokens
    c_k = min(1, L_k / N)       its largest share of the next N tokens, if L_k of C_k are left

All users of epoch caps share this arithmetic. The stream applies caps to whole rows
(`data.stream.domain_state`), the guard to the next interval (`policies.guard.epochs`), RegMix and
`recommend.choose` to a whole target run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cuvee.core.arrays import FloatArray
from cuvee.core.errors import ConfigError
from cuvee.core.signals import Signals

EpochCaps = float | Mapping[str, float] | None
"""How often a domain may be read in a run: for all domains, by name, or without limit.

Domains that a mapping does not name have no cap.
"""


def epochs_K(caps: EpochCaps, names: Sequence[str]) -> FloatArray:
    """Return (K,) how often each domain may be read, infinite where there is no cap.

    Raises `ConfigError` for a cap that is not above 0, or for a domain that is not in `names`.
    """
    by_name = caps if isinstance(caps, Mapping) else {}
    known = set(names)
    if unknown := [name for name in by_name if name not in known]:
        raise ConfigError(
            f"epoch cap for unknown domain {', '.join(unknown)}: choose from {', '.join(names)}"
        )
    found_K = caps_K(caps, names)
    for name, epochs in zip(names, found_K.tolist(), strict=True):
        check_epochs(f"the epoch cap of {name}", epochs)
    return found_K


def caps_K(caps: EpochCaps, names: Sequence[str]) -> FloatArray:
    """Return the same without checks, for caps that were checked when the run was configured.

    Domains may have been retired since.
    """
    if caps is None or isinstance(caps, Mapping):
        by_name = caps or {}
        return np.array([float(by_name.get(name, np.inf)) for name in names])
    return np.full(len(names), float(caps))


def check_epochs(what: str, epochs: float) -> None:
    """Raise `ConfigError`, which calls the cap `what`, unless it is above 0."""
    if not epochs > 0:  # also refuses NaN
        raise ConfigError(
            f"{what} is {epochs}: it must be above 0; to leave a domain out, use a weight or "
            "a ceiling of 0"
        )


def allowed(epochs: npt.ArrayLike, available: npt.ArrayLike) -> FloatArray:
    """Return how much of each domain may be read, in the unit of `available`.

    Infinite where there is no cap. Arguments are scalars or arrays that broadcast.
    """
    epochs, available = np.asarray(epochs, np.float64), np.asarray(available, np.float64)
    capped = np.isfinite(epochs)
    return np.where(capped, np.where(capped, epochs, 0.0) * available, np.inf)


def largest_shares(left_K: FloatArray, tokens: float) -> FloatArray:
    """Return (K,) the largest share of the next `tokens` tokens that each domain may have."""
    return np.minimum(1.0, left_K / tokens)


class TokensRead:
    """Counts the tokens of each domain that a run has read.

    Sums are kept by name, so domains may be added and retired. O(K) per interval, and one array
    operation while the domains stay the same.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._read_K = np.zeros(0)
        self._gone: dict[str, float] = {}
        """Of domains that are not in `_names`."""

    def copy(self) -> TokensRead:
        """Return a count that continues on its own."""
        copy = TokensRead()
        copy._names = self._names
        copy._read_K = self._read_K.copy()
        copy._gone = dict(self._gone)
        return copy

    def add(self, signals: Signals) -> None:
        """Add one interval."""
        if signals.names != self._names:
            known = self.by_name()
            self._names = signals.names
            self._read_K = np.array([known.pop(name, 0.0) for name in signals.names])
            self._gone = known
        self._read_K += signals.tokens_K

    def by_name(self) -> dict[str, float]:
        """Return the tokens that were read of each domain, retired ones included."""
        return {**self._gone, **dict(zip(self._names, self._read_K.tolist(), strict=True))}

    def of(self, names: Sequence[str]) -> FloatArray:
        """Return (K,) the tokens that were read of the named domains."""
        if self._names == tuple(names):
            return self._read_K.copy()
        known = self.by_name()
        return np.array([known.get(name, 0.0) for name in names])

    @property
    def total(self) -> float:
        """The tokens of all domains, those that have been retired included."""
        return float(self._read_K.sum()) + sum(self._gone.values())

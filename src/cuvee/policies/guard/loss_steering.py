"""`LossSteering`: the next mixture of a training loop of one's own, from a policy and its losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError, PolicyError, SignalError, nearest
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Domains, Policy
from cuvee.core.registry import policy_without_proxies
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.guard.guard import Guard, Limits


class LossSteering:
    """Decides the mixture of a loop that reports its losses after each interval.

    `policy` is an object, or the name of a method that needs no proxy runs. `domains` is a corpus,
    or the number of training tokens of each domain by name. `tokens` is the budget of the run. The
    guard keeps every mixture within `limits`.

    `Controller` is for policies that ask for more than losses: it measures them on the model.

    >>> steering = LossSteering("odm", {"web": 9_000_000, "code": 1_000_000}, tokens=100_000)
    >>> while not steering.done:
    ...     mixture = steering.mixture
    ...     read = {name: round(10_000 * share) for name, share in mixture.as_dict().items()}
    ...     mixture = steering.learn({"web": 3.1, "code": 2.2}, read)
    >>> mixture["web"] > mixture["code"]
    True
    >>> steering.trajectory
    Trajectory(10 intervals, 2 domains, step 10, 100% of the budget)

    Raises `ConfigError` for a method that needs proxy runs, and `PolicyError` for a policy that
    needs probes.
    """

    def __init__(
        self,
        policy: Policy | str,
        domains: Domains | Mapping[str, int],
        *,
        tokens: int,
        limits: Limits | None = None,
    ) -> None:
        if tokens < 1:
            raise ConfigError(f"tokens is {tokens}: the budget must be at least 1 token")
        known = _Known.of(domains)
        if empty := [domain.name for domain in known.domains if domain.tokens < 1]:
            raise ConfigError(
                f"domains without training tokens: {', '.join(empty)}; leave them out"
            )
        if isinstance(policy, str):
            policy = policy_without_proxies(policy, known)
        if probes := ", ".join(probe.name for probe in policy.probes):
            raise PolicyError(
                f"this policy reads more than losses ({probes}): use cuvee.Controller, which "
                "measures that on the model"
            )
        self._guard = Guard.around(policy, limits)
        self._tokens = tokens
        self._read = 0
        nothing = np.zeros(len(known.domains), dtype=np.int64)
        absent = Measured.absent(len(known.domains))
        self._so_far = Trajectory.start(Signals(known.domains, 0, 0.0, nothing, absent))
        self._mixture = self._guard.mixture(self._so_far)

    @property
    def mixture(self) -> Mixture:
        """The mixture of the next interval."""
        return self._mixture

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self._so_far.last.progress >= 1

    @property
    def trajectory(self) -> Trajectory:
        """The finished intervals."""
        return self._so_far

    def learn(
        self, losses: Mapping[str, float], tokens: Mapping[str, int], *, steps: int = 1
    ) -> Mixture:
        """Report an interval under `mixture` and return the mixture of the next one.

        `losses` are mean training losses in nats per token, by domain; a domain that was not drawn
        is left out. `tokens` were drawn from each domain in `steps` optimizer steps. Raises
        `SignalError` for an unknown domain, no steps, or a loss that is not finite.
        """
        if steps < 1:
            raise SignalError(f"steps is {steps}: an interval has at least one optimizer step")
        last = self._so_far.last
        for name in (*losses, *tokens):
            if name not in last.names:
                raise SignalError(f"no domain {name!r}{nearest(name, last.names)}")
        drawn_K = np.array([tokens.get(name, 0) for name in last.names], dtype=np.int64)
        loss = Measured(
            np.array([losses.get(name, 0.0) for name in last.names], dtype=np.float64),
            np.array([name in losses for name in last.names]),
        )
        read = self._read + int(drawn_K.sum())
        progress = min(1.0, read / self._tokens)
        signals = Signals(last.domains, last.step + steps, progress, drawn_K, loss)
        self._so_far = self._so_far.append(self._mixture, signals)
        self._read = read
        self._guard.learn(self._so_far)
        if not self.done:
            self._mixture = self._guard.mixture(self._so_far)
        return self._mixture


@dataclass(frozen=True)
class _Known:
    domains: tuple[Domain, ...]

    @classmethod
    def of(cls, given: Domains | Mapping[str, int]) -> _Known:
        if isinstance(given, Mapping):
            return cls(tuple(Domain(name, tokens) for name, tokens in given.items()))
        return cls(given.domains)

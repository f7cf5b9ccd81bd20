"""Requests of an operator during a run: hold the mixture, set shares of domains, change the policy.

`cuvee steer` writes a request to the store. The guard reads the new requests after each interval,
and they take effect with the next one. The guard's limits apply to them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cuvee.core.errors import CuveeError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, State


@dataclass(frozen=True)
class Request:
    """One request. `action` is one of

    {"freeze": true}                            keep the mixture that is in force
    {"set": {"code": 0.2, …}}                   give these domains these shares
    {"policy": "/folder", "sha256": "…"}        let another saved policy decide
    {"unfreeze": true}                          let the policy decide again
    """

    run_id: str
    number: int
    """Counts the requests to one run from 1."""
    action: Mapping[str, Any]
    author: str
    interval: int | None = None
    """The first interval that it affects. None while it waits."""

    def text(self) -> str:
        """Return the request in words, such as "set code 0.2"."""
        if "set" in self.action:
            shares = (f"{name} {share:g}" for name, share in self.action["set"].items())
            return f"set {', '.join(shares)}"
        if "policy" in self.action:
            return f"policy {self.action['policy']}"
        return next(iter(self.action))


@runtime_checkable
class TakesRequests(Protocol):
    """The record of a run that also receives requests, such as a `Claim` on a run of the store."""

    def requests(self, number: int) -> Sequence[Request]:
        """Return the requests that take effect at interval `number`; the same on each call."""
        ...


@dataclass
class Operator:
    """The request in force, and where new ones come from.

    `load` loads the policy of an action and raises `CuveeError` if it cannot.
    """

    source: TakesRequests | None = None
    load: Callable[[Mapping[str, Any]], Policy] | None = None
    order: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    new: list[dict[str, Any]] = field(default_factory=list)
    """Those that take effect with the next decision, as the audit record has them."""

    def mixture(self, wanted: Mixture, last: Mixture | None) -> Mixture | None:
        """Return what the operator wants in place of `wanted`; None if the policy decides."""
        if self.order is None:
            return None
        return _with_shares(wanted, self.order["set"]) if "set" in self.order else last

    def obey(self, number: int, policy: Policy) -> Policy:
        """Read the requests for interval `number` and return the policy that decides from then on.

        A policy that cannot be loaded, or needs probes that the run does not measure, is refused.
        """
        self.new = []
        for request in self.source.requests(number) if self.source else ():
            entry = {"number": request.number, "author": request.author, **request.action}
            self.new.append(entry)
            if "policy" in request.action:
                try:
                    policy = self._replaced(request.action, policy)
                except CuveeError as error:
                    entry["refused"] = str(error)
                    continue
            held = "set" in request.action or "freeze" in request.action
            self.order = request.action if held else None
        return policy

    def _replaced(self, action: Mapping[str, Any], policy: Policy) -> Policy:
        new = self._load(action)
        measured = {probe.name for probe in policy.probes}
        if missing := sorted({probe.name for probe in new.probes} - measured):
            raise PolicyError(
                f"it needs the probes {', '.join(missing)}, which this run does not measure"
            )
        self.policy = dict(action)
        return new

    def _load(self, action: Mapping[str, Any]) -> Policy:
        if self.load is None:
            raise PolicyError(
                "an operator changed the policy of this run: resume it with its store, from which "
                "the change came"
            )
        return self.load(action)

    def record(self) -> dict[str, Any] | None:
        """Return the entry of the audit record; None if no request was ever obeyed."""
        if self.order is None and self.policy is None and not self.new:
            return None
        return {"order": self.order, "policy": self.policy, "requests": self.new}

    def state_dict(self) -> State:
        return {"order": self.order, "policy": self.policy, "new": self.new}

    def load_state_dict(self, state: State, policy: Policy) -> Policy:
        """Restore, and return the policy that decides: `policy`, or the one that replaced it."""
        self.order = state.get("order")
        self.policy = state.get("policy")
        self.new = list(state.get("new", ()))
        return policy if self.policy is None else self._load(self.policy)


def _with_shares(wanted: Mixture, shares: Mapping[str, float]) -> Mixture:
    """Return `shares`, with the rest divided among the other domains in proportion to `wanted`."""
    given_K = np.array([name in shares for name in wanted.names])
    rest_K = np.where(given_K, 0.0, wanted.weights_K)
    if not rest_K.sum() > 0:
        rest_K = np.where(given_K, 0.0, 1.0)
    weights_K = np.array([shares.get(name, 0.0) for name in wanted.names])
    weights_K += rest_K * ((1.0 - weights_K.sum()) / max(rest_K.sum(), 1e-300))
    return Mixture(wanted.names, weights_K / weights_K.sum())

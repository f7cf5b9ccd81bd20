"""Requests of an operator during a run: hold the mixture, set shares, change the policy, add domains.

`cuvee steer` writes a request to the store. The guard reads the new requests after each interval,
and they take effect with the next one. The guard's limits apply to them, too.

An added domain belongs to the operator, and every policy goes on with the domains that it has: it
sees the run without the added ones (`guard.sanitizer`). The operator's share of them is taken from
all others in proportion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cuvee.core.domain import Domain
from cuvee.core.errors import CuveeError, PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, State, TakesDomains
from cuvee.core.signals import Measured, Signals
from cuvee.core.trajectory import Trajectory
from cuvee.policies.guard.limits import Limits

NO_DOMAINS = (
    "no domain can join this run: only `cuvee train` of a language model in one process and a "
    "`Controller` of one process take them. Build a corpus with the domain, and start a new run "
    "from this run's model"
)


@dataclass(frozen=True)
class Request:
    """One request. `action` is one of

    {"freeze": true}                            keep the mixture that is in force
    {"set": {"code": 0.2, …}}                   give these domains these shares
    {"policy": "/folder", "sha256": "…"}        let another saved policy decide
    {"unfreeze": true}                          let the policy decide again
    {"add": {"name": "law", "share": 0.1,       add a domain of the corpus in a folder
             "corpus": "/folder", "fingerprint": "…", "vocabulary": "…"}}
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
        if "add" in self.action:
            added = self.action["add"]
            return f"add domain {added['name']} {added['share']:g} from {added['corpus']}"
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

    `load` loads the policy of an action and raises `CuveeError` if it cannot. `trainer` takes the
    domains that are added; without it they are refused.
    """

    source: TakesRequests | None = None
    load: Callable[[Mapping[str, Any]], Policy] | None = None
    trainer: TakesDomains | None = None
    order: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Share and `Domain.to_json` of each added domain, by name."""
    new: list[dict[str, Any]] = field(default_factory=list)
    """Those that take effect with the next decision, as the audit record has them."""

    def mixture(self, wanted: Mixture, last: Mixture | None) -> Mixture | None:
        """Return what the operator wants in place of `wanted`; None if the policy decides."""
        if self.order is None:
            return None
        return _with_shares(wanted, self.order["set"]) if "set" in self.order else last

    def with_added(self, mixture: Mixture, names: Sequence[str]) -> Mixture:
        """Return `mixture` over `names`, in which each added domain has its share."""
        if not self.added:
            return mixture
        return _with_shares(mixture.to(names), self._shares())

    def extended(self, so_far: Trajectory) -> Trajectory:
        """Return `so_far` with the domains that join next, of which nothing was read yet."""
        joining = [Domain.from_json(one["domain"]) for one in self.added.values()]
        joining = [domain for domain in joining if domain.name not in so_far.names]
        if not joining:
            return so_far
        last = so_far.last
        new = (0, len(joining))
        loss_K = Measured(np.pad(last.loss.values, new), np.pad(last.loss.present, new))
        domains = (*last.domains, *joining)
        tokens_K = np.pad(last.tokens_K, new)
        here = Signals(domains, last.step, last.progress, tokens_K, loss_K)
        mixtures = list(so_far.mixtures)
        mixtures[-1:] = [mixture.to(here.names) for mixture in mixtures[-1:]]
        return Trajectory([*so_far.signals[:-1], here], mixtures)

    def obey(self, number: int, policy: Policy, names: Sequence[str], limits: Limits) -> Policy:
        """Read the requests for interval `number` and return the policy that decides from then on.

        `names` are the domains of the run so far. A policy that cannot be loaded, or needs probes
        that the run does not measure, is refused, and so is a domain that cannot join.
        """
        self.new = []
        for request in self.source.requests(number) if self.source else ():
            entry = {"number": request.number, "author": request.author, **request.action}
            self.new.append(entry)
            try:
                if "policy" in request.action:
                    policy = self._replaced(request.action, policy)
                elif "add" in request.action:
                    self._add(request.action["add"], names, limits)
            except CuveeError as error:
                entry["refused"] = str(error)
                continue
            if "add" in request.action:
                continue
            for name, share in request.action.get("set", {}).items():
                if name in self.added:
                    self.added[name]["share"] = share
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

    def _add(self, asked: Mapping[str, Any], names: Sequence[str], limits: Limits) -> None:
        if self.trainer is None:
            raise PolicyError(NO_DOMAINS)
        if self.order == {"freeze": True}:
            raise PolicyError("the mixture is frozen: unfreeze it first")
        name = asked["name"]
        if name in names or name in self.added:
            raise PolicyError(f"the run has the domain {name} already: change its share with --set")
        limits.bounds(list(dict.fromkeys([*names, *self.added, name])))
        total = asked["share"] + sum(self._shares().values())
        if total >= 1:
            raise PolicyError(
                f"the added domains would have {total:g} of the mixture: together they must have "
                "less than 1"
            )
        domain = self.trainer.add_domain(name, Path(asked["corpus"]), asked["fingerprint"])
        self.added[name] = {"share": asked["share"], "domain": domain.to_json()}

    def _load(self, action: Mapping[str, Any]) -> Policy:
        if self.load is None:
            raise PolicyError(
                "an operator changed the policy of this run: resume it with its store, from which "
                "the change came"
            )
        return self.load(action)

    def record(self) -> dict[str, Any] | None:
        """Return the entry of the audit record; None if no request was ever obeyed."""
        if self.order is None and self.policy is None and not self.new and not self.added:
            return None
        added = {"added": self._shares()} if self.added else {}
        return {"order": self.order, "policy": self.policy, "requests": self.new, **added}

    def _shares(self) -> dict[str, float]:
        return {name: float(added["share"]) for name, added in self.added.items()}

    def state_dict(self) -> State:
        added = {"added": copy.deepcopy(self.added)} if self.added else {}
        return {"order": self.order, "policy": self.policy, "new": self.new, **added}

    def load_state_dict(self, state: State, policy: Policy) -> Policy:
        """Restore, and return the policy that decides: `policy`, or the one that replaced it."""
        self.order = state.get("order")
        self.policy = state.get("policy")
        self.new = list(state.get("new", ()))
        self.added = {name: dict(one) for name, one in state.get("added", {}).items()}
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

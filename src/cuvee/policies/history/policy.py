"""`HistoryPolicy`: a frozen agent that steers a run by all that has happened in it (Data Mixing Agent, arXiv 2507.15640).

At each interval it observes the newest moment, lets the actor read it (one step, with a memory of the moments before) and plays
the centre of the actor's distribution. Resumed, or asked about another history, it reads that history again, moment by
moment, and so decides to the bit what it would have decided. Where domains come or go its memory starts anew, while what
the encoder sums up by name goes on.

One file serves any number of domains of any name: which are to be learned is said by their role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from cuvee.agents.base import Observation
from cuvee.agents.history import PRESETS, HistoryActor, HistoryArchitecture, HistoryCritic, Memory
from cuvee.agents.learning import as_weights, load_module, module_state, seeded, tensors
from cuvee.core.arrays import FloatArray
from cuvee.core.domain import Domain, divided_shares, natural_K
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Trajectory, prefixes
from cuvee.policies.feedback import Feedback, question_files
from cuvee.policies.history.encoder import (
    HistoryEncoder,
    reference_mixture,
)
from cuvee.policies.history.features import HISTORY_FEATURES, HISTORY_GLOBALS
from cuvee.policies.history.heuristics import role_shares
from cuvee.probes.evaluation_set import EvaluationSet

_FALLBACK = ("target", "flatness", "shares")


@register_policy("history")
class HistoryPolicy:
    """All arguments are JSON values, so that a policy file can hold them.

    `architecture` is the name of a preset or what `HistoryArchitecture` takes. `evaluation` names JSONL question files of the
    fields "general" and "target", which `share` of an interval's cost is spent on; without them nothing is evaluated and the
    actor, which is told so, decides without feedback. `weight` is λ of `Feedback`.

    The mixture is softmax(logits / `temperature`), of which `floor` is dealt out evenly.

    `support` is what off-policy evaluation said of the policy: {"supported": false, …} where the data it was learned from cannot
    say that it is any good. Then `fallback` is played instead, a static mixture: {"target": …, "flatness": …}, a target share and
    how evenly each field is divided (`divided_shares`), and {name: share} under "shares", which is played where it knows
    all domains of the run. By default the reference mixture, half for each field.
    """

    def __init__(
        self,
        architecture: str | Mapping[str, Any] = "small",
        *,
        evaluation: Mapping[str, Sequence[str]] | None = None,
        share: float = 0.02,
        weight: float = 0.5,
        temperature: float = 1.0,
        floor: float = 0.0,
        support: Mapping[str, Any] | None = None,
        fallback: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        shape = _architecture(architecture)
        if temperature <= 0 or not 0 <= floor < 1:
            raise PolicyError(
                f"temperature {temperature} must be above 0, and floor {floor} from 0 to below 1"
            )
        if support is not None and "supported" not in support:
            raise PolicyError(
                f"support says {', '.join(support)} but not whether the policy is 'supported'"
            )
        if fallback is not None and not (
            set(fallback) <= set(_FALLBACK) and 0 <= fallback.get("target", -1) <= 1
        ):
            raise PolicyError(
                f"fallback is {dict(fallback)}: give {', '.join(_FALLBACK)}, of which target is from 0 to 1"
            )
        questions = question_files(evaluation)
        self._settings: dict[str, Any] = {
            "architecture": asdict(shape),
            "evaluation": questions,
            "share": share,
            "weight": weight,
            "temperature": temperature,
            "floor": floor,
            "support": support and dict(support),
            "fallback": fallback and dict(fallback),
            "seed": seed,
        }
        sizes = len(HISTORY_FEATURES), len(HISTORY_GLOBALS)
        self.actor, self.critic = seeded(
            seed, lambda: (HistoryActor(*sizes, shape), HistoryCritic(*sizes, shape))
        )
        self.probes: Sequence[Probe] = (EvaluationSet(questions, share=share),) if questions else ()
        self._reading = _Reading(Feedback(weight))
        self._decision: dict[str, FloatArray] = {}

    @property
    def supported(self) -> bool:
        return self._settings["support"] is None or bool(self._settings["support"]["supported"])

    def evaluating(
        self, evaluation: Mapping[str, Sequence[str]] | None, share: float = 0.02
    ) -> HistoryPolicy:
        """The same policy with other questions, or none: they belong to a run and not to what was learned."""
        copy = HistoryPolicy(**{**self._settings, "evaluation": evaluation, "share": share})
        copy.load_state_dict(self.state_dict())
        return copy

    @staticmethod
    def check(domains: tuple[Domain, ...]) -> None:
        """Raises `PolicyError` if there are no source or no target domains, which it divides a run between."""
        reference_mixture(domains)

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Raises `PolicyError` if there are no source or no target domains."""
        with torch.inference_mode():
            logits_K = (
                self._reading.follow(so_far, self.actor).double() / self._settings["temperature"]
            )
        floor = self._settings["floor"]
        own_K = (1 - floor) * as_weights(logits_K.softmax(-1)) + floor / len(logits_K)
        self._decision = {"own": own_K, **_rivals(so_far)}
        if self.supported:
            return Mixture.normalise(so_far.names, own_K)
        self._decision["fallback"] = self._fallback(so_far.domains)
        return Mixture.normalise(so_far.names, self._decision["fallback"])

    def learn(self, so_far: Trajectory) -> Metrics:
        """Learns nothing. Says who acted, and of the last decision the entropy, the share of target domains and what the critic
        (the lesser twin) expects of the actor's own mixture and of others in its place, in its own units: "own_value" and so
        on under "agent", where the guard looks for values that diverge."""
        if not self._decision:
            return {}
        own_K = self._decision["own"]
        target_K = np.array([domain.is_target for domain in self._reading.domains])
        with torch.inference_mode():
            tokens_KH = self._reading.tokens(self.critic)
            actions_NK = torch.from_numpy(np.stack(list(self._decision.values()))).float()
            q_N = torch.minimum(*self.critic.values(tokens_KH, actions_NK))
        return {
            "acts": "history" if self.supported else "fallback",
            "supported": self.supported if self._settings["support"] else None,
            "entropy": Mixture.normalise(
                [domain.name for domain in self._reading.domains], own_K
            ).entropy(),
            "target_share": float(own_K[target_K].sum()),
            "agent": {
                f"{name}_value": value
                for name, value in zip(self._decision, q_N.tolist(), strict=True)
            },
        }

    def explain(self, so_far: Trajectory) -> dict[str, float]:
        """What the actor was told of the run when it last decided."""
        return self._reading.told()

    def _fallback(self, domains: tuple[Domain, ...]) -> FloatArray:
        given, names = self._settings["fallback"], [domain.name for domain in domains]
        if given is None:
            return reference_mixture(domains)
        shares = given.get("shares", {})
        if sum(shares.get(name, 0.0) for name in names) > 0 and set(names) <= set(shares):
            return Mixture.normalise(names, [shares[name] for name in names]).weights_K
        return np.array(
            list(divided_shares(domains, given["target"], given.get("flatness", 0.0)).values())
        )

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def state_dict(self) -> State:
        return {"actor": module_state(self.actor), "critic": module_state(self.critic)}

    def load_state_dict(self, state: State) -> None:
        load_module(self.actor, state["actor"])
        load_module(self.critic, state["critic"])
        self._reading, self._decision = _Reading(Feedback(self._settings["weight"])), {}


class _Reading:
    """How far a run has been read, and what is remembered of it. The critic follows later, when its opinion is wanted."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self._begin()

    def _begin(self) -> None:
        self._signals: Sequence[Signals] = ()
        self._mixtures: Sequence[Mixture] = ()
        self._encoder = HistoryEncoder(self._feedback)
        self.domains: tuple[Domain, ...] = ()
        self._begin_memory()

    def _begin_memory(self) -> None:
        self._actor_memory: Memory | None = None
        self._critic_memory: Memory | None = None
        self._unvalued: list[Observation] = []
        self._logits_K = self._tokens_KH = torch.empty(0)
        self._globals_G: Sequence[float] = ()

    def follow(self, so_far: Trajectory, actor: HistoryActor) -> torch.Tensor:
        """The actor's logits (K,) at the newest moment of `so_far`, of which only what is new is read."""
        signals, mixtures = so_far.signals, so_far.mixtures
        known = len(self._signals)
        if not (_begins(signals, self._signals) and _begins(mixtures, self._mixtures)):
            known = 0
        if known == 0:
            self._begin()
        unread = (so_far,) if known == len(so_far) else islice(prefixes(so_far), known, None)
        try:
            for prefix in unread:
                self._read(prefix, actor)
        except Exception:  # whatever it was, half of a history is none
            self._begin()
            raise
        self._signals, self._mixtures = signals, mixtures
        return self._logits_K

    def _read(self, so_far: Trajectory, actor: HistoryActor) -> None:
        observation = self._encoder.observe(so_far)
        if [domain.name for domain in self.domains] != list(so_far.names):
            self._begin_memory()
        self.domains = so_far.domains
        self._logits_K, self._actor_memory = actor.step(self._actor_memory, *tensors(observation))
        self._unvalued.append(observation)
        self._globals_G = observation.globals_G.tolist()

    def told(self) -> dict[str, float]:
        """Features of the run at the newest moment read; {} if none is."""
        return dict(zip(HISTORY_GLOBALS, self._globals_G, strict=False))

    def tokens(self, critic: HistoryCritic) -> torch.Tensor:
        """What the critic (K, H) knows of the newest moment read."""
        for observation in self._unvalued:
            self._tokens_KH, self._critic_memory = critic.step(
                self._critic_memory, *tensors(observation)
            )
        self._unvalued = []
        return self._tokens_KH


def _begins(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether `now` starts with the very objects of `before`."""
    return len(before) <= len(now) and all(
        new is old for new, old in zip(now, before, strict=False)
    )


def _rivals(so_far: Trajectory) -> dict[str, FloatArray]:
    """(K,) mixtures by name that a critic is asked about beside the policy's own."""
    K, last = len(so_far.names), so_far.last_mixture
    return {
        "last": role_shares(so_far.domains, "source")
        if last is None
        else last.to(so_far.names).weights_K,
        "natural": natural_K(so_far.domains),
        "uniform": np.full(K, 1 / K),
    }


def _architecture(given: str | Mapping[str, Any]) -> HistoryArchitecture:
    if isinstance(given, str):
        if given not in PRESETS:
            raise PolicyError(f"no architecture {given!r}: presets are {', '.join(PRESETS)}")
        return PRESETS[given]
    known = [field.name for field in fields(HistoryArchitecture)]
    if set(given) - set(known):
        raise PolicyError(
            f"HistoryArchitecture has no {', '.join(set(given) - set(known))}; it has {', '.join(known)}"
        )
    return replace(PRESETS["small"], **given)

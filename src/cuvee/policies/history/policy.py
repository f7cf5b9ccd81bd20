"""`HistoryPolicy`: a frozen agent that sees the whole history of a run.

Source: Data Mixing Agent, arXiv 2507.15640. After each interval, the policy encodes the newest
timestep, runs the actor for one step with its memory of earlier timesteps, and plays the centre of
the actor's distribution. After a restart, or for another history, it encodes that history from the
start, timestep by timestep. Its decisions are then exactly the same. When domains are added or
removed, the actor's memory restarts; the encoder's sums by domain name continue.

One policy file works for any number of domains with any names. Target domains are marked by `role`.
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
from cuvee.core.epochs import EpochCaps, check_epochs
from cuvee.core.errors import PolicyError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Metrics, Probe, State
from cuvee.core.registry import register_policy
from cuvee.core.signals import Signals
from cuvee.core.trajectory import Trajectory, prefixes
from cuvee.policies.feedback import Feedback, question_files
from cuvee.policies.fixed import Scheduled
from cuvee.policies.history.encoder import (
    HistoryEncoder,
    reference_mixture,
)
from cuvee.policies.history.features import HISTORY_FEATURES, HISTORY_GLOBALS
from cuvee.policies.history.heuristics import role_shares
from cuvee.policies.history.readable import MOST_EPOCHS, Readable
from cuvee.probes.evaluation_set import EvaluationSet

_FALLBACK = ("target", "flatness", "shares", "points")


@register_policy("history")
class HistoryPolicy:
    """Steers a run with a learned `HistoryActor`.

    - `architecture`: name of a preset, or the arguments of `HistoryArchitecture`.
    - `evaluation`: JSONL question files of the fields "general" and "target". Without them there is
      no feedback, which the actor sees as a feature.
    - `share`: fraction of an interval's cost that is spent on the evaluation.
    - `weight`: λ of `Feedback`.
    - `temperature`, `floor`: the mixture is (1 − floor) · softmax(logits / temperature) + floor /
      K.
    - `support`: result of off-policy evaluation. With {"supported": false, …}, the logged data do
      not show that the policy is better than a static mixture, and `fallback` is played instead.
    - `fallback`: a static mixture, {"target": …, "flatness": …, "shares": …}. "target" is the share
      of the target domains and "flatness" says how evenly each role is divided (see
      `divided_shares`). "shares" are shares by name, which are used if they name all domains of the
      run. So are "points", a plan, which comes first (see `policies.fixed.Scheduled`). Default: the
      reference mixture, one half for each role.
    - `epochs`, `tokens`: epoch caps and length of the run (see `policies.paced.ReadsCaps`).
    - `max_epochs`: no domain is read more often, in actor and fallback. It is spread evenly over
      the run (`policies.history.readable`). None: as often as the caps of the run allow. A policy that does
      not know the length of its run has no such limit.

    All arguments are JSON values, so that a policy file can hold them.
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
        epochs: EpochCaps = None,
        tokens: int | None = None,
        max_epochs: float | None = MOST_EPOCHS,
    ) -> None:
        shape = _architecture(architecture)
        if max_epochs is not None:
            check_epochs("max_epochs", max_epochs)
        if temperature <= 0 or not 0 <= floor < 1:
            raise PolicyError(
                f"temperature {temperature} must be above 0, and floor {floor} must be at least 0 "
                "and below 1"
            )
        if support is not None and "supported" not in support:
            raise PolicyError(
                f"support has {', '.join(support)} but lacks 'supported', true or false"
            )
        if fallback is not None and not (
            set(fallback) <= set(_FALLBACK) and 0 <= fallback.get("target", -1) <= 1
        ):
            raise PolicyError(
                f"fallback is {dict(fallback)}: give {', '.join(_FALLBACK)}, where target is from "
                "0 to 1"
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
            "epochs": epochs,
            "tokens": tokens,
            "max_epochs": max_epochs,
        }
        points = (fallback or {}).get("points")
        self._plan = Scheduled(points) if points else None
        self._readable = Readable(epochs, tokens, max_epochs) if tokens else None
        sizes = len(HISTORY_FEATURES), len(HISTORY_GLOBALS)
        self.actor, self.critic = seeded(
            seed, lambda: (HistoryActor(*sizes, shape), HistoryCritic(*sizes, shape))
        )
        self.probes: Sequence[Probe] = (EvaluationSet(questions, share=share),) if questions else ()
        self._history = _History(Feedback(weight))
        self._decision: dict[str, FloatArray] = {}

    @property
    def supported(self) -> bool:
        """Whether the policy itself acts. If not, the fallback mixture is played."""
        return self._settings["support"] is None or bool(self._settings["support"]["supported"])

    @property
    def steered_by(self) -> str:
        """What acts: "history" (the actor), "plan" or "fallback" (a static mixture)."""
        if self.supported:
            return "history"
        return "plan" if self._plan else "fallback"

    def with_evaluation(
        self, evaluation: Mapping[str, Sequence[str]] | None, share: float = 0.02
    ) -> HistoryPolicy:
        """Return a copy with other question files, or none.

        The files belong to a run, not to the policy.
        """
        copy = HistoryPolicy(**{**self._settings, "evaluation": evaluation, "share": share})
        copy.load_state_dict(self.state_dict())
        return copy

    def capped(self, epochs: EpochCaps, tokens: int | None) -> HistoryPolicy:
        """Return the same policy for a run of `tokens` tokens with these caps."""
        copy = HistoryPolicy(**{**self._settings, "epochs": epochs, "tokens": tokens})
        copy.load_state_dict(self.state_dict())
        return copy

    @staticmethod
    def check(domains: tuple[Domain, ...]) -> None:
        """Raise `PolicyError` if there are no source or no target domains."""
        reference_mixture(domains)

    def mixture(self, so_far: Trajectory) -> Mixture:
        """Return the next mixture.

        Raises `PolicyError` if there are no source or no target domains.
        """
        with torch.inference_mode():
            logits_K = (
                self._history.follow(so_far, self.actor).double() / self._settings["temperature"]
            )
        floor = self._settings["floor"]
        own_K = (1 - floor) * as_weights(logits_K.softmax(-1)) + floor / len(logits_K)
        own_K = self._limited(so_far, own_K)
        self._decision = {"own": own_K, **_alternatives(so_far)}
        if self.supported:
            return Mixture.normalise(so_far.names, own_K)
        self._decision["fallback"] = self._limited(so_far, self._fallback(so_far))
        return Mixture.normalise(so_far.names, self._decision["fallback"])

    def learn(self, so_far: Trajectory) -> Metrics:
        """Return metrics of the last decision. The policy does not learn.

        The metrics say who acted, and the entropy and target share of the actor's mixture. Under
        "agent" they hold the critic's value of that mixture and of others, as "own_value",
        "last_value" and so on: the lower value of the two critics, in the critic's units. The guard
        checks them for divergence.
        """
        if not self._decision:
            return {}
        own_K = self._decision["own"]
        target_K = np.array([domain.is_target for domain in self._history.domains])
        with torch.inference_mode():
            tokens_KH = self._history.tokens(self.critic)
            actions_NK = torch.from_numpy(np.stack(list(self._decision.values()))).float()
            q_N = torch.minimum(*self.critic.values(tokens_KH, actions_NK))
        return {
            "acts": self.steered_by,
            "supported": self.supported if self._settings["support"] else None,
            "entropy": Mixture.normalise(
                [domain.name for domain in self._history.domains], own_K
            ).entropy(),
            "target_share": float(own_K[target_K].sum()),
            "agent": {
                f"{name}_value": value
                for name, value in zip(self._decision, q_N.tolist(), strict=True)
            },
        }

    def explain(self, so_far: Trajectory) -> dict[str, float]:
        """Return the global features of the newest timestep, by name."""
        return self._history.run_features()

    def _limited(self, so_far: Trajectory, weights_K: FloatArray) -> FloatArray:
        return self._readable.limit(so_far, weights_K) if self._readable else weights_K

    def _fallback(self, so_far: Trajectory) -> FloatArray:
        given = self._settings["fallback"]
        domains = so_far.domains
        names = [domain.name for domain in domains]
        if given is None:
            return reference_mixture(domains)
        if self._plan and set(names) <= set(given["points"][0][1]):
            return self._plan.at(so_far.last.progress, names).weights_K
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
        self._history = _History(Feedback(self._settings["weight"]))
        self._decision = {}


class _History:
    """The part of a run that was encoded, with the memories of actor and critic.

    The critic is evaluated later than the actor, and only when its values are needed.
    """

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self._restart()

    def _restart(self) -> None:
        self._signals: Sequence[Signals] = ()
        self._mixtures: Sequence[Mixture] = ()
        self._encoder = HistoryEncoder(self._feedback)
        self.domains: tuple[Domain, ...] = ()
        self._restart_memory()

    def _restart_memory(self) -> None:
        self._actor_memory: Memory | None = None
        self._critic_memory: Memory | None = None
        self._unvalued: list[Observation] = []
        self._logits_K = self._tokens_KH = torch.empty(0)
        self._globals_G: Sequence[float] = ()

    def follow(self, so_far: Trajectory, actor: HistoryActor) -> torch.Tensor:
        """Return the actor's logits (K,) at the newest timestep of `so_far`.

        Only new timesteps are encoded.
        """
        signals = so_far.signals
        mixtures = so_far.mixtures
        known = len(self._signals)
        if not (_begins(signals, self._signals) and _begins(mixtures, self._mixtures)):
            known = 0
        if known == 0:
            self._restart()
        new = (so_far,) if known == len(so_far) else islice(prefixes(so_far), known, None)
        try:
            for prefix in new:
                self._add(prefix, actor)
        except Exception:  # a partly encoded history is of no use
            self._restart()
            raise
        self._signals = signals
        self._mixtures = mixtures
        return self._logits_K

    def _add(self, so_far: Trajectory, actor: HistoryActor) -> None:
        observation = self._encoder.observe(so_far)
        if [domain.name for domain in self.domains] != list(so_far.names):
            self._restart_memory()
        self.domains = so_far.domains
        self._logits_K, self._actor_memory = actor.step(self._actor_memory, *tensors(observation))
        self._unvalued.append(observation)
        self._globals_G = observation.globals_G.tolist()

    def run_features(self) -> dict[str, float]:
        """Return the global features of the newest timestep; {} before the first."""
        return dict(zip(HISTORY_GLOBALS, self._globals_G, strict=False))

    def tokens(self, critic: HistoryCritic) -> torch.Tensor:
        """Return the critic's tokens (K, H) of the newest timestep."""
        for observation in self._unvalued:
            self._tokens_KH, self._critic_memory = critic.step(
                self._critic_memory, *tensors(observation)
            )
        self._unvalued = []
        return self._tokens_KH


def _begins(now: Sequence[Any], before: Sequence[Any]) -> bool:
    """Return whether `now` starts with the same objects as `before`."""
    return len(before) <= len(now) and all(
        new is old for new, old in zip(now, before, strict=False)
    )


def _alternatives(so_far: Trajectory) -> dict[str, FloatArray]:
    """Return (K,) mixtures by name, which the critic values for comparison."""
    K = len(so_far.names)
    last = so_far.last_mixture
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
            f"HistoryArchitecture has no {', '.join(set(given) - set(known))}; "
            f"it has {', '.join(known)}"
        )
    return replace(PRESETS["small"], **given)
